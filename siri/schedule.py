"""L(t): the cap on the response length at every step, and the phase of the step (arXiv 2509.25176, section 4.3).

This is the only source of the cap. Sampling (`max_tokens`), reward (over-cap answers), packing and logging ask the same
object, so that they cannot disagree.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from siri.errors import InputError

Kind = Literal["cosine", "stair", "stair_cosine", "constant", "steps", "auto"]
Phase = Literal["compression", "expansion"]
RateKind = Literal["constant", "linear", "cosine"]
"""How a learning rate falls."""
KINDS = ("cosine", "stair", "stair_cosine", "constant", "steps", "auto")
OPEN = ("constant", "auto")
"""Kinds whose cap is known as l_max beforehand."""


@dataclass(frozen=True)
class LengthSchedule:
    """Cap on the response length, in tokens, as a function of the 0-based training step.

    cosine        mid + half * cos(2 pi t / T), the schedule of the released SIRI models
    stair         l_min in the first half of a cycle, l_max in the second
    stair_cosine  plateaus at l_max and l_min joined by half cosines, each a quarter of the cycle
    constant      l_max at every step
    steps         `stages` = ((start_step, cap), ...): 8K-then-16K, ThinkPrune and the like
    auto          what a run makes of its lengths (`siri.train.auto`); known beforehand is only l_max, the most
    """

    kind: Kind
    l_max: int
    """Longest cap, tokens."""
    l_min: int
    """Shortest cap, tokens."""
    cycle: int
    """Steps in one compression + expansion cycle (T)."""
    stages: tuple[tuple[int, int], ...] = ()
    """Only for kind "steps": (first step, cap) pairs, first at step 0, in rising order of steps."""
    offset: int = 0
    """Steps into its cycle at which the schedule begins: t of the formulas is step + offset. Half a cycle puts the
    expansion first."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"schedule {self.kind!r} is unknown; choose one of {', '.join(KINDS)}")
        if self.kind == "steps":
            self._check_stages()
            return
        if self.l_max < 1:
            raise InputError(f"l_max is {self.l_max}; it must be at least 1 token")
        if self.kind in OPEN:
            return
        if not 1 <= self.l_min <= self.l_max:
            raise InputError(f"l_min is {self.l_min} and l_max is {self.l_max}; need 1 <= l_min <= l_max")
        if self.cycle < 2:
            raise InputError(f"cycle is {self.cycle}; a cycle of schedule {self.kind!r} needs at least 2 steps")
        if self.offset < 0:
            raise InputError(f"schedule_offset is {self.offset}; it must be 0 or more steps")

    def _check_stages(self) -> None:
        if not self.stages or self.stages[0][0] != 0:
            raise InputError(
                "schedule 'steps' needs stages whose first one starts at step 0, as in --stages 0 8192 320 16384"
            )
        starts = [start for start, _ in self.stages]
        if any(later <= earlier for earlier, later in pairwise(starts)):
            raise InputError(f"stages must start at rising steps; got {starts}")
        if min(cap for _, cap in self.stages) < 1:
            raise InputError("every cap in stages must be at least 1 token")

    def cap(self, step: int) -> int:
        """Longest response allowed at `step`, in tokens, rounded to nearest (half up)."""
        if self.kind in OPEN:
            return self.l_max
        if self.kind == "steps":
            return next(cap for start, cap in reversed(self.stages) if start <= step)
        if self.kind == "stair":
            return self.l_min if self.phase(step) == "compression" else self.l_max
        middle, half = (self.l_max + self.l_min) / 2, (self.l_max - self.l_min) / 2
        turn = (step + self.offset) % self.cycle / self.cycle  # phi / 2 pi
        if self.kind == "stair_cosine":
            turn = _with_plateaus(turn)
        return math.floor(middle + half * math.cos(2 * math.pi * turn) + 0.5)

    def phase(self, step: int) -> Phase:
        """The first half of a cycle compresses, the second expands; constant and steps always count as expansion."""
        if self.kind in (*OPEN, "steps"):
            return "expansion"
        return "compression" if 2 * ((step + self.offset) % self.cycle) < self.cycle else "expansion"

    def milestone(self, steps_done: int) -> str | None:
        """Name of the checkpoint after `steps_done` steps: "siri-low-k" where compression k ends, "siri-high-k" where
        expansion k ends, None elsewhere."""
        if steps_done < 1 or self.phase(steps_done - 1) == self.phase(steps_done):
            return None
        low = self.phase(steps_done - 1) == "compression"
        began = self.offset % self.cycle  # a phase that ended before the run began does not count
        missed = began >= (-(-self.cycle // 2) if low else self.cycle)
        return f"siri-{'low' if low else 'high'}-{(steps_done + began - 1) // self.cycle + 1 - missed}"

    @property
    def longest(self) -> int:
        """The largest cap that any step can have, tokens."""
        return max(cap for _, cap in self.stages) if self.kind == "steps" else self.l_max

    @property
    def shortest(self) -> int:
        """The smallest cap that a step may have, tokens."""
        if self.kind == "steps":
            return min(cap for _, cap in self.stages)
        if self.kind == "auto":
            return 1
        return self.l_max if self.kind == "constant" else self.l_min


def learning_rate(kind: RateKind, lr: float, step: int, steps: int, warmup: int) -> float:
    """The learning rate of a step (from 0) of a run of so many: lr (s + 1) / warmup while s < warmup, and from there on
    lr, or down to 0 after the last step in a line or half a cosine."""
    if step < warmup:
        return lr * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    if kind == "linear":
        return lr * (1 - done)
    if kind == "cosine":
        return lr * (1 + math.cos(math.pi * done)) / 2
    return lr


def _with_plateaus(turn: float) -> float:
    """Where on the cosine a stair-cosine stands: still for an eighth turn on both sides of the top and a quarter at the
    bottom, twice as fast between."""
    if turn < 1 / 8 or turn >= 7 / 8:
        return 0.0
    if turn < 3 / 8:
        return 2 * (turn - 1 / 8)
    if turn < 5 / 8:
        return 0.5
    return 2 * (turn - 3 / 8)
