r"""Segments: two capital letters, with a bar over them, between bars for their length, or bare; and means, as \bar{x}.

A segment is one unknown by two letters, so that 2AB = 10 is to be solved as 2f(x) = 10 is, while AB + CD = 10, and AB^2
= 10, say what was asked for.
"""

import re

from siri.rewards.grading.structure import squeezed

_POINT = r"[A-Z](?:_\{?\w\}?|'{1,2})?"
_SEGMENT = rf"({_POINT}\s*{_POINT})"
_BARRED = re.compile(
    rf"\s*(?:m\s*)?\\(?:overline|bar)\s*\{{\s*{_SEGMENT}\s*\}}\s*|\s*{_SEGMENT}\s*|"
    rf"\s*(?:\||\\lvert(?![a-zA-Z]))\s*(?:\\(?:overline|bar)\s*\{{\s*{_SEGMENT}\s*\}}|{_SEGMENT})\s*(?:\||\\rvert)\s*"
)
# A letter with a bar: a mean. Of z and w it is the conjugate, which may be another number.
_MEAN = re.compile(r"\s*\\(?:bar|overline)\s*(?:\{\s*(?![zw])[a-zA-Z](?:_\{?\w\}?)?\s*\}|\s(?![zw])[a-zA-Z])\s*")
_IMAGINARY = re.compile(r"(?<![a-zA-Z\\])i(?![a-zA-Z])|[<>]|\\\{|\\emptyset")
# What a segment may stand under without being another number, and what words say of it.
_MARKS = re.compile(
    r"\\text\{[^{}]*\}|\\(?:overline|overrightarrow|bar|vec|widehat|hat|overset|stackrel|frown|arc|wideparen|lvert|"
    r"rvert|angle|left|right)(?![a-zA-Z])"
)
_CALLED = re.compile(r"[a-zA-Z]\([^()]*\)")
_TOKEN = re.compile(rf"(?<![A-Za-z])({_POINT})({_POINT})(?![A-Za-z_'])")
_PLAIN = re.compile(r"[()|{}]*(?:\^\{?\d\}?)?[()|{}]*")


def segment(side: str) -> str:
    r"""AB for \overline{AB}, |AB| and AB; "" for whatever is no segment."""
    match = _BARRED.fullmatch(side)
    return squeezed(next(filter(None, match.groups()))) if match else ""


def unbarred(sides: list[str]) -> list[str]:
    """The sides of an equation or a chain with bare names for segments, where their length is said: a bar over events
    or signals makes others of them, and a set or a truth value is no length."""
    if all(map(segment, sides)):
        return list(map(segment, sides))
    if "\\{" in sides[-1] or "\\emptyset" in sides[-1] or not re.search(r"[2-9]|1\d|\d\.|\\", sides[-1]):
        return sides
    return [*((segment(side) or side) for side in sides[:-1]), sides[-1]]


def is_mean(side: str, last: str) -> bool:
    r"""Whether it is the name \bar{x} of a real number."""
    return bool(_MEAN.fullmatch(side)) and not _IMAGINARY.search(re.sub(r"\\text\{[^{}]*\}", " ", last))


def is_of_segment(side: str) -> bool:
    """Whether it is a number made of a single segment, and neither its name nor a power of that: 2AB, AB + 2."""
    text = re.sub(r"\\[a-zA-Z]+", "#", _CALLED.sub("f", _MARKS.sub("", side)))
    text = re.sub(r"\s+", "", text)
    names = {tuple(sorted(match.groups())) for match in _TOKEN.finditer(text)}
    rest = _TOKEN.sub("", text)
    if len(names) != 1 or re.search("[a-zA-Z]", rest):
        return False
    return len(_TOKEN.findall(text)) > 1 or not _PLAIN.fullmatch(rest)
