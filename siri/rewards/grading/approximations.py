r"""Values given beside an approximation: of "\frac23 \approx 0.67" the first is the answer, the second a service."""

import re

from siri.rewards.grading.units import without_unit

_BOUNDARY = re.compile(
    r"[;]|,(?!\d{3}(?!\d))|,?\s*\\text\{[\s,]*(?:and|or)\s*\}|(?<![a-zA-Z])(?:and|or)(?![a-zA-Z])|\\l(?:or|and)(?![a-zA-Z])"
)
_NAME = re.compile(
    r"(?:[a-df-zA-Z]|e(?=[_(])|\\(?!pi(?![a-zA-Z]))[a-z]+)(?:_(?:\w|\{\w+\}))?'*\s*(?:\([a-zA-Z\d, ]+\))?"
)
# 1,41 as some countries have it: a list has a space, or is known by its other members.
_DECIMAL_COMMA = re.compile(r"(\\approx\s*-?\d+),(?=\d{1,2}(?:\s*$|\s*[;)]))")
_NUMBER = re.compile(
    r"(?:[-+\d\s.,(){}^*/!]|\\(?:times|cdot|%|[lc]?dots|sqrt|frac|pi|circ)(?![a-zA-Z])|\\text\{(?:degree)?\})+|\s*"
)
_ALONE = re.compile(r"\\approx\s*[-+]?\d+(?:\.\d+)?(?:\s*\\(?:%|text\{degree\}))?(?=\s*[,;)\]](?!\d))")


def without_approximations(text: str) -> str:
    r"""`text` with the exact value alone for each answer in it, and with an equals sign for a sign of approximation
    behind a name."""
    text = _DECIMAL_COMMA.sub(r"\1.", text)
    if text.lstrip().startswith(("(", "[")):
        text = _ALONE.sub(lambda match: match[0] if _is_first(text, match.start()) else "", text)
    pieces, start = [], 0
    for boundary in _BOUNDARY.finditer(text):
        if _depth(text[start : boundary.start()]) == 0:
            pieces += [_exact(text[start : boundary.start()]), boundary[0]]
            start = boundary.end()
    pieces.append(_exact(text[start:]))
    return "".join(pieces)


def _exact(piece: str) -> str:
    """What an answer says before the first sign of approximation; behind a name what follows it."""
    if "\\approx" not in piece:
        return piece
    sides = [side.strip() for side in piece.split("\\approx") if side.strip()]
    named = len(sides) > 1 and bool(_NAME.fullmatch(sides[0]))
    if not all(_NUMBER.fullmatch(without_unit(side)[0]) for side in sides[1 + named :]):
        return piece  # something else stands behind it
    if named:
        return f"{sides[0]}={sides[1]}"
    before, exact = piece[: len(piece) - len(piece.lstrip())], "".join(sides[:1])
    return before + exact.removesuffix("(").removesuffix("\\text{(").rstrip()


def _depth(text: str) -> int:
    return sum((char in "([{") - (char in ")]}") for char in text)


def _is_first(text: str, place: int) -> bool:
    """Whether nothing stands before it in its brackets."""
    return text[:place].rstrip()[-1:] in ("", "(", "[", "{", ",", ";")
