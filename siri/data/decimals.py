"""Floats that stand for another number: 0.14285714285714285 in a data file was 1/7 before it became a double.

The tolerance is written here and in docs/data.md: a decimal of 16 significant digits or more, as many as a double has,
is also read as that number rounded to 15 digits, and as the simplest fraction within 1e-15 of it, relatively, where
numerator times denominator is at most 10^10. A float by chance has one in fewer than 1 of 10,000 cases.
"""

import re
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from math import ceil
from typing import NamedTuple

LONGEST = 4000
"""Digits of a number written out."""
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?P<exponent>[eE][-+]?\d{1,4})?", re.ASCII)


class Precision(NamedTuple):
    """What a kind of float tells of a number."""

    full: int
    """Significant digits from which the shortest spelling may be that of a rounded number."""
    safe: int
    """Digits that survive the rounding."""
    tolerance: Fraction
    """Relative."""
    most: int
    """Largest numerator times denominator of a fraction that a float is taken to stand for."""
    whole: int
    """Whole numbers below it are exact."""


DOUBLE = Precision(16, 15, Fraction(1, 10**15), 10**10, 2**53)
SINGLE = Precision(8, 6, Fraction(1, 10**7), 1000, 2**24)
HALF = Precision(1, 3, Fraction(1, 10**3), 0, 2**11)  # 3000 may have been 3001: no digit tells of a rounded one


def plain(value: Decimal) -> str:
    """A finite number in digits, without exponent or closing zeros: 0.00002, 5, 10000000000000000000000."""
    if value.is_zero():
        return "0"
    if abs(value.adjusted()) > LONGEST or len(value.as_tuple().digits) > LONGEST:
        raise ValueError(f"a number of more than {LONGEST} digits")
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def significant(value: Decimal) -> int:
    """Digits of a number without the zeros at its ends."""
    return len("".join(map(str, value.as_tuple().digits)).strip("0"))


def likely_values(value: Decimal, precision: Precision = DOUBLE) -> list[str]:
    """What a float, given by its shortest spelling, may have been before it was one: rounded to the digits that are
    safe, and the simple fraction nearby. Empty where the spelling is short, and so is the number itself."""
    if significant(value) < precision.full or value == value.to_integral_value():
        return []
    rounded = Context(prec=precision.safe, rounding=ROUND_HALF_EVEN).plus(value)
    spellings = [plain(rounded)]
    exact = abs(Fraction(value))
    simple = _simplest(exact * (1 - precision.tolerance), exact * (1 + precision.tolerance))
    if simple.numerator * simple.denominator <= precision.most:
        spellings.append(f"{'-' if value < 0 else ''}{simple.numerator}/{simple.denominator}")
    return spellings


def readings(gold: str) -> list[str]:
    """`gold`, and what it stands for where it is a number as programs write floats: without its exponent (2e-05), and
    `meant`."""
    match = _NUMBER.fullmatch(gold.strip())
    if match is None or len(gold) > LONGEST:
        return [gold]
    value = Decimal(gold.strip())
    if abs(value.adjusted()) > LONGEST:
        return [gold]
    spellings = [gold, plain(value)] if match["exponent"] else [gold]
    return spellings + likely_values(value)


def shortest(value: Decimal) -> Decimal:
    """A number without the digits that printing a double adds: 0.10000000000000001 is 0.1. Whole numbers, and what has
    no spelling of 15 digits, stay."""
    if not value.is_finite() or significant(value) < DOUBLE.full or value == value.to_integral_value():
        return value
    short = Decimal(repr(float(value)))
    near = short.is_finite() and abs(Fraction(short) / Fraction(value) - 1) <= DOUBLE.tolerance
    return short if near and significant(short) <= DOUBLE.safe else value


def is_double(value: Decimal) -> bool:
    """Whether a number is the shortest spelling of a double."""
    return Decimal(repr(float(value))) == value


def _simplest(low: Fraction, high: Fraction) -> Fraction:
    """The fraction of the smallest denominator in [low, high], 0 < low."""
    whole = ceil(low)
    if whole <= high:
        return Fraction(whole)
    rest = _simplest(1 / (high - (whole - 1)), 1 / (low - (whole - 1)))
    return whole - 1 + 1 / rest
