"""The plan of one step beside what it took: costs turned into seconds by a rate that the run's own steps teach."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from siri.packing import Plan

FORGET = 0.9
"""Weight of all earlier steps each time a step is learned: caps move, and with them what a token costs."""


@dataclass
class StepPlan:
    """The micro-steps of all optimizer steps of a rollout batch: costs[s][r], and lengths[s][r], the tokens of each
    sequence that rank r runs in micro-step s."""

    costs: list[list[float]] = field(default_factory=list)
    lengths: list[list[list[int]]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    """First micro-step of each optimizer step."""
    seconds: list[float] = field(default_factory=list)
    """What each micro-step took here; empty before `StepTimes.note`."""
    predicted: list[float] | None = None
    """What it was predicted to take; None in the first step of a process."""

    def add(self, plan: Plan, lengths: Sequence[int]) -> None:
        """One more optimizer step, whose sequences have these tokens."""
        self.starts.append(len(self.costs))
        self.costs += plan.costs
        self.lengths += [[[lengths[index] for index in micro_step] for micro_step in step] for step in plan.steps]

    @property
    def slowest(self) -> list[float]:
        """Cost of each micro-step: that of its costliest rank, for which the others wait."""
        return [max(ranks) for ranks in self.costs]

    def largest(self, rank: int) -> int:
        """Most tokens that a rank runs in a micro-step; 0 where nothing was planned."""
        return max((sum(ranks[rank]) for ranks in self.lengths), default=0)

    @property
    def several(self) -> bool:
        """Whether some optimizer step has more micro-steps than one."""
        return any(end - start > 1 for start, end in pairwise([*self.starts, len(self.costs)]))

    @property
    def lockstep_efficiency(self) -> float:
        """See `Plan.lockstep_efficiency`; NaN where nothing was planned."""
        return Plan([], self.costs).lockstep_efficiency if self.costs else math.nan

    def budget_use(self, token_budget: int) -> float:
        """Mean share of the token budget that a rank's micro-step fills; NaN where nothing was planned."""
        bins = [sum(micro_step) for step in self.lengths for micro_step in step]
        return sum(bins) / (token_budget * len(bins)) if bins else math.nan

    def record(self, **more: Any) -> dict[str, Any]:
        """A row of plans.jsonl: `more`, lengths[s][r], and costs[s][r] in TFLOP."""
        costs = [[round(cost / 1e12, 6) for cost in ranks] for ranks in self.costs]
        times = {"seconds": self.seconds, "predicted": self.predicted}
        plan = {"starts": self.starts, "lengths": self.lengths, "costs": costs}
        return {**more, "lockstep_efficiency": self.lockstep_efficiency, **plan, **times}


class StepTimes:
    """Seconds of a micro-step = rate * cost + overhead, by least squares over the earlier micro-steps of the run, where
    recent steps weigh more. Rate and overhead are never negative."""

    def __init__(self) -> None:
        self._sums = [0.0] * 5  # of 1, c, s, c^2, c s over micro-steps of cost c and s seconds

    def note(self, plan: StepPlan, seconds: Sequence[float]) -> dict[str, float | None]:
        """Note in the plan of a step what its micro-steps took and what the earlier steps had led to expect, and learn
        from it; returns both sums, for metrics.jsonl."""
        plan.seconds, plan.predicted = list(seconds), self.predict(plan.slowest)
        self.learn(plan.slowest, seconds)
        predicted = None if plan.predicted is None else sum(plan.predicted)
        return {"micro_steps_s": sum(seconds), "micro_steps_predicted_s": predicted}

    def predict(self, costs: Sequence[float]) -> list[float] | None:
        """Seconds of micro-steps of these costs; None before the first was learned."""
        weight, cost, seconds, squares, products = self._sums
        if not squares:
            return None
        spread = weight * squares - cost * cost
        # costs that hardly differ say nothing about the overhead
        rate = (weight * products - cost * seconds) / spread if spread > 1e-6 * weight * squares else -1.0
        overhead = (seconds - rate * cost) / weight
        if rate < 0 or overhead < 0:
            rate, overhead = products / squares, 0.0
        return [rate * each + overhead for each in costs]

    def learn(self, costs: Sequence[float], seconds: Sequence[float]) -> None:
        """Take in the micro-steps of a step."""
        for index, old in enumerate(self._sums):
            self._sums[index] = FORGET * old
        for c, s in zip(costs, seconds, strict=True):
            for index, term in enumerate((1.0, c, s, c * c, c * s)):
                self._sums[index] += term
