"""Whether two values are the same: exactly where both are rational, else with as many digits as that takes.

Rational values are compared as fractions, whatever their magnitude. Others are computed to a number of bits that grows
with the magnitudes of everything that occurs in them, so that what could hide behind rounding cannot: they are the
same if they agree to half of those bits, which no two different values of so few signs are known to do. Functions of
variables are compared at points drawn once and for all. What would take more than MAX_BITS is undecided.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from fractions import Fraction

from siri.data.decimals import DOUBLE
from siri.rewards.grading.grammar import Tree, has, symbols
from siri.rewards.grading.numbers import (
    MAX_EXACT_BITS,
    NotRational,
    Point,
    Setting,
    Undecided,
    Undefined,
    context,
    exact,
    number,
)
from siri.rewards.grading.pieces import WHOLE_AND_FAR, further_points, whole_points
from siri.rewards.grading.residues import same_residues

MAX_BITS = 40_000
MAX_SYMBOLS = 12
# Decimals of at least so many places, and digits, may stand for a value whose expansion does not end.
ROUNDED_PLACES = 6
_FIRST_BITS = 128
_WORTH_AGREEING = 64
_SCALES = (
    (Fraction(1, 2), (1,)),
    (Fraction(7), (1,)),
    (Fraction(1), (-1,)),
    (Fraction(3), (1, -1)),
    (Fraction(1, 3), (-1, 1)),
)
_I = ("const", "i")
_INFINITY = ("const", "inf")


def same_value(a: Tree, b: Tree) -> bool:
    """Whether two trees have one value, for whatever their variables stand for. Raises Undecided."""
    if a == b:
        return True
    names = symbols(a) | symbols(b)
    if len(names) > MAX_SYMBOLS:
        raise Undecided
    is_complex = not names or has(a, _I) or has(b, _I)
    try:
        if not names:
            return _same_at(Setting({}, is_complex), a, b) is True
        if (points := whole_points(a, b)) is not None:
            return _same_at_whole_numbers(a, b, points, is_complex=is_complex)
        return _same_everywhere(a, b, names, is_complex=is_complex)
    except Undecided:
        if same_residues(a, b):
            return True
        raise


def _same_everywhere(a: Tree, b: Tree, names: set[str], *, is_complex: bool) -> bool:
    """Whether both are the same wherever they are defined, among real numbers or, failing all points, complex ones."""
    defined = False
    for point in drawn_points(names):
        verdict = _same_at(Setting(point, is_complex), a, b)
        if verdict is False:
            return False
        defined |= verdict is not None
    for point in further_points(a, b):
        setting = Setting(point, is_complex)
        if not _roughly_same(setting, a, b) and _same_at(setting, a, b) is False:
            return False
    return defined or (not is_complex and _same_everywhere(a, b, names, is_complex=True))


def _same_at_whole_numbers(a: Tree, b: Tree, points: list[Point], *, is_complex: bool) -> bool:
    """Whether both are the same at all these points, but for those that are not positive and where one is undefined."""
    defined = False
    for point in points:
        setting = Setting(point, is_complex)
        try:
            verdict = _same_at(setting, a, b)
        except Undecided:
            if max(point.values()) < WHOLE_AND_FAR:
                raise
            continue  # a factorial, or a power, of a large number
        if verdict is False and (min(point.values()) > 0 or all(_same_at(setting, tree, tree) for tree in (a, b))):
            return False
        defined |= verdict is True
    return defined


def same_zeros(a: Tree, b: Tree, *, signed: bool = False) -> bool:
    """Whether `a` is a constant multiple of `b` (a positive one, if `signed`): a = 0 and b = 0 are one equation."""
    names = symbols(a)
    if not names or names != symbols(b):
        return False
    if len(names) > MAX_SYMBOLS:
        raise Undecided
    points = list(drawn_points(names))
    first = points[0]
    try:
        left, right = rational(a, first), rational(b, first)
        if left is None or right is None:
            left, right = (_fraction(number(tree, Setting(first), 2 * _FIRST_BITS)) for tree in (a, b))
    except (Undefined, Undecided):
        return False
    if 0 in (left, right) or (signed and left * right < 0):
        return False
    # a * b(first) is b * a(first) everywhere
    crossed = [("*", (tree, at_point(other, first))) for tree, other in ((a, b), (b, a))]
    return same_value(*crossed)


def at_point(tree: Tree, point: Point) -> Tree:
    """`tree` with its variables replaced."""
    if tree[0] == "sym":
        return ("num", point[tree[1]])
    if tree[0] == "apply":  # what f is at that point
        return ("apply", at_point(tree[1], point), tree[2] if len(tree) > 2 else ("num", point["f()"]))
    return tuple(
        tuple(at_point(inner, point) for inner in part)
        if isinstance(part, tuple) and part and isinstance(part[0], tuple)
        else at_point(part, point)
        if isinstance(part, tuple)
        else part
        for part in tree
    )


def order(a: Tree, b: Tree) -> int:
    """-1, 0 or 1 as the real number `a` is less than, the same as or more than `b`. Raises Undecided or Undefined."""
    left, right = rational(a), rational(b)
    if left is not None and right is not None:
        return (left > right) - (left < right)
    infinite = [(tree == _INFINITY) - (tree == ("neg", _INFINITY)) for tree in (a, b)]
    if any(infinite):
        return (infinite[0] > infinite[1]) - (infinite[0] < infinite[1])
    if same_value(a, b):
        return 0
    x, y = (number(tree, Setting(), 2 * _FIRST_BITS) for tree in (a, b))
    if x.imag != 0 or y.imag != 0:
        raise Undefined
    return 1 if x > y else -1


def rational(tree: Tree, point: Point | None = None) -> Fraction | None:
    """The exact value, with variables as in `point`; None if it is not known to be rational, or too long to write."""
    try:
        return exact(tree, point or {})
    except NotRational:
        return None


def rounds_to(tree: Tree, decimal: Fraction, places: int) -> bool:
    """Whether `decimal` of so many places is `tree` rounded: 0.333333 is 1/3, from six places and digits on. With all
    the digits of a double it may be that double, which is a little off the last of them (docs/data.md)."""
    if places < ROUNDED_PLACES or symbols(tree):
        return False
    value = rational(tree)
    if value is None:
        digits = number(tree, Setting(), 2 * _FIRST_BITS + 8 * places)
        if digits.imag != 0:
            return False
        value = _fraction(digits.real)
    elif _finite(value):
        return value == decimal
    if abs(decimal) * 10**places < 10 ** (ROUNDED_PLACES - 2):  # 0.066667 has five digits
        return False
    error, half = abs(value - decimal), Fraction(1, 2 * 10**places)
    if abs(decimal) * 10**places >= 10 ** (DOUBLE.full - 1):
        half = max(half, DOUBLE.tolerance * abs(value))
    return error <= half and error * 10 ** (ROUNDED_PLACES - 1) <= abs(value)


def _finite(value: Fraction) -> bool:
    """Whether the decimal expansion ends."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def _fraction(digits) -> Fraction:
    if digits.imag != 0:
        raise Undefined
    sign, mantissa, exponent, _ = digits.real._mpf_
    if abs(exponent) > MAX_EXACT_BITS:
        raise Undecided
    value = Fraction(int(mantissa)) * Fraction(2) ** exponent
    return -value if sign else value


def drawn_points(names: set[str]) -> Iterator[Point]:
    """Values for the variables: small, large, negative, of both signs. One empty point where there are none."""
    if not names:
        yield {}
        return
    ordered = sorted(names)
    for place, (scale, signs) in enumerate(_SCALES):
        yield {
            name: next(sign) * scale * (1 + Fraction(_drawn(name, place), 1 << 20))
            for sign in [itertools.cycle(signs)]
            for name in ordered
        }


@functools.lru_cache(4096)
def _drawn(name: str, place: int) -> int:
    """Twenty bits that look random and are the same in every process."""
    import hashlib

    return int.from_bytes(hashlib.sha256(f"{place} {name}".encode()).digest()[:4]) % (1 << 20)


def _same_at(setting: Setting, a: Tree, b: Tree) -> bool | None:
    """Whether both are the same at this point; None where neither is defined, and False where only one is."""
    values = []
    for tree in (a, b):
        try:
            values.append(exact(tree, setting.point))
        except NotRational:
            return _same_numbers(setting, a, b)
        except Undefined:
            values.append(None)
    if None in values:
        return None if setting.point and values == [None, None] else False
    return values[0] == values[1]


def _roughly_same(setting: Setting, a: Tree, b: Tree) -> bool:
    """Whether both agree in half of a few bits, or are defined nowhere: enough where other points agree in all."""
    values = [_or_none(setting, tree, _FIRST_BITS) for tree in (a, b)]
    return values == [None, None] or (None not in values and _apart(*values) <= -_WORTH_AGREEING)


def _same_numbers(setting: Setting, a: Tree, b: Tree) -> bool | None:
    magnitudes: list[int] = []
    first = [_or_none(setting, tree, _FIRST_BITS, magnitudes) for tree in (a, b)]
    if None in first:
        return None if setting.point and first == [None, None] else False
    again = [_or_none(setting, tree, 2 * _FIRST_BITS) for tree in (a, b)]
    steady = None not in again and all(_apart(x, y) <= -_WORTH_AGREEING for x, y in zip(first, again, strict=True))
    if steady and _apart(*again) >= -_WORTH_AGREEING // 2:
        return False
    bits = 2 * _WORTH_AGREEING + 4 * sum(magnitudes)
    if bits > MAX_BITS:
        raise Undecided
    apart = _apart(*(_or_none(setting, tree, bits) for tree in (a, b)))
    if -bits // 2 < apart <= -bits // 4:
        raise Undecided
    return apart <= -bits // 2


def _apart(x, y) -> float:
    """The binary magnitude of the difference of two numbers, as a part of the larger one; of that one, next to zero."""
    if x is None or y is None:
        return 0
    if x == y:
        return -math.inf
    mag = context().mag
    larger = max(mag(x), mag(y))
    return larger if x == 0 or y == 0 else mag(x - y) - larger


def _or_none(setting: Setting, tree: Tree, bits: int, magnitudes: list[int] | None = None):
    try:
        return number(tree, setting, bits, magnitudes)
    except Undefined:
        return None
