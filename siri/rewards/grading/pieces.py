r"""Functions given in pieces: where an absolute value, a root, a logarithm, a maximum or a rounding changes what it is.

A few points drawn at random see neither that |x + 5| is x + 5 only above -5, nor that \lfloor n/2\rfloor + 1 is
\lceil n/2\rceil everywhere but at even numbers. What decides is the sign of a few expressions, and whether some are
whole: here are points for each pattern of these that is met, and whole numbers for what is about whole numbers.
"""

import contextlib
import hashlib
import itertools
import math
from collections.abc import Iterator
from fractions import Fraction

from siri.rewards.grading.grammar import WHOLE_NAMES, Tree, parts, symbols
from siri.rewards.grading.numbers import NotRational, Point, Setting, Undecided, Undefined, exact, number

# More patterns than this are not looked for: no answer has as many pieces.
MAX_PATTERNS = 32
_MAX_CONSTANTS = 8
_FURTHEST_HALF = 120
_DRAWN_POINTS = 200
_IRRATIONAL_POINTS = 24
_ROUGH_BITS = 64
_RATIONAL = ("num", "sym", "+", "*", "/", "neg", "^", "call")
# What stands under a root, multiplied out, has no sign that changes.
_FAR = ((20, (1,)), (20, (-1,)), (300, (1, -1)), (300, (-1, 1)))
_ROUNDINGS = ("floor", "ceil")
_MINUS_ONE = ("neg", ("num", Fraction(1)))
_MOST_WHOLE = 400
_WHOLE_POINTS = 240
WHOLE_AND_FAR = 60


def _switches(tree: Tree) -> Iterator[tuple[str, Tree]]:
    """The expressions with variables whose signs ("sign") or whole parts ("whole") say which piece it is."""
    kind = tree[0]
    if kind == "call" and tree[1] in _ROUNDINGS:
        yield "whole", tree[2][0]
    elif kind == "call" and tree[1] == "abs":
        yield "sign", tree[2][0]
    elif kind == "call" and tree[1] in ("max", "min"):
        for first, second in itertools.combinations(tree[2], 2):
            yield "sign", ("+", (first, ("neg", second)))
    elif kind == "call" and tree[1] in ("arcsin", "arccos"):
        yield "sign", ("+", (("num", Fraction(1)), ("neg", ("call", "abs", (tree[2][0],)))))
    elif kind in ("root", "log"):
        yield "sign", tree[2]
        if tree[2][0] == "^":  # the root of a square is an absolute value
            yield "sign", tree[2][1]
    elif kind == "^" and not (tree[2][0] == "num" and tree[2][1].denominator == 1):
        yield "sign", tree[1]
    for part in parts(tree):
        yield from _switches(part)


def further_points(a: Tree, b: Tree) -> Iterator[Point]:
    """A point for each pattern of signs that the expressions take which say of `a` and `b` what they are."""
    both = [[switch for switch in _switches(tree) if symbols(switch[1])] for tree in (a, b)]
    switches = list(dict.fromkeys(itertools.chain(*both)))
    if all(kind == "sign" and tree[0] == "sym" for kind, tree in switches):
        return  # the signs of the variables themselves are what the points that are always tried differ in
    names = sorted(symbols(a) | symbols(b))
    for index, (size, signs) in enumerate(_FAR if set(both[0]) != set(both[1]) else ()):
        yield {
            name: sign * size + _drawn(name, 4 * index, []) / 2048
            for name, sign in zip(names, itertools.cycle(signs), strict=False)
        }
    patterns = set()
    rational = not any(_is_irrational(tree) for _, tree in switches)
    for point in itertools.islice(_candidates(names, _constants(a, b)), None if rational else _IRRATIONAL_POINTS):
        pattern = tuple(_pattern(kind, tree, point) for kind, tree in switches)
        if 0 in pattern or pattern in patterns:
            continue
        patterns.add(pattern)
        yield point
        if len(patterns) == MAX_PATTERNS:
            return


def _is_irrational(tree: Tree) -> bool:
    """Whether its sign takes digits to know."""
    return tree[0] not in _RATIONAL or (tree[0] == "call" and tree[1] != "abs") or any(map(_is_irrational, parts(tree)))


def _pattern(kind: str, tree: Tree, point: Point) -> object:
    try:
        value = exact(tree, point)
    except Undefined:
        return None
    except NotRational:
        try:
            digits = number(tree, Setting(point, is_complex=False), _ROUGH_BITS).real
        except (Undefined, Undecided):
            return None
        return (digits > 0) - (digits < 0) if kind == "sign" else (int(math.copysign(1, digits)), False)
    if kind == "sign":
        return (value > 0) - (value < 0)
    return max(-2, min(math.floor(value), 2)), value.denominator == 1


def _constants(*trees: Tree) -> list[Fraction]:
    """The numbers in the trees, each once."""
    numbers: dict[Fraction, None] = {}
    waiting = list(trees)
    while waiting:
        tree = waiting.pop()
        if tree[0] in ("num", "^") and not symbols(tree):  # 10^9 as well
            with contextlib.suppress(NotRational, Undefined):
                numbers[abs(exact(tree, {}))] = None
        waiting += parts(tree)
    return [value for value in numbers if value][:_MAX_CONSTANTS]


def _candidates(names: list[str], constants: list[Fraction]) -> Iterator[Point]:
    """Near zero first."""
    near = set(constants) | {a / b for a, b in itertools.permutations(constants, 2)}
    near |= {value * factor for value in constants for factor in (2, 3)}
    if len(names) == 1:
        places = {Fraction(half, 2) for half in range(_FURTHEST_HALF + 1)} | {Fraction(1 << j) for j in range(6, 21)}
        places |= near | {value + step for value in near for step in (-1, 1, Fraction(1, 1 << 10))}
        ordered = sorted(places)
        ordered += [(low + high) / 2 for low, high in itertools.pairwise(ordered)]
        for place in sorted(ordered, key=abs):
            yield {names[0]: place}
            yield {names[0]: -place}
        return
    known = sorted({*near, Fraction(1), Fraction(2)})
    for index in range(_DRAWN_POINTS):
        yield {name: _drawn(name, index, known) for name in names}


def _drawn(name: str, index: int, known: list[Fraction]) -> Fraction:
    """A number of either sign and any size between 1/16 and 2048, or for every fourth point about a known one."""
    bits = int.from_bytes(hashlib.sha256(f"{index} {name}".encode()).digest()[:8])
    sign = 1 if bits & 1 else -1
    if index % 4 == 3:
        return sign * known[(bits >> 8) % len(known)] * Fraction(2 + (bits >> 40) % 3, 3 if bits & 2 else 2)
    return sign * Fraction(1 << ((bits >> 1) % 15), 16) * (1 + Fraction((bits >> 16) % 1024, 1024))


def whole_points(a: Tree, b: Tree) -> list[Point] | None:
    r"""Points at which all n, m and k are whole, where `a` or `b` is about whole numbers only: it rounds them, takes
    their common divisor, or has them in the exponent of -1. None where neither is. The positive ones come first."""
    names = set().union(*(_whole_names(tree) for tree in (a, b)))
    if not names or not names <= WHOLE_NAMES or len(names) > 2:
        return None
    largest = max((math.ceil(max(value, 1 / value)) for value in _constants(a, b)), default=1)
    most = 2 * largest + 10
    if most > _MOST_WHOLE:
        return None
    others = sorted((symbols(a) | symbols(b)) - names)
    if len(names) == 1:
        values = [(value,) for value in (*range(1, most + 1), 1009, 1010, 65_536, *range(0, -21, -1))]
    else:
        values = list(itertools.islice(itertools.product(range(1, 16), repeat=2), _WHOLE_POINTS))
        values += [(97, 60), (60, 97), (64, 96), (-3, 5), (4, -6), (-4, -7)]
    return [
        {
            **{name: Fraction(value) for name, value in zip(sorted(names), each, strict=True)},
            **{name: _drawn(name, 4 * place, [Fraction(1)]) for name in others},
        }
        for place, each in enumerate(values)
    ]


def _whole_names(tree: Tree) -> set[str]:
    if tree[0] == "call" and tree[1] in (*_ROUNDINGS, "gcd", "lcm"):
        return set().union(*map(symbols, tree[2]))
    if tree[0] == "^" and tree[1] == _MINUS_ONE:
        return symbols(tree[2])
    return set().union(*map(_whole_names, parts(tree)), set())
