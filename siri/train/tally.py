"""What an update measures, gathered over its optimizer steps and joined over the ranks."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from siri_kernels import merge_metrics

from siri.runtime.ranks import Ranks
from siri.train.judge import Attempt
from siri.train.mismatch import Mismatch

ALWAYS = ("entropy_mean", "clip_low_fraction", "clip_high_fraction", "approx_kl", "ratio_max")
"""Metrics that every step has, null where nothing was trained on."""


class Tally:
    """The metrics of an update, gathered step by step."""

    def __init__(self, mismatch: Mismatch) -> None:
        self.mismatch = mismatch
        self.rows: list[dict[str, torch.Tensor]] = []
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.distances: list[float] = []
        """From the weights that sampled, of the mini-batches in which it is penalised."""
        self.skipped = 0

    def add(self, attempt: Attempt, sound: bool) -> None:
        """Count an optimizer step; one that is not sound was skipped."""
        self.rows += attempt.rows
        self.losses.append(attempt.loss)
        self.norms.append(attempt.grad_norm)
        self.skipped += not sound

    def metrics(self, ranks: Ranks) -> dict[str, Any]:
        """Those of all ranks, on each of them."""
        metrics = _merged(self.rows, ranks) | self.mismatch.metrics(ranks)
        metrics["loss"] = _mean([sum(shares) for shares in zip(*ranks.gather(self.losses), strict=True)])
        metrics["grad_norm"] = _mean(self.norms)
        metrics["skipped_updates"] = self.skipped
        if self.distances:
            metrics["policy_distance"] = _mean(self.distances)
        return metrics


def _merged(rows: Sequence[dict[str, torch.Tensor]], ranks: Ranks) -> dict[str, float]:
    """Token-weighted metrics over all micro-batches of all ranks."""
    mine = {name: value.item() for name, value in merge_metrics(rows).items()} if rows else {}
    everybody = [
        {name: torch.tensor(value, dtype=torch.float64) for name, value in row.items()}
        for row in ranks.gather(mine)
        if row
    ]
    metrics: dict[str, float] = dict.fromkeys(ALWAYS, math.nan)
    if everybody:
        metrics |= {name: value.item() for name, value in merge_metrics(everybody).items()}
    metrics["entropy"] = metrics.pop("entropy_mean", math.nan)
    return metrics


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
