"""`samples.html`: responses of a run to be read: best, worst, cut, and what changed since the base."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from siri.report.style import DARK, LIGHT
from siri.store.files import write_atomic
from siri.store.responses import Response, read_responses, response_files
from siri.text import encoded

SAMPLES = "samples.html"
MOST = 5
"""Responses of each kind."""
LONGEST = 20_000
"""Characters of a response that the page holds: half from each end."""


@dataclass(frozen=True)
class Shown:
    """A response on the page; `before` is the base's to the same problem, if it is beside it."""

    response: Response
    before: Response | None = None


@dataclass(frozen=True)
class Section:
    title: str
    shown: list[Shown]


def write_samples(run: Path, *, title: str) -> Path | None:
    """Write the page of a run; None, and no page, where no responses are kept. InputError names a damaged file."""
    sections, source = sections_of(run)
    if not sections:
        return None
    from jinja2 import Environment, PackageLoader, StrictUndefined  # imported on first use, as for the report

    environment = Environment(
        loader=PackageLoader("siri.report"), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    page = environment.get_template("samples.html").render(
        title=title, source=source, sections=sections, cut=shortened, light=LIGHT, dark=DARK
    )
    write_atomic(run / SAMPLES, encoded(page))
    return run / SAMPLES


def sections_of(run: Path) -> tuple[list[Section], str]:
    """What is shown of the newest evaluation, or without one of the newest step, and the name of its file."""
    paths = response_files(run)
    evaluations = [path for path in paths if path.stem.startswith("eval-")]
    if not paths:
        return [], ""
    newest = (evaluations or paths)[-1]
    now = read_responses(newest)
    right = sorted((response for response in now if response.score >= 1), key=lambda response: response.tokens)
    wrong = sorted(
        (response for response in now if response.score < 1 and not response.truncated),
        key=lambda response: -response.tokens,
    )
    cut = [response for response in now if response.truncated]
    sections = [
        Section("Best: right, the shortest first", [Shown(response) for response in right[:MOST]]),
        Section("Worst: wrong, the longest first", [Shown(response) for response in wrong[:MOST]]),
        Section("Cut by the cap", [Shown(response) for response in cut[:MOST]]),
    ]
    benchmark = newest.stem.split("-", 2)[-1]
    base = next((path for path in evaluations if path.stem.split("-", 2)[-1] == benchmark), newest)
    if base != newest:
        sections.append(Section("Changed since the base", changed(read_responses(base), now)[:MOST]))
    return [section for section in sections if section.shown], newest.stem


def changed(before: Sequence[Response], now: Sequence[Response]) -> list[Shown]:
    """Problems of which the first response was wrong and is right now, or the other way round; the former first."""
    earlier = {response.prompt_number: response for response in reversed(before)}
    later = {response.prompt_number: response for response in reversed(now)}
    pairs = [
        Shown(response, earlier[number])
        for number, response in later.items()
        if number in earlier and earlier[number].prompt == response.prompt
    ]
    turned = [pair for pair in pairs if pair.before and (pair.before.score >= 1) != (pair.response.score >= 1)]
    return sorted(turned, key=lambda pair: (pair.response.score < 1, pair.response.prompt_number))


def shortened(text: str) -> str:
    """A text with no more than LONGEST characters of it."""
    text = text.strip()
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]}\n[... {len(text) - LONGEST:,} characters left out ...]\n{text[-half:]}"
