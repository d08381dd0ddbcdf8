"""95 % intervals of means, and tests of them."""

import math
from collections.abc import Sequence

T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120)
T_95 += (2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)
"""Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom."""


def half_width(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % t-interval of the mean of independent values; None of fewer than two."""
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    quantile = T_95[n - 2] if n - 2 < len(T_95) else 1.96 + 2.4 / (n - 1)
    return quantile * math.sqrt(variance / n)


def t_test(values: Sequence[float]) -> float | None:
    """Two-sided p of Student's t that the mean of independent values is 0; None of fewer than two."""
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    if variance == 0:
        return float(mean == 0)
    freedom = n - 1
    angle = math.atan2(abs(mean) * math.sqrt(n), math.sqrt(variance * freedom))
    # the integral of the density has a closed form for whole degrees of freedom (Abramowitz and Stegun, 26.7.3-4)
    odd, term = freedom % 2, 1.0
    total = 0.0
    for k in range(1, freedom // 2 + 1):
        total += term * math.cos(angle) ** (2 * k - 2 + odd)
        term *= (2 * k - 1 + odd) / (2 * k + odd)
    inner = math.sin(angle) * total
    return max(0.0, 1 - (2 / math.pi * (angle + inner) if odd else inner))


def holm(ps: Sequence[float]) -> list[float]:
    """The p of each of several tests, adjusted for their number (Holm, 1979), in their order."""
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = highest
    return adjusted
