"""Polynomials of one variable with rational coefficients, from the constant term on."""

from collections.abc import Callable
from fractions import Fraction

Polynomial = list[Fraction]
_MAX_DEGREE = 12


def polynomial(value: Callable[[Fraction], Fraction | None]) -> Polynomial | None:
    """The polynomial with these values; None where there is none of a degree that anybody writes, or it is zero."""
    places = [Fraction(2 * place + 1, 7) for place in range(_MAX_DEGREE + 3)]
    values = [value(place) for place in places]
    known = [each for each in values if each is not None]
    if len(known) < len(values):
        return None
    # Newton's divided differences; those behind the last coefficient are zero
    for order in range(1, len(known)):
        for place in range(len(known) - 1, order - 1, -1):
            known[place] = (known[place] - known[place - 1]) / (places[place] - places[place - order])
    if any(known[-2:]) or not any(known):
        return None
    result: Polynomial = []
    for difference, place in zip(reversed(known), reversed(places), strict=True):
        result = _shifted(result, place)
        result[0] += difference
    return _trimmed(result)


def _shifted(coefficients: Polynomial, place: Fraction) -> Polynomial:
    """Times x - place."""
    up, down = [Fraction(0), *coefficients], [*(-place * each for each in coefficients), Fraction(0)]
    return [a + b for a, b in zip(up, down, strict=True)]


def _trimmed(coefficients: Polynomial) -> Polynomial:
    while coefficients and not coefficients[-1]:
        coefficients = coefficients[:-1]
    return coefficients


def common_divisor(over: Polynomial, under: Polynomial) -> Polynomial:
    """The greatest one, by Euclid."""
    while under:
        rest = over
        while len(rest) >= len(under):
            ratio, shift = rest[-1] / under[-1], len(rest) - len(under)
            rest = _trimmed(
                [each - (ratio * under[i - shift] if i >= shift else 0) for i, each in enumerate(rest)][:-1]
            )
        over, under = under, rest
    return over
