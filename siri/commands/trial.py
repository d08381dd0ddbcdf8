"""A trial of the reward before a run: what it says of a right and of a wrong answer to problems of the data."""

from collections.abc import Sequence

from siri.config import Config
from siri.errors import InputError
from siri.rewards import BUILT_IN, END_OF_THINKING, accepted_answers
from siri.rewards.pool import Grader

ROWS = 4
"""Problems that are tried: the first ones."""
WRONG = "987654321"
"""What no problem has for an answer."""
SPELLINGS = ("The answer is \\boxed{{{}}}.", "{}", "#### {}", "Answer: {}")
"""How a response may end; a function of the user's may know any of them."""


def try_reward(grader: Grader, answers: Sequence[str], config: Config) -> str:
    """What the reward makes of the gold answer and of a wrong one, in a line. answers: of the problems.

    InputError where it fails on all, and where a built-in reward does not tell the two apart for any problem; a
    function of the user's may have its reasons, and gets a warning.
    """
    spellings = {"math": SPELLINGS[:1], "exact": SPELLINGS[1:2]}.get(config.reward, SPELLINGS)
    begin = f"I think.{END_OF_THINKING} " if config.think else ""
    rows = [(gold, spelling) for gold in answers[:ROWS] for spelling in spellings]
    said = [begin + spelling.format(text) for gold, spelling in rows for text in (accepted_answers(gold)[0], WRONG)]
    graded = grader.score(said, [gold for gold, _ in rows for _ in range(2)])
    if graded.errors + len(graded.timed_out) >= len(said):
        reason = graded.first_error or f"none was graded within {config.reward_timeout_s:g} s"
        raise InputError(f"reward {config.reward} fails on right and wrong answers alike: {reason}")
    pairs = zip(rows, graded.rewards[::2], graded.rewards[1::2], strict=True)
    known = [(gold, spelling, right, wrong) for (gold, spelling), right, wrong in pairs if right > wrong]
    failed = graded.errors + len(graded.timed_out)
    faults = f"; warning: it failed on {failed} of {len(said)} answers: {graded.first_error}" if failed else ""
    if known:
        gold, spelling, right, wrong = known[0]
        return (
            f"reward {config.reward}, tried: {right:g} for {_short(spelling.format(accepted_answers(gold)[0]))}, "
            f"{wrong:g} for {spelling.format(WRONG)}{faults}"
        )
    told = f"gives {graded.rewards[0]:g} for {_short(said[0])} and {graded.rewards[1]:g} for {_short(said[1])}"
    if config.reward in BUILT_IN:
        raise InputError(
            f"reward {config.reward} does not tell the answers of the first {len(answers[:ROWS])} problems from a "
            f"wrong one: it {told}; look at the answers (--answer-key)"
        )
    return f"warning: reward {config.reward} does not tell a right answer from a wrong one: it {told}{faults}"


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:50]} ... {text[-25:]}"
