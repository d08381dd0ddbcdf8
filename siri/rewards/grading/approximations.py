r"""Values given beside an approximation: of "\frac23 \approx 0.67" the first is the answer, the second a service.

The second has to be the first, rounded; what is not leaves both as they are, and no answer. Where the gold answer is a
decimal, the second is compared with it.
"""

import math
import re
from fractions import Fraction

from siri.rewards.grading.grammar import NotRead, Tree, read, symbols
from siri.rewards.grading.numbers import Setting, Undecided, Undefined, number
from siri.rewards.grading.structure import bracketed, split
from siri.rewards.grading.units import without_unit
from siri.rewards.grading.values import rational

_BOUNDARY = re.compile(
    r"[;]|,(?!\d{3}(?!\d))|,?\s*\\text\{[\s,]*(?:and|or)\s*\}|(?<![a-zA-Z])(?:and|or)(?![a-zA-Z])|\\l(?:or|"
    r"and)(?![a-zA-Z])"
)
_NAME = re.compile(
    r"(?:[a-df-zA-Z]|e(?=[_(])|\\(?!pi(?![a-zA-Z]))[a-z]+)(?:_(?:\w|\{\w+\}))?'*\s*(?:\([a-zA-Z\d, ]+\))?"
)
# No name, but a value: \ln(2), \log_2(3).
_FUNCTION = re.compile(r"\\(?:ln|lg|log|exp|(?:arc)?(?:sin|cos|tan|cot|sec|csc)|(?:sin|cos|tan)h)(?![a-zA-Z])")
# 1,41 as some countries have it: a list has a space, or is known by its other members.
_DECIMAL_COMMA = re.compile(r"(\\approx\s*-?\d+),(?=\d{1,2}(?:\s*$|\s*[;)]))")
_NUMBER = re.compile(
    r"(?:[-+\d\s.,(){}^*/!]|\\(?:times|cdot|%|[lc]?dots|sqrt|frac|pi|circ)(?![a-zA-Z])|\\text\{(?:degree)?\})+|\s*"
)
_ROUNDED = re.compile(
    r"^\s*(?:\\text\s*\{\s*)?(?:approximately|approx\.?|about|roughly)\s*(?:\}\s*)?(\\?\$?)(?=\d)",
    re.IGNORECASE,
)
_SAYS_A_VALUE = re.compile(r"\d|\\(?!text)[a-zA-Z]+|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z])")
_LETTERS = re.compile(r"(?<![a-zA-Z\\])[a-df-zA-Z](?![a-zA-Z])")
_FUNCTIONS = re.compile(r"\\text\{[^{}]*\}|\\[a-zA-Z]+")
_ALONE = re.compile(r"\\approx\s*[-+]?\d+(?:\.\d+)?(?:\s*\\(?:%|text\{degree\}))?(?=\s*[,;)\]](?!\d))")
_BEFORE = re.compile(r"(?:.*[,;(\[])?(.*)", re.DOTALL)
# A decimal, with its power of ten or as a percentage.
_ROUND = re.compile(r"[-+]?\d*\.?(\d*)\s*(?:\\(?:times|cdot)\s*10\s*\^\s*(?:\{\s*([-+]?\d{1,3})\s*\}|(\d)))?\s*(\\%)?")
# What is cut off instead of rounded is off by no more than this part.
_CUT = Fraction(2, 100)
_WHOLE_TURN = 7
_DEGREES = Fraction(180 / math.pi)
_BITS = 96


def with_sign(gold: str) -> str:
    """A gold answer that says that it is rounded, with the sign for that: the number is what is compared."""
    return _ROUNDED.sub(r"\1\\approx ", gold)


def without_approximations(text: str, *, decimals: bool = False) -> str:
    r"""`text` with the exact value alone for each answer in it (with the decimal, if `decimals`), and with an equals
    sign for a sign of approximation behind a name."""
    text = _DECIMAL_COMMA.sub(r"\1.", text)
    if text.lstrip().startswith(("(", "[")):
        text = _ALONE.sub(lambda match: _within(text, match, decimals=decimals), text)
    pieces, start = [], 0
    for boundary in _BOUNDARY.finditer(text):
        if _depth(text[start : boundary.start()]) == 0:
            pieces += [_chosen(text[start : boundary.start()], decimals=decimals), boundary[0]]
            start = boundary.end()
    pieces.append(_chosen(text[start:], decimals=decimals))
    return "".join(pieces)


def _within(text: str, match: re.Match, *, decimals: bool) -> str:
    """What stays of an approximation of a member of a tuple."""
    before = _BEFORE.fullmatch(text[: match.start()])
    if _is_first(text, match.start()) or decimals or not before or not _is_near(before[1], match[0][7:]):
        return match[0]
    return ""


def _chosen(piece: str, *, decimals: bool) -> str:
    """What an answer says before the first sign of approximation; behind a name what follows it."""
    if "\\approx" not in piece:
        return piece
    sides = [side.strip() for side in piece.split("\\approx") if side.strip()]
    named = len(sides) > 1 and bool(_NAME.fullmatch(sides[0])) and not _FUNCTION.match(sides[0])
    values = sides[named:]
    if not all(_NUMBER.fullmatch(without_unit(side)[0]) for side in values[1:]):
        return piece  # something else stands behind it
    if sides[1:] and not named and not _SAYS_A_VALUE.search(sides[0]):
        return piece  # a minus sign, or a word that denies it
    if len(sides) == 1 and _has_letters(sides[0]):
        return piece  # a formula that is only near
    if named and any(map(_has_letters, values)):
        return piece  # so is one behind a name
    values[0] = values[0].removesuffix("(").removesuffix("\\text{(").rstrip()
    if not all(_is_near(values[0], side, strictly=decimals) for side in values[1:]):
        return piece
    kept = values[-1 if decimals else 0]
    if named:
        return f"{sides[0]}={kept}"
    return piece[: len(piece) - len(piece.lstrip())] + kept


def _has_letters(side: str) -> bool:
    return bool(_LETTERS.search(_FUNCTIONS.sub(" ", without_unit(side)[0])))


def _is_near(exact: str, rounded: str, *, strictly: bool = False) -> bool:
    """Whether a value and what stands behind the sign of approximation can be the same. What the grammar does not read
    (an integral, a formula with letters) has nothing to be compared by. If `strictly`, nothing is rounded up that ought
    to be rounded down."""
    values = bracketed(exact.strip()), bracketed(rounded.strip())
    if all(values):
        (shape, parts), (other, others) = (value for value in values if value)
        return shape == other and all(map(_is_near, parts, others))
    if rounded.count(")") > rounded.count("("):
        rounded = rounded.rstrip(" )")
    (exact, unit), (rounded, other_unit) = (without_unit(split(text, "=")[-1]) for text in (exact, rounded))
    if unit and other_unit and unit != other_unit:
        return True  # 90 minutes and 1.5 hours are compared as amounts
    texts = [re.sub(r"(?<=\d),(?=\d{3}(?!\d))|\\[lc]?dots.*$|\.\.+$", "", text) for text in (exact, rounded)]
    numbers = [_digits(text) for text in texts]
    if None in numbers:
        return numbers[0] is None
    value, last = (each for each in numbers if each is not None)
    places = [_place(text) for text in texts if "." in text or text is texts[1]]
    if other_unit == ("degree",) and not unit and "degree" not in exact and abs(value) < _WHOLE_TURN < abs(last):
        value *= _DEGREES
    apart = abs(value - last)
    if 2 * apart <= max(places):
        return True
    if strictly:
        return apart < max(places) and abs(last) < abs(value) and apart <= _CUT * abs(value)
    whole = re.fullmatch(r"\s*-?\d+?(0+)\s*", texts[1])  # 600 may be hundreds
    place = Fraction(10) ** len(whole[1]) if whole else max(places)
    return apart <= _CUT * abs(value) and (apart < place or not place)


def _digits(text: str) -> Fraction | None:
    try:
        tree: Tree = read(text)
        if symbols(tree):
            return None
        if (value := rational(tree)) is not None:
            return value
        digits = complex(number(tree, Setting(), _BITS))
    except (NotRead, Undefined, Undecided, OverflowError):
        return None
    return None if digits.imag or abs(digits) == float("inf") else Fraction(digits.real)


def _place(text: str) -> Fraction:
    """What one in the last place of a number in digits is worth; 0 for whatever else."""
    match = _ROUND.fullmatch(text.strip())
    if match is None or not re.search(r"\d", text):
        return Fraction(0)
    places = len(match[1]) * ("." in text.partition("\\")[0]) + 2 * bool(match[4])
    return Fraction(10) ** (int(match[2] or match[3] or 0) - places)


def _depth(text: str) -> int:
    return sum((char in "([{") - (char in ")]}") for char in text)


def _is_first(text: str, place: int) -> bool:
    """Whether nothing stands before it in its brackets."""
    return text[:place].rstrip()[-1:] in ("", "(", "[", "{", ",", ";")
