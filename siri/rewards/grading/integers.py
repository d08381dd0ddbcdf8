r"""Sets of whole numbers: \{x \in \mathbb{Z} \mid -2 < x < 2\} is \{-1, 0, 1\}."""

import math
import re
from fractions import Fraction

from siri.rewards.grading import sets
from siri.rewards.grading.grammar import Tree
from siri.rewards.grading.numbers import Undecided, Undefined
from siri.rewards.grading.structure import key, members
from siri.rewards.grading.values import rational

Range = tuple[float | Fraction, float | Fraction]
"""The first and the last whole number of some that follow one another; an infinity where there is no such end."""

_WHOLE = r"\\mathbb\s*\{?\s*(?:(?P<z>Z)|(?P<n>N))\s*\}?\s*(?P<part>(?:[_^]\s*\{?\s*(?:[+*]|>\s*0)\s*\}?)?)"
_BUILDER = re.compile(
    r"\\\{\s*(?P<letter>[a-zA-Z])\s*(?P<in>\\in[^|:]*?)?(?:\\mid(?![a-zA-Z])|\||:)(?P<conditions>.*)\\\}"
)
_MEMBER = re.compile(rf"\s*(?:[a-zA-Z]\s*)?\\in\s*{_WHOLE}\s*")
# n stands for whole numbers, where the other side says so.
_BARE = re.compile(r"^\s*(n\s*(?:\\[lg]e |[<>])\s*-?\d+)\s*$")
_CUT = re.compile(rf"(?P<set>.+?)\s*\\cap\s*{_WHOLE}")
_SET = re.compile(r"[(\[<>]|\\\{|\\[lgn]e |\\mathbb")
_INTEGER = re.compile(r"\s*-?\d{1,9}\s*")
_MOST = 2000
_MAY_BE_WHOLE = re.compile(r"\\mathbb|integers")
_NAMED = {
    "numbers positive Z": r"\{n\in\mathbb{Z}\mid n\ge 1\}",
    "numbers nonnegative Z": r"\{n\in\mathbb{Z}\mid n\ge 0\}",
}


def same_whole_sets(gold: str, answer: str) -> bool | None:
    """Whether two sets of whole numbers are the same, one of them given by a condition; None for whatever else."""
    if not _MAY_BE_WHOLE.search(gold + answer):
        return None
    gold, answer = (
        _NAMED.get(key(text), text) if "ntegers" in text or "\\mathbb" in text else text for text in (gold, answer)
    )
    gold, answer = (_BARE.sub(r"\\{n\\in\\mathbb{Z}\\mid \1\\}", text) for text in (gold, answer))
    conditions = _by_condition(gold), _by_condition(answer)
    if conditions == (None, None) or ("\\mathbb" not in gold + answer and None in conditions):
        return None
    golds, answers = (
        _listed(text) if ranges is None else ranges for text, ranges in zip((gold, answer), conditions, strict=True)
    )
    return None if golds is None or answers is None else golds == answers


def _by_condition(text: str) -> list[Range] | None:
    if cut := _CUT.fullmatch(text.strip()):
        if not _SET.search(cut["set"]):
            return None  # a number is no set
        return _whole(cut["set"], "", cut)
    match = _BUILDER.fullmatch(text.strip())
    if match is None:
        return None
    parts = [
        part
        for part in re.split(r",|\\text\{\s*and\s*\}|\\(?:wedge|land)(?![a-zA-Z])", match["conditions"])
        if part.strip()
    ]
    which = [_MEMBER.fullmatch(part) for part in ((match["in"] or "").strip(), *parts)]
    members_ = [member for member in which if member]
    rest = [part for part in parts if not _MEMBER.fullmatch(part)]
    if len(members_) != 1 or not rest or (match["in"] and not which[0]):
        return None
    return _whole(",".join(rest), match["letter"], members_[0])


def _whole(condition: str, letter: str, which: re.Match) -> list[Range] | None:
    """The whole numbers that meet a condition. Whether 0 is a natural number nobody knows."""
    try:
        pieces, name = sets.read_set(condition)
    except (sets.NotASet, Undefined, Undecided):
        return _listed(condition) if not letter else None
    if name not in ("", letter):
        return None
    ranges = [_between(piece) for piece in pieces]
    if None in ranges:
        return None
    positive = bool(which["part"]) and not ("*" in which["part"] and which["z"])
    if which["part"] and not positive:
        return None
    joined = _joined([each for each in ranges if each is not None], 1 if positive else -math.inf)
    if which["n"] and not positive and any(low <= 0 for low, _ in joined):
        return None
    return joined


def _between(piece: sets.Piece) -> Range | None:
    low, high = _end(piece.low), _end(piece.high)
    if low is None or high is None:
        return None
    first = low if math.isinf(low) else math.ceil(low) if piece.low_in else math.floor(low) + 1
    last = high if math.isinf(high) else math.floor(high) if piece.high_in else math.ceil(high) - 1
    return first, last


def _end(tree: Tree) -> Fraction | float | None:
    if tree in (("const", "inf"), ("neg", ("const", "inf"))):
        return math.inf if tree[0] == "const" else -math.inf
    return rational(tree)


def _listed(text: str) -> list[Range] | None:
    """Of a list of whole numbers."""
    numbers = [number.strip() for number in members(text)]
    if len(numbers) > 2 and numbers[-1] in ("\\ldots", "...") and all(map(_INTEGER.fullmatch, numbers[:2])):
        first, second = map(int, numbers[:2])
        return [(first, math.inf)] if second == first + 1 and len(numbers) == 3 else None
    if not 0 < len(numbers) <= _MOST or not all(map(_INTEGER.fullmatch, numbers)):
        return None
    values = [int(number) for number in numbers]
    return _joined([(value, value) for value in values]) if len(set(values)) == len(values) else None


def _joined(ranges: list[Range], least: float = -math.inf) -> list[Range]:
    """In order, as few as there can be, without empty ones."""
    joined: list[Range] = []
    for low, high in sorted((max(low, least), high) for low, high in ranges):
        if low > high:
            continue
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], high))
        else:
            joined.append((low, high))
    return joined
