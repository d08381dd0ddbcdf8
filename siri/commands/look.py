"""`siri look RUN`: read responses of a run in the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from siri.config.settings import Settings, setting
from siri.errors import InputError
from siri.store.responses import Response, of_step, read_responses, response_files
from siri.text import printable, say

SHOWN = 1200
"""Characters of a response that are shown of each end of it, unless --full is given."""


@dataclass(frozen=True)
class LookOptions(Settings):
    """Which responses are shown."""

    run: str = setting("", positional=True)
    """Folder of a run that kept responses (keep_responses)."""
    step: int = setting(-1, least=-1, everyday=True)
    """Those of this training step (from 0), and of an evaluation after so many steps; -1 = the newest file."""
    eval: bool = setting(False, everyday=True)
    """Of evaluations only."""
    wrong: bool = setting(False, everyday=True)
    """Only responses that scored less than 1."""
    right: bool = setting(False, everyday=True)
    """Only responses that scored 1 or more."""
    cut: bool = setting(False, everyday=True)
    """Only responses that the cap cut."""
    longest: bool = setting(False, everyday=True)
    """The longest first."""
    count: int = setting(3, least=1, everyday=True)
    """How many are shown."""
    full: bool = setting(False, everyday=True)
    """Show the whole of long responses, not their two ends."""


def run_look(options: LookOptions) -> int:
    """Print the responses that are asked for, with their problem and gold answer."""
    path = chosen_file(Path(options.run), options)
    responses = fitting_responses(read_responses(path), options)
    say(f"{path.stem}: {len(responses):,} responses fit, {min(options.count, len(responses))} shown")
    for response in responses[: options.count]:
        for line in response_lines(response, full=options.full):
            say(line)
    return 0


def chosen_file(run: Path, options: LookOptions) -> Path:
    """The newest file that is meant. InputError says which there are where none is."""
    if not run.is_dir():
        raise InputError(f"{run}: no such folder")
    files = [path for path in response_files(run) if path.stem.startswith("eval-") or not options.eval]
    if not files:
        what = "evaluation's responses" if options.eval else "responses"
        raise InputError(f"{run}: no {what} there; they are kept with --keep-responses, which is on by default")
    wanted = of_step(files, options.step) if options.step >= 0 else files
    if not wanted:
        there = ", ".join(path.stem for path in files[-8:])
        raise InputError(f"{run}: no responses of step {options.step} are kept; the newest are {there}")
    return wanted[-1]


def fitting_responses(responses: Sequence[Response], options: LookOptions) -> list[Response]:
    """The responses that fit the options. InputError where none does, or none can."""
    if options.wrong and options.right:
        raise InputError("--wrong and --right leave no response; give one of them")
    fitting = [
        response
        for response in responses
        if not (options.wrong and response.score >= 1)
        and not (options.right and response.score < 1)
        and not (options.cut and not response.truncated)
    ]
    return sorted(fitting, key=lambda response: -response.tokens) if options.longest else fitting


def response_lines(response: Response, *, full: bool) -> list[str]:
    """The lines of one response."""
    facts = [f"problem {response.prompt_number}", f"score {response.score:g}", f"{response.tokens:,} tokens"]
    facts += ["cut"] if response.truncated else []
    facts += [] if response.trained else ["not trained on"]
    facts += [f"mean log-prob {response.logp_mean:.3f}", f"weights after {response.weights} steps"]
    text = response.text
    if not full and len(text) > 2 * SHOWN:
        left = len(text) - 2 * SHOWN
        text = f"{text[:SHOWN]}\n[... {left:,} characters left out, --full shows them ...]\n{text[-SHOWN:]}"
    answer = "nothing to compare" if response.extracted is None else printable(response.extracted)
    heading = f"--- {', '.join(facts)}"
    return [
        "",
        heading,
        response.prompt.strip(),
        "",
        text.strip(),
        "",
        f"gold: {printable(response.gold)}   answered: {answer}",
    ]
