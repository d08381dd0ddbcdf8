r"""Sets of real numbers: intervals, unions and intersections, inequalities in one variable, \mathbb{R}, points."""

import re
from dataclasses import dataclass
from fractions import Fraction

from siri.rewards.grading.grammar import NotRead, Tree, read, symbols
from siri.rewards.grading.numbers import Undefined
from siri.rewards.grading.structure import members
from siri.rewards.grading.values import order

MAX_PIECES = 32
_INFINITY = ("const", "inf")
_MINUS_INFINITY = ("neg", _INFINITY)
_ZERO: Tree = ("num", Fraction(0))
_REALS = re.compile(
    r"\\mathbb\s*\{?\s*R\s*\}?|\\R(?![a-zA-Z])|\\Re(?:als)?(?![a-zA-Z])|"
    r"(?:\\text\{)?\s*(?i:(?:the set of )?(?:all |any )?real(?:s| numbers?))\s*\}?"
)
# The positive ones, and their like. R with a + below has zero in some books and not in others.
_SOME_REALS = re.compile(
    r"(?:\\mathbb\s*\{?\s*R\s*\}?|\\R)\s*(?:\^\s*\{?\s*(?P<sign>[-+*])\s*\}?|"
    r"[_^]\s*\{\s*(?P<relation><|>|\\le |\\ge |\\ne )\s*0\s*\})|"
    r"(?:\\text\{)?\s*(?i:(?:the set of )?(?:all |any )?(?P<word>positive|negative|non-?(?:zero|positive|negative)) "
    r"real(?:s| numbers?))\s*\}?"
)
_BESIDE_ZERO = {"+": ">", "-": "<", "*": "\\ne ", "positive": ">", "negative": "<"}
_BESIDE_ZERO |= {"nonzero": "\\ne ", "nonpositive": "\\le ", "nonnegative": "\\ge "}
_ALL_BUT = re.compile(
    r"(?:\\text\{)?\s*(?:all |any )?(?:the )?reals?(?: numbers?)? "
    r"(?:except|but|other than|not equal to)(?: for)?\s*\}?\s*(?:[a-zA-Z]\s*=)?\s*(.+?)\}?",
    re.IGNORECASE,
)
_EMPTY = re.compile(
    r"\\(?:emptyset|varnothing)|\\text\{\s*\\(?:emptyset|varnothing)\s*\}|\\?\{\s*\\?\}|"
    r"(?:\\text\{)?\s*(?:there (?:is|are) )?(?:no (?:real )?solutions?(?: exists?)?|(?:the )?empty set)\s*\}?",
    re.IGNORECASE,
)
_RELATION = re.compile(r"\\le |\\ge |\\ne |<|>")
_FLIPPED = {"<": ">", ">": "<", "\\le ": "\\ge ", "\\ge ": "\\le ", "\\ne ": "\\ne "}
_BUILDER = re.compile(r"\\?\{\s*([a-zA-Z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?:\\mid|\\vert|\||:)(.*?)\\?\}")
_BOUND = re.compile(r"\|\s*([a-zA-Z])\s*\|\s*(<|>|\\le |\\ge )(.*)")
_BETWEEN = re.compile(r"([^<>|]*?)\s*(<|\\le )\s*(\|\s*[a-zA-Z]\s*\|)\s*(<|\\le )([^<>|]*)")
_MEMBER = re.compile(
    r"\s*([a-zA-Z](?:\([a-z]\))?|\\(?:theta|alpha|beta|phi|lambda|omega))\s*\\(not)?\s*\\?in(?![a-zA-Z])\s*(.*)"
)
_SET_SIGNS = re.compile(
    r"\\(?:notin|cup|cap|setminus|backslash|emptyset|varnothing|mathbb|R)(?![a-zA-Z])|\\le |\\ge |\\ne |[<>]|"
    r"\\\{\s*[a-zA-Z]\s*(?:\\mid|\||:)\s*[a-zA-Z]\s*\\in(?![a-zA-Z])|[Rr]eal|[Ee]mpty|[Nn]o sol|^\\?\{\s*\\?\}$"
)
_AND = re.compile(r"\s*(?:\\text\{\s*,?\s*and\s*\}|\band\b|\\(?:wedge|land)(?![a-zA-Z])|\\?&|\bAND\b)\s*")
_SAID_AND = re.compile(r"\\text\{\s*,?\s*and\s*\}|\b(?:and|AND)\b")
_LOGICAL = re.compile(r"\\(?:wedge|land|cap)(?![a-zA-Z])")
_OR = re.compile(r"\s*(?:\\text\{\s*,?\s*or\s*\}|\bor\b|\\(?:vee|lor)(?![a-zA-Z])|\bOR\b)\s*")


@dataclass(frozen=True, slots=True)
class Piece:
    """The numbers between two ends, each of which may belong to them."""

    low: Tree
    low_in: bool
    high: Tree
    high_in: bool


Pieces = list[Piece]
EVERYTHING = Piece(_MINUS_INFINITY, False, _INFINITY, False)


class NotASet(Exception):
    """The text is no set of real numbers in any spelling known here."""


def may_be_a_set(text: str) -> bool:
    """Whether `text` has a sign that only sets of numbers and inequalities have: (1, 2) alone is a pair as well."""
    return bool(_SET_SIGNS.search(text))


def read_set(text: str) -> tuple[Pieces, str]:
    """The set, and the name of the variable that its inequalities speak of ("" for none).

    Raises NotASet, or what an undecided comparison of two ends raises.
    """
    names: set[str] = set()
    pieces = _either(text.strip(), names, 0)
    if len(names) > 1:
        raise NotASet
    return _joined(pieces), next(iter(names), "")


def is_and_for_or(text: str) -> bool:
    """Whether inequalities that nothing meets are joined by "and": where a gold answer says so, "or" is meant."""
    if not _RELATION.search(text) or not _SAID_AND.search(text):
        return False
    try:
        return same_pieces(read_set(text)[0], read_set(_SAID_AND.sub(" or ", text))[0])
    except NotASet:
        return False


def same_pieces(a: Pieces, b: Pieces) -> bool:
    """Whether two sets hold the same numbers."""
    return len(a) == len(b) and all(
        (x.low_in, x.high_in) == (y.low_in, y.high_in) and order(x.low, y.low) == order(x.high, y.high) == 0
        for x, y in zip(a, b, strict=True)
    )


# ------------------------------------------------------------------------------------------------ reading


def _either(text: str, names: set[str], depth: int) -> Pieces:
    if depth > 16:
        raise NotASet
    if _is_built(text.strip()) or _ALL_BUT.fullmatch(text.strip()):
        return _single_set(text, names, depth)
    alternatives = [alternative for alternative in _OR.split(text) if alternative.strip()]
    if len(alternatives) == 1 and _RELATION.search(text):  # "x < 1 \cup x > 3"
        united = _split(text, r"\\cup(?![a-zA-Z])")
        alternatives = united if len(united) > 1 and all(map(_RELATION.search, united)) else alternatives
    if len(alternatives) > 1:
        return [piece for alternative in alternatives for piece in _all_of(alternative, names, depth + 1)]
    return _all_of(text, names, depth)


def _all_of(text: str, names: set[str], depth: int) -> Pieces:
    """Conditions joined by "and", or by commas, which mean "or" where nothing would meet them both."""
    if match := _MEMBER.fullmatch(text):
        names.add(match[1])
        pieces = _joined(_either(match[3], names, depth + 1))
        return complement(pieces) if match[2] else pieces
    if listed := _listed(text):
        intervals = [_union(member, names, depth) for member in listed]
        if any(_common(a, b) for place, a in enumerate(intervals) for b in intervals[:place]):
            raise NotASet  # all of them or what they share: nobody knows
        return [piece for pieces in intervals for piece in pieces]
    conditions = [condition for condition in _AND.split(text) if condition.strip(" ,")]
    commas = len(conditions) == 1 and _RELATION.search(text) and not _is_built(text.strip())
    if commas:
        conditions = [condition for condition in _top_level(text, ",;") if condition.strip()]
    sets = [_joined(_condition(condition.strip(" ,"), names, depth)) for condition in _carried(conditions)]
    if not sets:
        raise NotASet
    solution = sets[0]
    for other in sets[1:]:
        solution = _common(solution, other)
    if len(sets) > 1 and not solution and not _LOGICAL.search(text):
        if any(_common(a, b) for place, a in enumerate(sets) for b in sets[:place]):
            raise NotASet  # of three some meet, and not all
        return [piece for pieces in sets for piece in pieces]
    return solution


def _is_built(text: str) -> bool:
    """Whether it is one set by a condition, and no union of some."""
    match = _BUILDER.fullmatch(text)
    return match is not None and "\\}" not in match[2]


def _listed(text: str) -> list[str]:
    """The members of a list of intervals, by a comma or "and"; none where they may be points instead."""
    members = [member.strip() for part in _AND.split(text) for member in _top_level(part, ",;") if member.strip()]
    if len(members) < 2 or not all(re.fullmatch(r"[(\[][^()\[\]]*[,;][^()\[\]]*[)\]]", member) for member in members):
        return []
    return members if any("[" in member or "]" in member or "\\infty" in member for member in members) else []


def _carried(conditions: list[str]) -> list[str]:
    r"""`x \ne 1, 2` says that x is neither."""
    carried: list[str] = []
    for condition in conditions:
        if carried and not _RELATION.search(condition) and (match := re.match(r"(.*\\ne )", carried[-1])):
            condition = match[1] + condition
        carried.append(condition)
    return carried


def _condition(text: str, names: set[str], depth: int) -> Pieces:
    if (point := re.fullmatch(r"\s*([a-zA-Z])\s*=([^=]+)", text)) and not _RELATION.search(text):
        names.add(point[1])
        return [Piece(end, True, end, True) for end in [_end(point[2])]]
    if between := _BETWEEN.fullmatch(text):
        low, first, middle, second, high = between.groups()
        beyond = _condition(f"{middle}{_FLIPPED[first]}{low}", names, depth)
        return _common(_joined(beyond), _joined(_condition(f"{middle}{second}{high}", names, depth)))
    if bound := _BOUND.fullmatch(text):
        return _bounded(bound[1], bound[2], _end(bound[3]), names)
    if len(_split(text, _RELATION.pattern)) > 1:
        return _chain(text, names)
    return _union(text, names, depth)


def _union(text: str, names: set[str], depth: int) -> Pieces:
    union: Pieces = []
    for member in _split(text, r"\\cup(?![a-zA-Z])"):
        met: Pieces | None = None
        for factor in _split(member, r"\\cap(?![a-zA-Z])"):
            pieces = _difference(factor, names, depth)
            met = pieces if met is None else _common(met, pieces)
        union += met or []
    return union


def _difference(text: str, names: set[str], depth: int) -> Pieces:
    whole, *taken = _split(text, r"\\(?:setminus|backslash)(?![a-zA-Z])|(?<=[\])}R])\s*-\s*(?=\\\{)")
    remaining = _joined(_single_set(whole.strip(), names, depth))
    for excluded in taken:
        remaining = _common(remaining, complement(_joined(_single_set(excluded.strip(), names, depth))))
    return remaining


def _single_set(text: str, names: set[str], depth: int) -> Pieces:
    text = text.strip()
    if _EMPTY.fullmatch(text):
        return []
    if _REALS.fullmatch(text):
        return [EVERYTHING]
    if match := _SOME_REALS.fullmatch(text):
        sign = match["relation"] or _BESIDE_ZERO[match["sign"] or match["word"].replace("-", "").lower()]
        return _half_line(sign, _ZERO)
    if match := _ALL_BUT.fullmatch(text):
        points = members(re.sub(r"(?<![a-zA-Z])[a-z]\s*=", "", _AND.sub(",", match[1])))
        return complement(_joined([Piece(tree, True, tree, True) for tree in map(_end, points)]))
    if (match := _BUILDER.fullmatch(text)) and _is_built(text):
        inner: set[str] = set()
        pieces = _either(match[2], inner, depth + 1)
        if inner - {match[1]}:
            raise NotASet  # of another letter than the set's
        return pieces
    if (inside := re.fullmatch(r"\\?\{([^{}]*)\\?\}", text)) and _RELATION.search(inside[1]):
        return _either(inside[1].removesuffix("\\"), names, depth + 1)
    if points := re.fullmatch(r"\\\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\\\}|\{([^{}]*)\}", text):
        inside = points[1] if points[1] is not None else points[2]
        return [Piece(tree, True, tree, True) for tree in map(_end, _top_level(inside, ",;"))]
    if len(text) > 2 and text[0] in "([" and text[-1] in ")]":
        ends = _top_level(text[1:-1], ",;")
        if len(ends) == 2:
            inside = _between(_end(ends[0]), text[0] == "[", _end(ends[1]), text[-1] == "]")
            if not inside:
                raise NotASet  # (1, 1) and (3, 2) are points
            return inside
        if len(ends) == 1 and text[0] == "(" and _enclosed(text):
            return _either(text[1:-1], names, depth + 1)
    raise NotASet


def _between(low: Tree, low_in: bool, high: Tree, high_in: bool) -> Pieces:
    try:
        side = order(low, high)
    except Undefined as error:
        raise NotASet from error
    low_in, high_in = low_in and low != _MINUS_INFINITY, high_in and high != _INFINITY
    if side > 0 or (side == 0 and not (low_in and high_in)):
        return []
    return [Piece(low, low_in, high, high_in)]


def _chain(text: str, names: set[str]) -> Pieces:
    r"""`a < x \le b`, `x > 3`, `x \ne 2`, with the bare variable on one side of each sign."""
    sides = [side.strip() for side in _RELATION.split(text)]
    signs = _RELATION.findall(text)
    solution = [EVERYTHING]
    for left, sign, right in zip(sides, signs, sides[1:], strict=False):
        if (name := _variable(left)) and not _variable(right):
            end = _end(right)
        elif (name := _variable(right)) and not _variable(left):
            end, sign = _end(left), _FLIPPED[sign]
        else:
            raise NotASet
        names.add(name)
        solution = _common(solution, _half_line(sign, end))
    return solution


def _bounded(name: str, sign: str, end: Tree, names: set[str]) -> Pieces:
    """`|x| < 2` is -2 < x < 2, `|x| > 2` all beyond that."""
    try:
        side = order(end, _ZERO)
        if side < 0 or (side == 0 and sign != ">"):
            raise NotASet
    except Undefined as error:
        raise NotASet from error
    names.add(name)
    inside = _between(("neg", end), sign in ("\\le ", ">"), end, sign in ("\\le ", ">"))
    return inside if sign in ("<", "\\le ") else complement(inside)


def _variable(text: str) -> str:
    """The name of what an inequality speaks of: a letter, or a function of one as in g(x)."""
    match = re.fullmatch(r"\\[a-z]+|[a-zA-Z](?:_\{?\w+\}?)?(?:\([a-z]\))?", text)
    return "" if match is None or text in ("e", "\\infty", "\\pi") else text


def _half_line(sign: str, end: Tree) -> Pieces:
    if sign == "\\ne ":
        return complement([Piece(end, True, end, True)])
    if sign in ("<", "\\le "):
        return _between(_MINUS_INFINITY, False, end, sign != "<")
    return _between(end, sign != ">", _INFINITY, False)


def _end(text: str) -> Tree:
    try:
        tree = read(text)
    except NotRead as error:
        raise NotASet from error
    if symbols(tree) or (tree not in (_INFINITY, _MINUS_INFINITY) and _infinite(tree)):
        raise NotASet
    return tree


def _infinite(tree: Tree) -> bool:
    return tree == _INFINITY or any(_infinite(part) for part in tree if isinstance(part, tuple) and part)


# ------------------------------------------------------------------------------------------------ algebra


def _joined(pieces: Pieces) -> Pieces:
    """The same numbers in order, as few pieces as there can be."""
    if len(pieces) > MAX_PIECES:
        raise NotASet
    merged: Pieces = []
    for piece in _in_order(pieces):
        last = merged[-1] if merged else None
        if last is not None:
            touch = order(piece.low, last.high)
            if touch < 0 or (touch == 0 and (piece.low_in or last.high_in)):
                side = order(piece.high, last.high)
                high, high_in = (piece.high, piece.high_in) if side > 0 else (last.high, last.high_in)
                high_in |= side == 0 and piece.high_in
                merged[-1] = Piece(last.low, last.low_in, high, high_in)
                continue
        merged.append(piece)
    return merged


def _in_order(pieces: Pieces) -> Pieces:
    ordered: Pieces = []
    for piece in pieces:
        place = len(ordered)
        while place and _before(piece, ordered[place - 1]):
            place -= 1
        ordered.insert(place, piece)
    return ordered


def _before(a: Piece, b: Piece) -> bool:
    side = order(a.low, b.low)
    return side < 0 or (side == 0 and a.low_in and not b.low_in)


def _common(a: Pieces, b: Pieces) -> Pieces:
    shared: Pieces = []
    for x in a:
        for y in b:
            low, high = order(x.low, y.low), order(x.high, y.high)
            later, earlier = (x if low > 0 else y), (x if high < 0 else y)
            low_in = later.low_in and (low != 0 or x.low_in)
            high_in = earlier.high_in and (high != 0 or x.high_in)
            shared += _between(later.low, low_in, earlier.high, high_in)
    return shared


def complement(pieces: Pieces) -> Pieces:
    """All other real numbers."""
    outside: Pieces = []
    low, low_in = _MINUS_INFINITY, False
    for piece in pieces:
        outside += _between(low, low_in, piece.low, not piece.low_in)
        low, low_in = piece.high, not piece.high_in
    return outside + (_between(low, low_in, _INFINITY, False) if low != _INFINITY else [])


# ------------------------------------------------------------------------------------------------ text


def _split(text: str, pattern: str) -> list[str]:
    """`text` at what matches outside of all brackets. An open end of an interval closes like a closed one."""
    parts, start = [], 0
    for match in re.finditer(pattern, text):
        if _depth(text[: match.start()]) == 0:
            parts.append(text[start : match.start()])
            start = match.end()
    return [*parts, text[start:]]


def _top_level(text: str, separators: str) -> list[str]:
    return _split(text, f"[{separators}]")


def _depth(text: str) -> int:
    return sum((char in "([{") - (char in ")]}") for char in text)


def _enclosed(text: str) -> bool:
    return text[:1] in ("(", "[") and text[-1:] in (")", "]") and all(_depth(text[:n]) > 0 for n in range(1, len(text)))
