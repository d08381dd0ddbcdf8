"""The policy losses of given log-probs that `linear_grpo_loss` does not have: a KL term against a reference model, SAPO
(arXiv 2511.20347), LUSPO and VESPO, in Liger's normalisations."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def policy_loss(
    s: Any,
    logp: Tensor,
    old: Tensor,
    reference: Tensor,
    mask: Tensor,
    advantages: Tensor,
    weights: Tensor,
    divisor: float | Tensor,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(loss, metrics). s holds the settings (`LigerFusedLinearGRPOLoss`); log-probs and mask [B, T], advantages [B, 1],
    weights [B, 1] or [B, T] multiply the policy term; metrics are [mean KL if s.beta, clipped fraction].

    LUSPO whose terms are [B, T] reads the log-probs outside mask as well (`luspo_counts_padding`)."""
    scored = torch.ones_like(mask) if luspo_counts_padding(s, weights) else mask
    log_ratio = torch.where(mask if s.by_sequence else scored, logp - old, 0.0)
    lengths = mask.sum(1, keepdim=True)
    if s.by_sequence:
        log_ratio = log_ratio.sum(1, keepdim=True) / lengths.clamp(min=1)
    ratio = log_ratio.exp()
    low, high = 1 - s.low, 1 + s.high
    clipped = ((ratio < low) & (advantages < 0)) | ((ratio > high) & (advantages > 0))
    if s.loss_type == "cispo":
        clipped = (ratio > s.high) & (advantages > 0)
        term = -ratio.clamp(max=s.high).detach() * advantages * logp
    elif s.loss_type == "sapo":
        above, below = s.sapo
        gate = torch.where(advantages > 0, above, below)
        term = -torch.sigmoid(gate * (ratio - 1)) * 4 / gate * advantages
    elif s.loss_type == "vespo":
        term = -gamma_weight(s, log_ratio, mask, advantages, weights) * advantages * logp
    else:
        free = ratio if s.delta is None else ratio.clamp(max=s.delta)
        term = -torch.min(free * advantages, ratio.clamp(low, high) * advantages)
    if s.loss_type in ("sapo", "vespo"):
        clipped = torch.zeros_like(clipped)
    if s.loss_type != "vespo":
        term = term * weights

    metrics: list[Tensor] = []
    if s.beta:
        gap = torch.where(scored, reference - logp, 0.0)
        kl = (gap.exp() - gap - 1) * (ratio if s.use_bias_correction_kl else 1)
        term = term + s.beta * kl
        metrics.append((kl * mask).sum() / mask.sum().clamp(min=1))
    metrics.append((clipped * mask).sum() / mask.sum().clamp(min=1))

    if s.loss_type == "luspo":
        return (term * lengths).mean(), tuple(metrics)
    counted = term * mask
    if s.loss_type in ("grpo", "sapo"):
        counted = counted / lengths.clamp(min=1)
    elif s.loss_type == "dr_grpo":
        counted = counted / s.max_completion_length
    return counted.sum() / divisor, tuple(metrics)


def luspo_counts_padding(s: Any, weights: Tensor) -> bool:
    """Whether LUSPO's terms are one a token, [B, T]: Liger then averages them over padding, too."""
    return s.loss_type == "luspo" and (not s.by_sequence or bool(s.beta) or weights.shape[1] > 1)


@torch.no_grad()
def gamma_weight(s: Any, log_ratio: Tensor, mask: Tensor, advantages: Tensor, weights: Tensor) -> Tensor:
    """VESPO's weight e^l w^k e^(-l w) [B, 1] of the sequence ratio w; it is 1 at w = 1."""
    least = math.log(1e-8)
    log_w = (log_ratio.clamp(-20, 20) * mask).sum(1, keepdim=True)
    log_w = (log_w + weights.log().clamp(least, 20).sum(1, keepdim=True)).clamp(least, 20)
    (k, scale), (k_neg, scale_neg) = s.vespo
    k = torch.where(advantages >= 0, k, k_neg)
    scale = torch.where(advantages >= 0, scale, scale_neg).clamp(min=1e-4)
    return (scale + k * log_w - scale * log_w.exp()).exp().nan_to_num(0.0, 0.0, 0.0)
