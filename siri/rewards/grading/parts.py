r"""Answers in parts with their numbers: "a) 5; b) 6", "(1)\ 3\ (2)\ 5".

Without its number each part might change places with another, so that a list without numbers is taken in the order in
which it is written, and in no other one.
"""

import re
from collections.abc import Callable

from siri.rewards.grading.structure import split

_SPACE = r"(?:\s|~|\\[,;: ]|\\q?quad(?![a-zA-Z]))*+"
_LABEL = re.compile(
    rf"(?:^|(?<=[\s;,.~}}$:])|(?<=quad))(?:\\text\s*\{{\s*)?(?:[Pp]art\s*)?(?:\(\s*(?P<both>[a-h]|\d|i{{1,3}}|iv|v)\s*\)|"
    rf"(?P<right>[a-h]|\d|i{{1,3}}|iv|v)\s*\))\s*:?\s*(?:\}}\s*:?)?{_SPACE}"
)
_ENDS = re.compile(rf"(?:{_SPACE}(?:[;,.]|\\text\s*\{{\s*(?:and|;|,)?\s*\}}|\band\b)?{_SPACE})\Z")
_OPEN = re.compile(r"[-+*/=<>^_(\[]\Z|\\(?:cdot|times|le|ge|leq|geq|in|pm)\s*\Z")
_SERIES = ("abcdefgh", "123456789", ("i", "ii", "iii", "iv", "v"))
_AND = re.compile(r"\\text\s*\{\s*,?\s*and\s*\}|(?<=[\s\d])and(?=\s)|,\s*and\s")
_THOUSANDS = re.compile(r"\s*\$?\d{1,3}(?:,\d{3})+\$?\s*")
_ALL_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_MOST_CHARS = 2000


def numbered(text: str) -> list[str]:
    """The parts of an answer with numbers 1, 2, ... or letters a, b, ... before them, in their order; else none."""
    if ")" not in text or len(text) > _MOST_CHARS:
        return []
    text = text.strip().removeprefix("$").removesuffix("$").strip()
    if whole := _ALL_TEXT.fullmatch(text):
        text = whole[1].strip()
    labels: list[re.Match] = []
    for match in _LABEL.finditer(text):
        if _depth(text[labels[-1].end() if labels else 0 : match.start()]) == 0:
            labels.append(match)
    names = [match["both"] or match["right"] for match in labels]
    if (
        len(names) < 2
        or labels[0].start()
        or not any(sorted(names) == list(series[: len(names)]) for series in _SERIES)
    ):
        return []
    ends = [match.start() for match in labels[1:]] + [len(text)]
    parts = [_trimmed(text[match.end() : end]) for match, end in zip(labels, ends, strict=True)]
    parts = [part for _, part in sorted(zip(names, parts, strict=True))]
    return parts if all(part and not _OPEN.search(part) for part in parts) else []


def in_parts(text: str, count: int) -> list[str]:
    """The members of a list without numbers, if there are so many; else empty."""
    if _THOUSANDS.fullmatch(text) or len(text) > _MOST_CHARS or re.match(r"\s*\$?\s*\\?[({\[]", text):
        return []
    for separators in (";", ",;"):
        members = [_trimmed(part) for part in split(_AND.sub(",", text), separators) if part.strip()]
        if len(members) == count and all(members):
            return members
    return []


def _trimmed(part: str) -> str:
    before = None
    while part != before:
        before, part = part, _ENDS.sub("", part.strip())
    return part.strip("$ ") if part.count("$") % 2 else part


def _depth(text: str) -> int:
    return sum((char in "([{") - (char in ")]}") for char in text)


def same_parts(gold: str, answer: str, same: Callable[[str, str], bool]) -> bool | None:
    """Whether the parts are the same, one by one; None where neither has numbers, or the other is no such list."""
    golds, answers = numbered(gold), numbered(answer)
    if not golds and not answers:
        return None
    golds, answers = golds or in_parts(gold, len(answers)), answers or in_parts(answer, len(golds))
    if not golds or not answers:
        return None
    return len(golds) == len(answers) and all(map(same, golds, answers))
