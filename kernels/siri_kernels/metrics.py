"""What the loss returns: GrpoResult, its metrics, and how micro-batches are merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: How each metric combines over micro-batches; "mean" is a mean over counted tokens, so weight it with `tokens`.
METRIC_REDUCTION = {
    "tokens": "sum",  # counted tokens: mask is True and the row was computed
    "nonfinite_tokens": "sum",  # counted tokens whose log-prob or entropy is inf or NaN
    "clip_low_fraction": "mean",  # ratio < 1 - clip_low and advantage < 0
    "clip_high_fraction": "mean",  # ratio > 1 + clip_high and advantage > 0
    "dual_clip_fraction": "mean",  # ratio > dual_clip and advantage < 0; only with dual_clip
    "approx_kl": "mean",  # k3 estimate of KL(old || new): r - 1 - log r, token ratios
    "logp_mean": "mean",
    "entropy_mean": "mean",
    "ratio_max": "max",  # the ratio the loss used: per token, or per sequence for gspo
    # the following exist when rollout_logp is given; with w = exp(old_logp - rollout_logp)
    "mismatch_k1": "mean",  # rollout_logp - old_logp
    "mismatch_k3": "mean",  # w - 1 - log w
    "mismatch_max": "max",  # |old_logp - rollout_logp|
    "importance_mean": "mean",  # weight applied to the policy term
    "importance_clipped_fraction": "mean",  # tis: w above the cap; icepop: w outside [low, cap]
}


class GrpoResult(NamedTuple):
    """What a loss returns.

    loss: 0-dim fp32 (fp64 for fp64 inputs), differentiable. logp, entropy: [N], detached, in nats; NaN in rows that
    were not computed (forward_all=False). entropy is None in `grpo_loss` without entropy. metrics: name -> 0-dim device
    tensor, see METRIC_REDUCTION; reading one on the host is the caller's choice of when to synchronise.
    """

    loss: Tensor
    logp: Tensor
    entropy: Tensor | None
    metrics: dict[str, Tensor]


def mean_metrics(
    per_token: Mapping[str, Tensor], maxima: Mapping[str, Tensor], counted: Tensor, nonfinite: Tensor
) -> dict[str, Tensor]:
    """Means and maxima over the counted tokens; 0 where there is none. A NaN in a counted row shows in the metric."""
    dtype = next(iter(maxima.values())).dtype
    tokens = counted.sum().to(dtype)
    metrics = {"tokens": tokens, "nonfinite_tokens": (nonfinite & counted).sum().to(dtype)}
    for name, values in per_token.items():
        metrics[name] = torch.where(counted, values.to(dtype), 0.0).sum() / tokens.clamp(min=1)
    for name, values in maxima.items():
        masked = torch.where(counted, values, 0.0)
        metrics[name] = masked.amax() if masked.numel() else tokens.new_zeros(())
    return metrics


def in_order(metrics: Mapping[str, Tensor]) -> Tensor:
    """Metrics as one tensor, in the order of METRIC_REDUCTION; 0 for those that are not there."""
    nothing = metrics["tokens"].new_zeros(())
    return torch.stack([metrics.get(name, nothing) for name in METRIC_REDUCTION])


def merge_metrics(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Metrics of several micro-batches as if they had been one; stays on the device. An empty sequence is a
    ValueError."""
    if not parts:
        raise ValueError("merge_metrics: no metrics to merge; pass at least one result's metrics")
    tokens = torch.stack([metrics["tokens"] for metrics in parts])
    merged: dict[str, Tensor] = {}
    for name in parts[0]:
        values = torch.stack([metrics[name] for metrics in parts])
        reduction = METRIC_REDUCTION[name]
        if reduction == "sum":
            merged[name] = values.sum()
        elif reduction == "max":
            merged[name] = values.amax()
        else:
            merged[name] = (values * tokens).sum() / tokens.sum().clamp(min=1)
    return merged
