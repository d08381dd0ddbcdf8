"""The specification, in plain torch: every fast path of this package is tested against these functions in fp64.

Nothing here is fast or small in memory: logits [N, V] are materialised and autograd does the rest. Sources: PPO's
clipped objective (arXiv 1707.06347), GRPO (2402.03300), DAPO's clip-higher and token mean (2503.14476), Dr. GRPO's
fixed length (2503.20783), GSPO (2507.18071), CISPO (2506.13585), dual clip (1912.09729), truncated importance sampling
(TIS) and IcePop for rollout / trainer mismatch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from siri_kernels.defaults import by_name
from siri_kernels.metrics import GrpoResult, mean_metrics
from siri_kernels.validation import given

LOG_RATIO_BOUND = 20.0
"""Log ratios of probabilities are clamped to +- this, in nats, here, on every path of the loss and in the trainer."""


def logits(
    hidden: Tensor,
    weight: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_dtype: str = "fp32",
) -> Tensor:
    """softcap(hidden @ weight.T + bias) / temperature as [N, V], computed in fp32, or in fp64 for fp64 inputs."""
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    with torch.autocast(hidden.device.type, enabled=False):
        z_NV = hidden.to(dtype) @ weight.to(dtype).T
    if bias is not None:
        z_NV = z_NV + bias.to(dtype)
    if logit_dtype == "bf16":  # the rollout's rounding grid; the gradient passes straight through
        z_NV = z_NV + (z_NV.detach().to(torch.bfloat16).to(dtype) - z_NV.detach())
    if softcap is not None:
        z_NV = softcap * torch.tanh(z_NV / softcap)
    return z_NV / (temperature.to(dtype)[:, None] if isinstance(temperature, Tensor) else temperature)


def logprob_and_entropy(z_NV: Tensor, target_ids: Tensor) -> tuple[Tensor, Tensor]:
    """log softmax(z)[target] and the entropy -sum p log p (0 log 0 = 0) of each row, in nats."""
    logp_NV = torch.log_softmax(z_NV, dim=-1)
    p_NV = logp_NV.exp()
    entropy_N = -torch.where(p_NV == 0, 0.0, p_NV * logp_NV.masked_fill(p_NV == 0, 0.0)).sum(-1)
    return logp_NV.gather(-1, target_ids.long()[:, None]).squeeze(-1), entropy_N


def sequence_ids(cu_seqlens: Tensor, n: int) -> Tensor:
    """Index of the sequence that holds token i, for a packed batch with offsets cu_seqlens [S+1]."""
    return (
        torch.searchsorted(cu_seqlens, torch.arange(n, device=cu_seqlens.device, dtype=cu_seqlens.dtype), right=True)
        - 1
    )


def with_slope(x: Tensor, slope: Tensor) -> Tensor:
    """x, of which whatever comes after has `slope` times the gradient."""

    def scaled(gradient: Tensor) -> Tensor:
        return slope * gradient

    x = x.clone()
    if x.requires_grad:
        x.register_hook(scaled)  # pyright: ignore[reportUnknownMemberType]
    return x


def grpo_loss(
    logp: Tensor,
    entropy: Tensor | None,
    advantages: Tensor,
    *,
    old_logp: Tensor | None = None,
    rollout_logp: Tensor | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    loss: str = "grpo",
    clip_low: float | str | None = "auto",
    clip_high: float | str | None = "auto",
    dual_clip: float | None = None,
    importance: str = "none",
    importance_low: float = 0.5,
    importance_cap: float | str = "auto",
    aggregation: str = "auto",
    denominator: float | Tensor | None = None,
    fixed_length: float | None = None,
    entropy_coef: float = 0.0,
    computed: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of already computed log-probs, differentiable by autograd, and its metrics. `computed` [N] bool: rows
    that exist at all. What is "auto" is what the papers of loss and importance have."""
    meant = by_name(loss, importance)
    low: float | None = meant["clip_low"] if isinstance(clip_low, str) else clip_low
    high: float | None = meant["clip_high"] if isinstance(clip_high, str) else clip_high
    cap: float = meant["importance_cap"] if isinstance(importance_cap, str) else importance_cap
    aggregation = meant["aggregation"] if aggregation == "auto" else aggregation
    n = logp.numel()
    counted = torch.ones(n, dtype=torch.bool, device=logp.device) if mask is None else mask
    m = counted.to(logp.dtype)
    computed = torch.ones_like(counted) if computed is None else computed
    seq = None if cu_seqlens is None else sequence_ids(cu_seqlens, n)
    n_seq = 0 if cu_seqlens is None else cu_seqlens.numel() - 1

    def per_sequence_sum(x: Tensor) -> Tensor:
        return x.new_zeros(n_seq).index_add(0, given(seq), x)

    adv = advantages.to(logp.dtype)
    if adv.numel() != n:
        adv = adv[seq]

    # log ratio, token by token; pi_old = pi when old_logp is None, so that the ratio is 1 and its gradient is that of
    # logp
    behaviour = logp.detach() if old_logp is None else old_logp.to(logp.dtype)
    weight = torch.ones_like(logp)
    mismatch = bounded = raw_weight = torch.zeros_like(logp)
    if rollout_logp is not None:
        mismatch = behaviour.detach() - rollout_logp.to(logp.dtype)
        bounded = mismatch.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
        raw_weight = bounded.exp()
        if importance == "tis":
            weight = raw_weight.clamp(max=cap)
        elif importance == "icepop":
            weight = torch.where((raw_weight < importance_low) | (raw_weight > cap), 0.0, raw_weight)

    token_log_ratio = (logp - behaviour).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    log_ratio = token_log_ratio
    if loss == "gspo":
        # the ratio is the sequence's, a weight is a token's: it scales how that token's log-prob moves the ratio
        delta = torch.where(counted & computed, with_slope(logp, weight) - behaviour, 0.0)
        log_ratio = (per_sequence_sum(delta) / per_sequence_sum(m).clamp(min=1)).clamp(
            -LOG_RATIO_BOUND, LOG_RATIO_BOUND
        )[seq]
    ratio = log_ratio.exp()
    least = -torch.inf if low is None else 1 - low
    most = torch.inf if high is None else 1 + high
    clipped = ratio.clamp(least, most)

    if loss == "cispo":
        policy = -clipped.detach() * adv * logp
    else:
        policy = torch.maximum(-ratio * adv, -clipped * adv)
        if dual_clip is not None:
            policy = torch.where(adv < 0, torch.minimum(policy, -dual_clip * adv), policy)

    # gspo's slope has its weight already
    term = policy + (weight - 1) * policy.detach() if loss == "gspo" else weight * policy
    if entropy_coef:
        term = term - entropy_coef * given(entropy)

    # m_i / divisor, so that the loss is one weighted sum
    if aggregation == "token_mean":
        token_weight, divisor = m, m.sum()
    else:
        token_weight, divisor = m, torch.as_tensor(float(n_seq), device=m.device)
        if aggregation == "seq_mean":
            token_weight = m / per_sequence_sum(m).clamp(min=1)[seq]
        elif aggregation == "seq_mean_fixed":
            token_weight = m / given(fixed_length)
    if denominator is not None:
        divisor = torch.as_tensor(denominator, device=m.device)
    divisor = divisor.to(m.dtype)
    token_weight = torch.where(divisor == 0, 0.0, token_weight / torch.where(divisor < 0, torch.nan, divisor))
    counted = counted & computed
    total = torch.where(counted, token_weight * term, 0.0).sum()

    with torch.no_grad():
        per_token: dict[str, Tensor] = {
            "clip_low_fraction": (ratio < least) & (adv < 0),
            "clip_high_fraction": (ratio > most) & (adv > 0),
            "approx_kl": token_log_ratio.expm1() - token_log_ratio,
            "logp_mean": logp,
        }
        if entropy is not None:
            per_token["entropy_mean"] = entropy
        if dual_clip is not None:
            per_token["dual_clip_fraction"] = (ratio > dual_clip) & (adv < 0)
        maxima = {"ratio_max": ratio}
        if rollout_logp is not None:
            per_token["mismatch_k1"] = -mismatch
            per_token["mismatch_k3"] = bounded.expm1() - bounded
            per_token["importance_mean"] = weight
            if importance != "none":
                outside = raw_weight > cap
                per_token["importance_clipped_fraction"] = (
                    outside | (raw_weight < importance_low) if importance == "icepop" else outside
                )
            maxima["mismatch_max"] = mismatch.abs()
        finite = logp.isfinite() if entropy is None else logp.isfinite() & entropy.isfinite()
        metrics = mean_metrics(per_token, maxima, counted, ~finite)
    return total, metrics


def linear_grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    target_ids: Tensor,
    advantages: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_dtype: str = "fp32",
    keep: Tensor | None = None,
    forward_all: bool = True,
    **loss_options: Any,
) -> GrpoResult:
    """`siri_kernels.linear_grpo_loss` by autograd over full logits; `keep` [K] rows alone carry a gradient."""
    z_NV = logits(hidden, weight, temperature=temperature, bias=bias, softcap=softcap, logit_dtype=logit_dtype)
    logp, entropy = logprob_and_entropy(z_NV, target_ids)
    computed = None
    if keep is not None:
        kept = torch.zeros(logp.numel(), dtype=torch.bool, device=logp.device).index_fill(0, keep.long(), True)
        logp, entropy = torch.where(kept, logp, logp.detach()), torch.where(kept, entropy, entropy.detach())
        if not forward_all:
            computed = kept
            logp, entropy = logp.masked_fill(~kept, torch.nan), entropy.masked_fill(~kept, torch.nan)
    total, metrics = grpo_loss(logp, entropy, advantages, computed=computed, **loss_options)
    return GrpoResult(total, logp.detach(), entropy.detach(), metrics)
