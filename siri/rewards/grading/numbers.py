"""What a tree comes to: as a fraction where it is rational, and as a number of any wanted precision."""

import functools
import math
from dataclasses import dataclass, field
from fractions import Fraction

from siri.rewards.grading.grammar import Tree

MAX_EXACT_BITS = 60_000
MAX_EXACT_FACTORIAL = 5000
# The binary exponent of a number that is computed: far more than is ever written, and far less than memory holds.
MAX_MAGNITUDE = 1 << 80
# Of a factorial or a binomial coefficient that is not computed exactly.
MAX_ARGUMENT_BITS = 48
_ONE = ("num", Fraction(1))

Point = dict[str, Fraction]


class Undecided(Exception):
    """The values are too large, too small or too close to be told apart within bounds."""


class Undefined(Exception):
    """There is no such value: a division by zero, the root of a negative number among real ones."""


class NotRational(Exception):
    """Not known to be a fraction, or too long to be written as one."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What the variables are, and whether roots and logarithms of negative numbers are complex ones or none."""

    point: Point = field(default_factory=dict)
    is_complex: bool = True


@functools.cache
def context():
    """mpmath with a precision of its own, so that nobody else's is changed."""
    import mpmath

    return mpmath.MPContext()


# ------------------------------------------------------------------------------------------------ fractions


def exact(tree: Tree, point: Point) -> Fraction:
    """The value as a fraction. Raises NotRational, or Undefined where there is none."""
    kind = tree[0]
    if kind == "num":
        return tree[1]
    if kind == "sym" and tree[1] in point:
        return point[tree[1]]
    compute = _EXACT.get(kind)
    if compute is None:
        raise NotRational
    value = compute(tree, point)
    if value.numerator.bit_length() + value.denominator.bit_length() > MAX_EXACT_BITS:
        raise NotRational
    return value


def _exact_product(tree: Tree, point: Point) -> Fraction:
    value = Fraction(1)
    for part in tree[1]:
        value *= exact(part, point)
        if value.numerator.bit_length() + value.denominator.bit_length() > MAX_EXACT_BITS:
            raise NotRational
    return value


def _exact_quotient(tree: Tree, point: Point) -> Fraction:
    over, under = exact(tree[1], point), exact(tree[2], point)
    if under == 0:
        raise Undefined
    return over / under


def _exact_power(tree: Tree, point: Point) -> Fraction:
    exponent = exact(tree[2], point)
    if exponent.denominator != 1:
        return _exact_root(exact(tree[1], point), exponent.denominator, exponent.numerator)
    return _raised(exact(tree[1], point), exponent.numerator)


def _raised(base: Fraction, exponent: int) -> Fraction:
    if base == 0 and exponent <= 0:
        raise Undefined
    bits = base.numerator.bit_length() + base.denominator.bit_length()
    if abs(base) != 1 and base != 0 and bits * abs(exponent) > 2 * MAX_EXACT_BITS:
        raise NotRational
    return base ** (exponent % 2 if abs(base) == 1 else exponent)


def _exact_root(base: Fraction, degree: int, exponent: int = 1) -> Fraction:
    """The real root, where it is rational."""
    if degree > 64 or degree < 1 or (base < 0 and degree % 2 == 0):
        raise NotRational
    over, under = (_whole_root(abs(part), degree) for part in (base.numerator, base.denominator))
    root = Fraction(over, under)
    return _raised(-root if base < 0 else root, exponent)


def _whole_root(value: int, degree: int) -> int:
    if degree == 2:
        root = math.isqrt(value)
    else:
        low, high = 0, 1 << (value.bit_length() // degree + 1)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if middle**degree <= value else (low, middle - 1)
        root = low
    if root**degree != value:
        raise NotRational
    return root


def _exact_call(tree: Tree, point: Point) -> Fraction:
    name, arguments = tree[1], [exact(part, point) for part in tree[2]]
    if name == "abs":
        return abs(arguments[0])
    if name in ("floor", "ceil"):
        return Fraction((math.floor if name == "floor" else math.ceil)(arguments[0]))
    if name in ("max", "min"):
        return (max if name == "max" else min)(arguments)
    if name in ("gcd", "lcm") and all(part.denominator == 1 for part in arguments):
        return Fraction((math.gcd if name == "gcd" else math.lcm)(*map(int, arguments)))
    if name == "binom" and all(part.denominator == 1 for part in arguments):
        upper, lower = map(int, arguments)
        if 0 <= lower <= upper <= MAX_EXACT_FACTORIAL:
            return Fraction(math.comb(upper, lower))
    raise NotRational


def _exact_factorial(tree: Tree, point: Point) -> Fraction:
    value = exact(tree[1], point)
    if value.denominator != 1 or value > MAX_EXACT_FACTORIAL:
        raise NotRational
    if value < 0:
        raise Undefined
    return Fraction(math.factorial(int(value)))


_EXACT = {
    "+": lambda tree, point: sum((exact(part, point) for part in tree[1]), Fraction(0)),
    "*": _exact_product,
    "/": _exact_quotient,
    "^": _exact_power,
    "neg": lambda tree, point: -exact(tree[1], point),
    "root": lambda tree, point: _exact_root(exact(tree[2], point), _degree(tree, point)),
    "call": _exact_call,
    "!": _exact_factorial,
}


def _degree(tree: Tree, point: Point) -> int:
    degree = exact(tree[1], point)
    if degree.denominator != 1:
        raise NotRational
    return degree.numerator


# ------------------------------------------------------------------------------------------------ digits


def number(tree: Tree, setting: Setting, bits: int, magnitudes: list[int] | None = None):
    """The value as an mpmath number of that many bits. Notes the binary magnitude of whatever occurs on the way.

    Raises Undefined where there is no value, Undecided where it is too large.
    """
    ctx = context()
    with ctx.workprec(bits):
        try:
            return _computed(ctx, tree, setting, [] if magnitudes is None else magnitudes)
        except (ValueError, ZeroDivisionError, OverflowError, TypeError, ctx.NoConvergence) as error:
            raise Undefined from error


def _computed(ctx, tree: Tree, setting: Setting, magnitudes: list[int]):
    value = _branch(ctx, tree, setting, magnitudes)
    magnitude = ctx.mag(value)
    if magnitude == ctx.ninf:
        magnitude = 1  # zero
    if not -MAX_MAGNITUDE < magnitude < MAX_MAGNITUDE:
        if value != value or value in (ctx.inf, ctx.ninf):
            raise Undefined
        raise Undecided
    magnitudes.append(abs(int(magnitude)) + 1)
    return value


def _branch(ctx, tree: Tree, setting: Setting, magnitudes: list[int]):
    kind = tree[0]
    if kind == "num":
        return ctx.mpf(tree[1].numerator) / tree[1].denominator
    if kind == "sym":
        return _at(ctx, tree[1], setting)
    if kind == "const":
        if tree[1] == "inf":
            raise Undefined
        return {"pi": ctx.pi, "e": ctx.e, "i": ctx.j}[tree[1]] * 1
    if kind in ("+", "*"):
        values = [_computed(ctx, part, setting, magnitudes) for part in tree[1]]
        return ctx.fsum(values) if kind == "+" else ctx.fprod(values)
    if kind == "call":
        values = [_computed(ctx, part, setting, magnitudes) for part in tree[2]]
        if tree[1] in ("tanh", "coth"):  # as many digits as its distance from 1 has
            magnitudes.append(3 * int(min(abs(values[0].real), MAX_MAGNITUDE)) + 1)
        return _called(ctx, tree[1], values, setting)
    if kind == "log":
        return _logarithm(ctx, tree, setting, magnitudes)
    if kind == "^":
        return _power(ctx, tree, setting, magnitudes)
    if kind == "root":
        return _power(ctx, ("^", tree[2], ("/", _ONE, tree[1])), setting, magnitudes)
    values = [_computed(ctx, part, setting, magnitudes) for part in tree[1:]]
    if kind == "/":
        return values[0] / values[1]
    if kind == "neg":
        return -values[0]
    if kind == "deg":
        return values[0] * ctx.pi / 180
    if kind == "!":
        if ctx.mag(values[0]) > MAX_ARGUMENT_BITS:
            raise Undecided
        return ctx.factorial(values[0])
    return _unknown_function(ctx, *values, drawn=setting.point.get("f()"))


def _at(ctx, name: str, setting: Setting):
    value = setting.point[name]
    return ctx.mpf(value.numerator) / value.denominator


def _unknown_function(ctx, value, frozen=None, *, drawn: Fraction | None):
    """f(value): some number of either sign that depends on the value and on what was drawn for f at this point, so
    that f(2x) is not 2f(x), and f(2) = 5 another equation than f(5) = 2."""
    with ctx.workprec(60):
        if frozen is None:
            frozen = ctx.mpf(drawn.numerator) / drawn.denominator if drawn else ctx.mpf(1)
        return ctx.frac(abs(+value + ctx.mpf(3) / 7) * (1e6 + frozen * 97) * ctx.pi) - ctx.mpf(2) / 5


def _real(value, setting: Setting):
    if not setting.is_complex and value < 0:
        raise Undefined
    return value


def _power(ctx, tree: Tree, setting: Setting, magnitudes: list[int]):
    base = _computed(ctx, tree[1], setting, magnitudes)
    power = _computed(ctx, tree[2], setting, magnitudes)
    if base == 0:
        if power.real <= 0:
            raise Undefined
        return base
    size = ctx.mag(ctx.log(base)) + ctx.mag(power) if power != 0 else 0
    if size > MAX_MAGNITUDE.bit_length():
        raise Undecided
    if base.imag == 0 and base.real < 0 and power.imag == 0 and power != int(power.real):
        try:  # the real root, as schools have it
            exponent = exact(tree[2], setting.point)
        except NotRational:
            return ctx.power(_real(base, setting), power)
        if exponent.denominator % 2:
            return (-1) ** exponent.numerator * ctx.power(-base.real, power)
        _real(base, setting)
    return ctx.power(base, power)


def _logarithm(ctx, tree: Tree, setting: Setting, magnitudes: list[int]):
    value = _real(_computed(ctx, tree[2], setting, magnitudes), setting)
    if value == 0:
        raise Undefined
    base = _real(_computed(ctx, tree[1], setting, magnitudes), setting)
    return ctx.log(value) / ctx.log(base)


_CALLS = {
    **{name: name for name in ("sin", "cos", "tan", "cot", "sec", "csc", "exp", "floor", "ceil")},
    **{name: name for name in ("sinh", "cosh", "tanh", "coth", "sech", "csch")},
    **{f"arc{name}": f"a{name}" for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")},
    "binom": "binomial",
    "abs": "fabs",
}


def _called(ctx, name: str, values: list, setting: Setting):
    if name == "binom" and max(map(ctx.mag, values)) > MAX_ARGUMENT_BITS:
        raise Undecided
    if name == "exp" and ctx.mag(values[0]) > MAX_MAGNITUDE.bit_length():
        raise Undecided
    if name in ("sin", "cos", "tan", "cot", "sec", "csc") and ctx.mag(values[0]) > 1 << 16:
        raise Undecided  # its remainder by pi would take as many digits
    if name in ("gcd", "lcm"):
        raise Undefined  # of whole numbers, which are fractions and come out exactly
    if name in ("max", "min"):
        if any(value.imag != 0 for value in values):
            raise Undefined
        return (max if name == "max" else min)(value.real for value in values)
    if name in ("floor", "ceil") and ctx.mag(values[0] - ctx.nint(values[0])) < -ctx.prec // 2:
        return ctx.nint(values[0])  # the logarithm of 8 to base 2 is 3, and not a little less
    value = getattr(ctx, _CALLS[name])(*values)
    if not setting.is_complex and value.imag != 0:
        raise Undefined
    return value
