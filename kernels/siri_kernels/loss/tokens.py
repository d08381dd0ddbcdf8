"""The loss between the GEMMs: from log-probs [N] to the loss, its metrics and the two coefficients dL/dlogp and
dL/dentropy of each row.

The derivatives are written out, so that a chunk of rows gets its coefficients as soon as its log-probs exist.
`reference.grpo_loss` is the specification.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from siri_kernels.loss.spec import LossSettings
from siri_kernels.metrics import in_order, mean_metrics
from siri_kernels.reference import LOG_RATIO_BOUND, sequence_ids
from siri_kernels.rows.protocol import Selection
from siri_kernels.validation import given


@dataclass(frozen=True)
class Tokens:
    """Per-token inputs of the loss, all [N] on one device; sequence fields are there where the loss looks at them."""

    advantages: Tensor
    weight: Tensor
    """m_i over every divisor: the loss is sum(weight * term)"""
    counted: Tensor
    old_logp: Tensor | None
    rollout_logp: Tensor | None
    cu_seqlens: Tensor | None = None
    seq: Tensor | None = None
    seq_count: Tensor | None = None
    """counted tokens of each sequence, at least 1, [S]"""

    def select(self, rows: Selection) -> Tokens:
        """The same for some rows only; not for sequence-level losses."""
        old_logp = None if self.old_logp is None else self.old_logp[rows]
        rollout_logp = None if self.rollout_logp is None else self.rollout_logp[rows]
        return Tokens(self.advantages[rows], self.weight[rows], self.counted[rows], old_logp, rollout_logp)

    def contiguous(self) -> Tokens:
        """Plain strides, for kernels that index by token."""
        return replace(
            self,
            advantages=self.advantages.contiguous(),
            weight=self.weight.contiguous(),
            counted=self.counted.contiguous(),
            old_logp=None if self.old_logp is None else self.old_logp.contiguous(),
            rollout_logp=None if self.rollout_logp is None else self.rollout_logp.contiguous(),
        )

    def sequence_sum(self, x: Tensor) -> Tensor:
        """Sum of x [N] over each sequence, [S]."""
        return segment_sum(x, given(self.cu_seqlens))

    def sequence_mean(self, x: Tensor) -> Tensor:
        """Sum of x [N] over a token's sequence by its counted tokens, [N]."""
        return (self.sequence_sum(x) / given(self.seq_count))[given(self.seq)]

    def restrict(self, computed: Tensor) -> Tokens:
        """Count only rows that were computed; divisors stay those of the whole batch."""
        return replace(self, counted=self.counted & computed)


def segment_sum(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Sum per sequence [S], in a fixed order (index_add_ on CUDA has none) and in fp64: the log ratios of 16K tokens
    cancel, and what is left is compared with clip ranges of 3e-4."""
    sums = torch.segment_reduce(x.double(), "sum", offsets=cu_seqlens.long(), axis=0, unsafe=True, initial=0)
    return sums.to(x.dtype)


def prepare(
    settings: LossSettings,
    n: int,
    advantages: Tensor,
    *,
    old_logp: Tensor | None,
    rollout_logp: Tensor | None,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    denominator: Tensor | None,
    dtype: torch.dtype,
) -> Tokens:
    """Spread per-sequence values to tokens and turn mask, aggregation and divisor into one weight per token."""
    device = advantages.device
    counted = torch.ones(n, dtype=torch.bool, device=device) if mask is None else mask
    m = counted.to(dtype)
    adv = advantages.to(dtype)
    seq = seq_count = None
    by_sequence = settings.loss == "gspo" or settings.aggregation == "seq_mean"
    if cu_seqlens is not None and (by_sequence or adv.numel() != n):
        seq = sequence_ids(cu_seqlens, n)
        if by_sequence:
            seq_count = segment_sum(m, cu_seqlens).clamp(min=1)
        if adv.numel() != n:
            adv = adv[seq]
    weight, divisor = m, denominator
    if settings.aggregation == "token_mean":
        divisor = m.sum() if divisor is None else divisor
    else:
        sequences = given(cu_seqlens).numel() - 1
        divisor = torch.full((), float(sequences), device=device) if divisor is None else divisor
        if settings.aggregation == "seq_mean":
            weight = m / given(seq_count)[given(seq)]
        elif settings.aggregation == "seq_mean_fixed":
            weight = m / given(settings.fixed_length)
    divisor = divisor.to(dtype)
    # nothing counted is a loss of 0; a divisor that is NaN or negative, unchecked on CUDA, must not look like that
    weight = torch.where(divisor == 0, 0.0, weight / torch.where(divisor < 0, torch.nan, divisor))
    old_logp = None if old_logp is None else old_logp.to(dtype)
    rollout_logp = None if rollout_logp is None else rollout_logp.to(dtype)
    return Tokens(adv, weight, counted, old_logp, rollout_logp, cu_seqlens, seq, seq_count)


@dataclass(frozen=True)
class Policy:
    """What both the coefficients and the summary need."""

    ratio: Tensor
    clipped: Tensor
    token_log_ratio: Tensor
    inside: Tensor
    """log ratio within its bound: outside of it the gradient is zero"""
    log_weight: Tensor | None
    raw_weight: Tensor | None
    weight: Tensor | None


def _policy(settings: LossSettings, tokens: Tokens, logp: Tensor) -> Policy:
    # logp - logp, not 0: a NaN log-prob must stay one
    behaviour = logp if tokens.old_logp is None else tokens.old_logp
    delta = logp - behaviour
    token_log_ratio = delta.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    log_ratio = token_log_ratio
    if settings.loss == "gspo":
        delta = tokens.sequence_mean(torch.where(tokens.counted, delta, 0.0))
        log_ratio = delta.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    ratio = log_ratio.exp()
    log_weight = raw_weight = weight = None
    if tokens.rollout_logp is not None:
        log_weight = behaviour - tokens.rollout_logp
        raw_weight = log_weight.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
        if settings.importance == "tis":
            weight = raw_weight.clamp(max=settings.importance_cap)
        elif settings.importance == "icepop":
            weight = torch.where(
                (raw_weight < settings.importance_low) | (raw_weight > settings.importance_cap), 0.0, raw_weight
            )
    inside = ~(delta.abs() > LOG_RATIO_BOUND)
    return Policy(
        ratio,
        ratio.clamp(settings.ratio_low, settings.ratio_high),
        token_log_ratio,
        inside,
        log_weight,
        raw_weight,
        weight,
    )


def coefficients(settings: LossSettings, tokens: Tokens, logp: Tensor) -> tuple[Tensor, Tensor | None]:
    """dL/dlogp [N] and dL/dentropy [N] (None when entropy_coef is 0); 0 in rows that do not count."""
    policy, adv = _policy(settings, tokens, logp), tokens.advantages
    if settings.loss == "cispo":
        slope = -policy.clipped * adv
    else:
        flat = (
            ((policy.ratio < settings.ratio_low) & (adv < 0))
            | ((policy.ratio > settings.ratio_high) & (adv > 0))
            | ~policy.inside
        )
        if settings.dual_clip is not None:
            flat |= (policy.ratio > settings.dual_clip) & (adv < 0)
        slope = torch.where(flat, 0.0, -policy.ratio * adv)
    weight, by_sequence = policy.weight, settings.loss == "gspo"
    if weight is not None and not by_sequence:
        slope = slope * weight
    g = torch.where(tokens.counted, tokens.weight * slope, 0.0)
    if by_sequence:
        # the slope of the sequence's ratio for all of its tokens; then each with the weight that is its own
        g = tokens.sequence_mean(g)
        g = torch.where(tokens.counted, g if weight is None else g * weight, 0.0)
    return g, torch.where(
        tokens.counted, -settings.entropy_coef * tokens.weight, 0.0
    ) if settings.entropy_coef else None


def summarize(
    settings: LossSettings, tokens: Tokens, logp: Tensor, entropy: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss (0-dim) and the metrics of METRIC_REDUCTION."""
    policy, adv = _policy(settings, tokens, logp), tokens.advantages
    if settings.loss == "cispo":
        term = -policy.clipped * adv * logp
    else:
        term = torch.maximum(-policy.ratio * adv, -policy.clipped * adv)
        if settings.dual_clip is not None:
            term = torch.where(adv < 0, torch.minimum(term, -settings.dual_clip * adv), term)
    if policy.weight is not None:
        term = policy.weight * term
    if settings.entropy_coef:
        term = term - settings.entropy_coef * given(entropy)
    loss = torch.where(tokens.counted, tokens.weight * term, 0.0).sum()

    per_token = {
        "clip_low_fraction": (policy.ratio < settings.ratio_low) & (adv < 0),
        "clip_high_fraction": (policy.ratio > settings.ratio_high) & (adv > 0),
        "approx_kl": policy.token_log_ratio.expm1() - policy.token_log_ratio,
        "logp_mean": logp,
    }
    finite = logp.isfinite()
    if entropy is not None:
        per_token["entropy_mean"] = entropy
        finite = finite & entropy.isfinite()
    if settings.dual_clip is not None:
        per_token["dual_clip_fraction"] = (policy.ratio > settings.dual_clip) & (adv < 0)
    maxima = {"ratio_max": policy.ratio}
    if policy.log_weight is not None:
        bounded = policy.log_weight.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
        per_token["mismatch_k1"] = -policy.log_weight
        per_token["mismatch_k3"] = bounded.expm1() - bounded
        per_token["importance_mean"] = torch.ones_like(logp) if policy.weight is None else policy.weight
        if settings.importance != "none":
            raw_weight = given(policy.raw_weight)
            outside = raw_weight > settings.importance_cap
            if settings.importance == "icepop":
                outside = outside | (raw_weight < settings.importance_low)
            per_token["importance_clipped_fraction"] = outside
        maxima["mismatch_max"] = policy.log_weight.abs()
    return loss, mean_metrics(per_token, maxima, tokens.counted, ~finite)


def gradient_rows(settings: LossSettings, tokens: Tokens) -> Tensor:
    """Rows whose coefficients can be non-zero, as an int64 index (a host sync on CUDA: for CPU tensors). NaN counts as
    non-zero."""
    possible = tokens.counted
    if not settings.entropy_coef:
        useful = tokens.counted & (tokens.advantages != 0)
        if settings.loss == "gspo":  # every counted token of a sequence moves its ratio
            useful = tokens.sequence_sum(useful.to(tokens.weight.dtype))[given(tokens.seq)] > 0
        possible = possible & useful
    return possible.nonzero().squeeze(1)


Finish = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""row statistics [4, n] -> logp, entropy, log-sum, each [n]"""


class Tally(Protocol):
    """Collects the chunks of one call: log-probs and coefficients as they come, loss and metrics at the end."""

    def add(self, rows: Selection, stats: Tensor, backward: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """log-sum, g and h of a chunk [n] from its row statistics [4, n]; its logp and entropy are written."""
        ...

    def result(self) -> tuple[Tensor, Tensor]:
        """The loss, and its metrics in the order of METRIC_REDUCTION, when every chunk was added."""
        ...


class TorchTally:
    """Collects the chunks of one call: log-probs and coefficients as they come, loss and metrics at the end."""

    def __init__(self, settings: LossSettings, tokens: Tokens, logp: Tensor, entropy: Tensor, finish: Finish):
        self.settings, self.tokens, self.logp, self.entropy, self.finish = settings, tokens, logp, entropy, finish

    def add(self, rows: Selection, stats: Tensor, backward: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """log-sum, g and h of a chunk [n] from its row statistics [4, n]; g and h None when there is no backward."""
        logp, entropy, log_sum = self.finish(stats)
        self.logp[rows], self.entropy[rows] = logp, entropy
        if not backward:
            return log_sum, None, None
        if self.settings.loss == "gspo":  # chunks end between sequences: the rows of each that is in this one are there
            g, h = (None if c is None else c[rows] for c in coefficients(self.settings, self.tokens, self.logp))
        else:
            g, h = coefficients(self.settings, self.tokens.select(rows), logp)
        return log_sum, g, h

    def result(self) -> tuple[Tensor, Tensor]:
        loss, metrics = summarize(self.settings, self.tokens, self.logp, self.entropy)
        return loss, in_order(metrics)
