"""Whether a figure of training swings with the cap, how far, and how many steps behind it: regression with a test.

In each whole cycle of the cap after the first (in which everything moves from the base's values to the run's own) the
figure is regressed on a line and the cosine and sine of the cap's period, and the cap likewise. The pair of
coefficients, turned by the phase of the cap, is a point in the plane: its distance from the origin is the amplitude,
its angle the lag. What does not follow the cap has its points around the origin. Hotelling's T2 over independent points
(runs with different seeds, or the cycles of a single run) tests that: noise that remembers its past, as lengths have
it, spreads the points, and cannot pass for a swing, as it does for the shift of best correlation.
"""

import cmath
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from siri.intervals import half_width

SURE = 0.05
"""Level of the test below which an amplitude and a lag are shown."""


@dataclass(frozen=True)
class Swing:
    """The answer of a figure to the cap."""

    amplitude: float
    """Half the way between its highest and lowest, in the figure's unit."""
    lag: float
    """Steps behind the cap, from 0 to the period."""
    lag_half: float
    """Half the width of its 95 % interval, from the spread across the mean answer."""
    p: float
    """Of the test that there is none."""
    count: int
    """Points that it is made of."""

    @property
    def sure(self) -> bool:
        return self.p < SURE

    def text(self) -> str:
        """The amplitude and the lag, or that they cannot be told."""
        if not self.sure:
            return f"none that can be told (p = {self.p:.2g})"
        return f"± {self.amplitude:.2g}, {self.lag:.1f} ± {self.lag_half:.1f} steps behind (p = {self.p:.1g})"


def cap_period(caps: Sequence[float]) -> int | None:
    """Steps from a rise of the cap through its middle to the next; None where it does not rise twice."""
    if not len(caps):
        return None
    cap_T = np.asarray(caps, float)
    above = cap_T > (cap_T.max() + cap_T.min()) / 2
    rises = np.flatnonzero(above[1:] & ~above[:-1])
    return int(np.diff(rises).max()) if len(rises) > 1 else None


def answers(caps: Sequence[float], values: Sequence[float | None], period: int) -> list[complex]:
    """A point for each whole cycle after the first in which every value is there. values: one a step, as caps."""
    points = []
    for start in range(period, len(caps) - period + 1, period):
        window = range(start, start + period)
        known = [value for step in window if (value := values[step]) is not None and math.isfinite(value)]
        if len(known) < period:
            continue
        angle_T = 2 * np.pi * np.array(window) / period
        columns_T4 = np.stack([np.ones(period), np.arange(period), np.cos(angle_T), np.sin(angle_T)], axis=1)
        targets_T2 = np.array([known, [caps[step] for step in window]], float).T
        cosine, sine = np.linalg.lstsq(columns_T4, targets_T2, rcond=None)[0][2:]
        figure, cap = (complex(cosine[i], -sine[i]) for i in (0, 1))
        if abs(cap) > 1e-9:
            points.append(figure * cap.conjugate() / abs(cap))
    return points


def swing(points: Sequence[complex], period: int) -> Swing | None:
    """The mean answer of at least three independent points, and its test; None of fewer."""
    n = len(points)
    if n < 3:
        return None
    mean = sum(points) / n
    plane_N2 = np.array([(point.real, point.imag) for point in points])
    centre_2 = plane_N2.mean(0)
    spread_22 = (plane_N2 - centre_2).T @ (plane_N2 - centre_2) / (n - 1)
    # rounding alone has spread these: where there is nothing but it, there is no answer either
    floor = 1e-18 * max(1.0, float(np.abs(plane_N2).max()) ** 2)
    spread_22 += floor * np.eye(2)
    squared = n * float(centre_2 @ np.linalg.solve(spread_22, centre_2)) if abs(mean) > 1e-9 else 0.0
    # F(2, n - 2), whose upper tail has a closed form
    p = (1 + squared / (n - 1)) ** (-(n - 2) / 2)
    across = [(point * mean.conjugate()).imag / abs(mean) for point in points] if mean else [0.0] * n
    steps = period / (2 * math.pi)
    lag = -cmath.phase(mean) * steps % period
    width = math.atan2(half_width(across) or 0.0, abs(mean)) * steps
    return Swing(abs(mean), lag, width, p, n)


def swing_of_run(caps: Sequence[float], values: Sequence[float | None]) -> Swing | None:
    """That of a single run, its cycles being the points; None where the cap has fewer than four whole cycles."""
    period = cap_period(caps)
    return swing(answers(caps, values, period), period) if period else None


def swing_of_runs(caps: Sequence[float], values: Sequence[Sequence[float | None]]) -> Swing | None:
    """That of runs with different seeds under the same cap, each a point, the mean of its cycles; None of fewer than
    three runs with a whole cycle after the first."""
    period = cap_period(caps)
    if not period:
        return None
    by_run = [answers(caps, series, period) for series in values]
    return swing([sum(points) / len(points) for points in by_run if points], period)
