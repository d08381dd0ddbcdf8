"""Accuracy at a mean response length, of checkpoints that one half of the problems chooses and the other reports."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Half = Mapping[str, Any]
"""Figures of a checkpoint on one half of the problems."""


def value_at(length: float) -> Callable[[Half], float]:
    """Accuracy of a model that may answer with `length` tokens in the mean: one that is longer gives no answer to a
    share of the prompts, which is what it can always do."""
    return lambda half: half["accuracy"] * min(1.0, length / half["tokens_mean"])


def crossed(evals: Sequence[Mapping[str, Any]], value: Callable[[Half], float]) -> float:
    """The value of the checkpoint that is best on one half of the problems, on the other half; mean of both ways."""
    total = 0.0
    for choosing in (0, 1):
        best = max(evals, key=lambda row: value(row["halves"][choosing]))
        total += value(best["halves"][1 - choosing])
    return total / 2


def mean_accuracy(evals: Sequence[Mapping[str, Any]], lengths: Sequence[float]) -> float:
    """Mean accuracy at the lengths, each of the checkpoint that is best there."""
    return sum(crossed(evals, value_at(length)) for length in lengths) / len(lengths)


def best_within(evals: Sequence[Mapping[str, Any]], budget: float) -> float:
    """Accuracy of the best checkpoint within a budget (thousand training tokens), at whatever length."""
    within = [row for row in evals if row["train_tokens"] <= 1000 * budget]
    return crossed(within, lambda half: half["accuracy"])
