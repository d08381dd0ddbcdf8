"""How long a run still takes: the seconds of a step as a line over its cap, from the steps so far."""

from collections import deque
from collections.abc import Callable

HALF_LIFE = 200
"""Steps after which an observation counts half: responses change while a model learns."""
KNOWN = 5 * HALF_LIFE
"""Newest steps that are looked at."""
SUMMED = 10_000
"""Most steps to come that are summed one by one; of more, evenly as many stand for all."""
SPREAD = 1.25
"""Largest over smallest cap so far from which on a line is fitted; below, seconds are taken to grow as the cap does."""


class Forecast:
    """Seconds that the steps and evaluations to come will take."""

    def __init__(self, cap: Callable[[int], int] | None = None, evaluations: Callable[[int], int] | None = None):
        """cap: of a step (from 0), tokens; None = every step is like the others. evaluations: how many are due after
        more than so many steps."""
        self.cap = cap or (lambda step: 1)
        self.evaluations = evaluations or (lambda done: 0)
        self._steps: deque[tuple[int, float]] = deque(maxlen=KNOWN)
        self._any = 0
        self._measured: list[float] = []

    def step(self, step: int, seconds: float) -> None:
        """Take in a finished step."""
        if self._any == 2:  # the first step of a process compiles and warms up, and leaves once there are others
            self._steps.popleft()
        self._any += 1
        self._steps.append((step, seconds))

    def evaluation(self, seconds: float) -> None:
        """Take in a finished evaluation."""
        self._measured.append(seconds)

    def left(self, done: int, steps: int) -> float | None:
        """Seconds from the end of step `done` - 1 to that of the run; None while no step is known. An evaluation that
        was never measured counts nothing."""
        if not self._steps:
            return None
        base, slope = self._line()
        stride = (steps - done) // SUMMED | 1  # odd, so that it does not meet the same place of every cycle
        chosen = range(done, steps, stride)
        mean = sum(base + slope * self.cap(step) for step in chosen) / max(1, len(chosen))
        seconds = mean * (steps - done)
        each = sum(self._measured) / len(self._measured) if self._measured else 0.0
        return seconds + each * self.evaluations(done)

    def _line(self) -> tuple[float, float]:
        """Seconds without a cap, and for each token of it: least squares with neither below 0."""
        newest = self._steps[-1][0]
        rows = [(0.5 ** ((newest - step) / HALF_LIFE), self.cap(step), seconds) for step, seconds in self._steps]
        total = sum(weight for weight, _, _ in rows)
        mean_cap = sum(weight * cap for weight, cap, _ in rows) / total
        mean_s = sum(weight * seconds for weight, _, seconds in rows) / total
        caps = [cap for _, cap, _ in rows]
        if max(caps) < SPREAD * min(caps):
            return 0.0, mean_s / mean_cap
        spread = sum(weight * (cap - mean_cap) ** 2 for weight, cap, _ in rows)
        slope = sum(weight * (cap - mean_cap) * (seconds - mean_s) for weight, cap, seconds in rows) / spread
        if slope <= 0:
            return mean_s, 0.0
        base = mean_s - slope * mean_cap
        if base < 0:
            squares = sum(weight * cap * cap for weight, cap, _ in rows)
            return 0.0, sum(weight * cap * seconds for weight, cap, seconds in rows) / squares
        return base, slope
