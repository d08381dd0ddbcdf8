"""`schedule = "auto"`: a cap that finds its own levels and turns. In ten lines:

1. The run begins open: the cap is the ceiling, at first l_max, and lengths do as they like.
2. Every step, each prompt with right answers notes the median length of these; only open steps are noted.
3. A phase lasts `auto_dwell` steps at least. Then it ends once the length has settled: over the last `auto_dwell` steps
4. the slope of the mean length is within twice its standard error.
5. An open phase ends in a compression. Its floor is the cap under which nine in ten prompts keep half of their right
6. answers, by the notes of the open phase; it takes `auto_dwell` steps to get there, on half a cosine.
7. A compression also ends once its accuracy, over `auto_dwell` steps at the floor, is lower than that at its beginning
8. by more than twice the standard error of the difference.
9. After a compression the run is open again. The ceiling is twice the length within which 99 in 100 prompts had their
10. longest right answer when it was last open, and never more than l_max.

The trap that this keeps out of: lengths under a cap are cut by it, so that a floor that is a share of what is seen
under the last floor can only sink. Here both levels come from open steps, and a ceiling at twice what is seen then cuts
next to nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from siri.config import Config
from siri.errors import InputError
from siri.schedule import LengthSchedule, Phase

FLOOR_SHARE, CEILING_SHARE = 0.9, 0.99
ERRORS = 2.0
"""Standard errors within which a difference is noise."""


@dataclass(frozen=True)
class Turn:
    """A phase that begins."""

    step: int
    phase: Phase
    cap: int
    """Where the cap goes, tokens."""
    reason: str


@dataclass(frozen=True)
class Observed:
    """What a step showed."""

    length: float
    """Mean tokens of its responses."""
    accuracy: float
    """Mean over prompts of the share of right responses,"""
    variance: float
    """the variance of that share over prompts,"""
    prompts: int
    """and how many there were."""

    @classmethod
    def of(cls, groups: Sequence[tuple[Sequence[float], Sequence[int]]]) -> "Observed":
        """groups: scores and lengths of the responses to each prompt."""
        shares = [fmean(score >= 1 for score in scores) for scores, _ in groups if scores]
        mean = fmean(shares) if shares else 0.0
        variance = sum((share - mean) ** 2 for share in shares) / (len(shares) - 1) if len(shares) > 1 else 0.0
        lengths = [length for _, lengths in groups for length in lengths]
        return cls(fmean(lengths) if lengths else 0.0, mean, variance, len(shares))


class AutoSchedule:
    """L(t) as far as it is known: what is past, and the step that comes. It has the questions of
    `siri.schedule.LengthSchedule`, and is told each step by `observe`. Every rank has the same."""

    def __init__(self, l_max: int, dwell: int, held: Mapping[str, Any] | None = None) -> None:
        """held: the `state` of a checkpoint. InputError where it is none."""
        self.l_max, self.dwell = l_max, dwell
        self.turns = [Turn(0, "expansion", l_max, "the run begins")]
        self._window: list[Observed] = []
        """Of the phase: the steps since the cap has been where it goes, at most `dwell`."""
        self._before: list[Observed] = []
        """The window with which a compression began."""
        self._medians: list[list[float]] = []
        """Median right length of each prompt, of the newest `dwell` open steps,"""
        self._longest: list[list[int]] = []
        """and the longest right one."""
        if held is not None:
            try:
                self.turns = [Turn(int(s), p, int(c), str(r)) for s, p, c, r in held["turns"]]
                self._window, self._before = ([Observed(*row) for row in held[key]] for key in ("window", "before"))
                self._medians = [[float(n) for n in row] for row in held["medians"]]
                self._longest = [[int(n) for n in row] for row in held["longest"]]
                if not self.turns or self.turns[0].step or any(t.phase not in PHASES or t.cap < 1 for t in self.turns):
                    raise ValueError
            except (KeyError, TypeError, ValueError):
                raise InputError("the checkpoint's state.json holds no state of auto; start a new run") from None

    @property
    def longest(self) -> int:
        """The largest cap that any step can have, tokens."""
        return self.l_max

    def cap(self, step: int) -> int:
        """Longest response allowed at `step`, tokens: up at once, down on half a cosine of `dwell` steps."""
        number = max(i for i, turn in enumerate(self.turns) if turn.step <= step)
        turn = self.turns[number]
        if turn.phase == "expansion":
            return turn.cap
        above, done = self.turns[number - 1].cap, min(step - turn.step + 1, self.dwell) / self.dwell
        return math.floor(turn.cap + (above - turn.cap) * (1 + math.cos(math.pi * done)) / 2 + 0.5)

    def phase(self, step: int) -> Phase:
        return next(turn.phase for turn in reversed(self.turns) if turn.step <= step)

    def milestone(self, steps_done: int) -> str | None:
        """As `LengthSchedule.milestone`: siri-low-k where compression k ends, siri-high-k where the expansion after it
        does. The phase with which the run begins ends without a name."""
        number = next((i for i, turn in enumerate(self.turns) if turn.step == steps_done), 0)
        if number < 2:
            return None
        ended = self.turns[number - 1].phase
        return f"siri-{'low' if ended == 'compression' else 'high'}-{number // 2}"

    def observe(self, step: int, groups: Sequence[tuple[Sequence[float], Sequence[int]]]) -> Turn | None:
        """Take in a finished step, given as scores and lengths of the responses to each prompt; the turn that follows
        from it, if one does."""
        turn = self.turns[-1]
        if turn.phase == "compression" and step - turn.step + 1 < self.dwell:
            return None  # the cap still falls
        self._window = [*self._window, Observed.of(groups)][-self.dwell :]
        if turn.phase == "expansion":
            rights = [
                [length for score, length in zip(scores, lengths, strict=True) if score >= 1]
                for scores, lengths in groups
            ]
            rights = [right for right in rights if right]
            self._medians = [*self._medians, [float(median(right)) for right in rights]][-self.dwell :]
            self._longest = [*self._longest, [max(right) for right in rights]][-self.dwell :]
        if len(self._window) < self.dwell:
            return None
        new = self._compress(step + 1) if turn.phase == "expansion" else self._open(step + 1)
        if new:
            self.turns.append(new)
            self._before = self._window if new.phase == "compression" else []
            self._window = []
        return new

    def _compress(self, step: int) -> Turn | None:
        medians = [value for row in self._medians for value in row]
        if not medians or not settled([row.length for row in self._window]):
            return None
        floor = min(max(1, math.ceil(quantile(medians, FLOOR_SHARE))), self.turns[-1].cap)
        why = f"the length has settled at {self._window[-1].length:.4g}; {FLOOR_SHARE:.0%} of prompts keep half their"
        return Turn(step, "compression", floor, f"{why} right answers within {floor}")

    def _open(self, step: int) -> Turn | None:
        ceiling = min(self.l_max, math.ceil(2 * quantile([n for row in self._longest for n in row], CEILING_SHARE)))
        fall, error = fallen(self._before, self._window)
        if fall > ERRORS * error:
            why = f"accuracy has fallen by {fall:.1%}, more than twice its error of {error:.1%}"
        elif settled([row.length for row in self._window]):
            why = f"the length has settled at {self._window[-1].length:.4g}"
        else:
            return None
        return Turn(step, "expansion", ceiling, why)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        rows = {"window": self._window, "before": self._before}
        return {
            "turns": [[turn.step, turn.phase, turn.cap, turn.reason] for turn in self.turns],
            **{
                key: [[row.length, row.accuracy, row.variance, row.prompts] for row in observed]
                for key, observed in rows.items()
            },
            "medians": [list(row) for row in self._medians],
            "longest": [list(row) for row in self._longest],
        }


PHASES = ("compression", "expansion")
AnySchedule = LengthSchedule | AutoSchedule


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that as many of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def settled(lengths: Sequence[float]) -> bool:
    """Whether the slope of a line through the lengths, one a step, is within ERRORS of its standard errors."""
    count = len(lengths)
    if count < 3:
        return False
    middle, mean = (count - 1) / 2, fmean(lengths)
    spread = sum((step - middle) ** 2 for step in range(count))
    slope = sum((step - middle) * (length - mean) for step, length in enumerate(lengths)) / spread
    left = sum((length - mean - slope * (step - middle)) ** 2 for step, length in enumerate(lengths))
    return abs(slope) <= ERRORS * math.sqrt(left / (count - 2) / spread)


def fallen(before: Sequence[Observed], now: Sequence[Observed]) -> tuple[float, float]:
    """By how much the accuracy is lower now, and the standard error of that difference, over prompts."""

    def mean(rows: Sequence[Observed]) -> tuple[float, float]:
        prompts = max(1, sum(row.prompts for row in rows))
        variance = sum(row.variance * row.prompts for row in rows) / prompts
        return sum(row.accuracy * row.prompts for row in rows) / prompts, variance / prompts

    (first, variance_before), (second, variance_now) = mean(before), mean(now)
    return first - second, math.sqrt(variance_before + variance_now)


def schedule_of(config: Config, state: Mapping[str, Any]) -> AnySchedule:
    """The schedule of a run that goes on from `state`."""
    if config.schedule == "auto":
        return AutoSchedule(config.l_max, config.auto_dwell, state.get("auto"))
    return config.length_schedule()
