"""The operators of the loss: from hidden states, and from log-probs that exist."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from siri_kernels import chunked
from siri_kernels.loss.spec import LossSettings, metric_names
from siri_kernels.loss.tokens import coefficients, prepare, summarize
from siri_kernels.ops.operator import operator
from siri_kernels.ops.settings import GrpoSettings, TokenSettings
from siri_kernels.validation import check_values, values_are_checked


def padded(d_weight: Tensor | None, frozen: int) -> Tensor | None:
    """Zeros for the leading columns of the weight that are frozen (an adapter's columns follow them)."""
    return F.pad(d_weight, (frozen, 0)) if frozen and d_weight is not None else d_weight


def scaled(gradient: Tensor, upstream: Tensor, dtype: torch.dtype | None) -> Tensor | None:
    """A gradient times that of the loss, in the dtype of its tensor; None where it was not formed."""
    return None if gradient.numel() == 0 and gradient.dim() == 1 else (gradient * upstream).to(dtype)


def stacked(metrics: dict[str, Tensor], settings: LossSettings, rollout: bool, entropy: bool) -> Tensor:
    """[M], in the order of `metric_names`."""
    return torch.stack([metrics[name] for name in metric_names(settings, rollout, entropy)])


class Grpo(NamedTuple):
    """metrics [M] in the order of `metric_names`; gradients of the loss, empty when not needed."""

    loss: Tensor
    logp: Tensor
    entropy: Tensor
    metrics: Tensor
    d_hidden: Tensor
    d_weight: Tensor
    d_bias: Tensor


@operator("siri_kernels::linear_grpo")
def linear_grpo(
    *,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target_ids: Tensor,
    advantages: Tensor,
    old_logp: Tensor | None,
    rollout_logp: Tensor | None,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    keep: Tensor | None,
    temperature_N: Tensor | None,
    denominator: Tensor | None,
    main_grad: Tensor | None,
    keep_lengths: Tensor | None,
    settings: GrpoSettings,
) -> Grpo:
    """The loss of hidden states, its gradients formed on the way."""
    placement = settings.placement
    if values_are_checked(hidden):
        vocab = weight.shape[0] if placement.whole else None
        check_values(
            target_ids, vocab, temperature=temperature_N, cu_seqlens=cu_seqlens, keep=keep, denominator=denominator
        )
    tokens = prepare(
        settings.loss,
        hidden.shape[0],
        advantages,
        old_logp=old_logp,
        rollout_logp=rollout_logp,
        mask=mask,
        cu_seqlens=cu_seqlens,
        denominator=denominator,
        dtype=chunked.compute_dtype(hidden.dtype),
    )
    loss, logp, entropy, metrics, d_hidden, d_weight, d_bias = chunked.grpo(
        placement.impl,
        hidden,
        settings.head.head(weight, bias, temperature_N),
        target_ids,
        settings.loss,
        tokens,
        keep=keep,
        keep_lengths=keep_lengths,
        forward_all=placement.forward_all,
        budget=placement.budget,
        shard=placement.shard(),
        needs=settings.needs,
    )
    metrics_M = stacked(metrics, settings.loss, rollout_logp is not None, entropy=True)
    return Grpo(loss, logp, entropy, metrics_M, d_hidden, d_weight, d_bias)


@linear_grpo.register_fake
def _(*, hidden: Tensor, weight: Tensor, rollout_logp: Tensor | None, settings: GrpoSettings, **_: Any) -> Grpo:
    dtype, needs = chunked.compute_dtype(hidden.dtype), settings.needs

    def new(*shape: int) -> Tensor:
        return hidden.new_empty(shape, dtype=dtype)

    return Grpo(
        loss=new(),
        logp=new(hidden.shape[0]),
        entropy=new(hidden.shape[0]),
        metrics=new(len(metric_names(settings.loss, rollout_logp is not None, entropy=True))),
        d_hidden=torch.empty_like(hidden) if needs.hidden else hidden.new_empty(0),
        d_weight=new(weight.shape[0], weight.shape[1] - needs.frozen) if needs.weight else new(0),
        d_bias=new(weight.shape[0]) if needs.bias else new(0),
    )


def _save_grpo(
    ctx: Any,
    outputs: Grpo,
    *,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    main_grad: Tensor | None,
    settings: GrpoSettings,
    **_: Any,
) -> None:
    ctx.save_for_backward(outputs.d_hidden, outputs.d_weight, outputs.d_bias)
    ctx.main_grad, ctx.frozen = main_grad, settings.needs.frozen
    ctx.dtypes = {"hidden": hidden.dtype, "weight": weight.dtype, "bias": None if bias is None else bias.dtype}


def _grpo_backward(ctx: Any, upstream: Any, needed: dict[str, bool]) -> dict[str, Tensor | None]:
    if upstream.loss is None:
        return {}
    d_hidden, d_weight, d_bias = ctx.saved_tensors
    gradients = {
        "hidden": scaled(d_hidden, upstream.loss, ctx.dtypes["hidden"]),
        "bias": scaled(d_bias, upstream.loss, ctx.dtypes["bias"]),
    }
    if ctx.main_grad is None:
        gradients["weight"] = padded(scaled(d_weight, upstream.loss, ctx.dtypes["weight"]), ctx.frozen)
    elif needed["weight"]:
        ctx.main_grad.addcmul_(d_weight, upstream.loss)
    return gradients


linear_grpo.register_autograd(_grpo_backward, _save_grpo)


class TokenLoss(NamedTuple):
    """metrics [M] in the order of `metric_names`; dL/dlogp [N], and dL/dentropy [N], empty without entropy_coef."""

    loss: Tensor
    metrics: Tensor
    d_logp: Tensor
    d_entropy: Tensor


@operator("siri_kernels::grpo_tokens")
def grpo_tokens(
    *,
    logp: Tensor,
    entropy: Tensor | None,
    advantages: Tensor,
    old_logp: Tensor | None,
    rollout_logp: Tensor | None,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    computed: Tensor | None,
    denominator: Tensor | None,
    settings: TokenSettings,
) -> TokenLoss:
    """The loss of given log-probs [N]; computed [N] bool: the rows that exist."""
    if values_are_checked(logp):
        check_values(logp, None, cu_seqlens=cu_seqlens, denominator=denominator)
    dtype = chunked.compute_dtype(logp.dtype)
    tokens = prepare(
        settings.loss,
        logp.numel(),
        advantages,
        old_logp=old_logp,
        rollout_logp=rollout_logp,
        mask=mask,
        cu_seqlens=cu_seqlens,
        denominator=denominator,
        dtype=dtype,
    )
    if computed is not None:
        tokens = tokens.restrict(computed)
    logp, entropy = logp.to(dtype), None if entropy is None else entropy.to(dtype)
    g, h = coefficients(settings.loss, tokens, logp)
    loss, metrics = summarize(settings.loss, tokens, logp, entropy)
    metrics_M = stacked(metrics, settings.loss, rollout_logp is not None, entropy is not None)
    return TokenLoss(loss, metrics_M, g, logp.new_empty(0) if h is None else h)


@grpo_tokens.register_fake
def _(
    *, logp: Tensor, entropy: Tensor | None, rollout_logp: Tensor | None, settings: TokenSettings, **_: Any
) -> TokenLoss:
    def new(*shape: int) -> Tensor:
        return logp.new_empty(shape, dtype=chunked.compute_dtype(logp.dtype))

    names = metric_names(settings.loss, rollout_logp is not None, entropy is not None)
    n = logp.numel()
    return TokenLoss(new(), new(len(names)), new(n), new(n if settings.loss.entropy_coef else 0))


def _save_tokens(ctx: Any, outputs: TokenLoss, *, logp: Tensor, entropy: Tensor | None, **_: Any) -> None:
    ctx.save_for_backward(outputs.d_logp, outputs.d_entropy)
    ctx.dtypes = {"logp": logp.dtype, "entropy": None if entropy is None else entropy.dtype}


def _tokens_backward(ctx: Any, upstream: Any, needed: dict[str, bool]) -> dict[str, Tensor | None]:
    if upstream.loss is None:
        return {}
    g, h = ctx.saved_tensors
    gradients: dict[str, Tensor | None] = {"logp": (g * upstream.loss).to(ctx.dtypes["logp"])}
    if needed["entropy"] and h.numel():
        gradients["entropy"] = (h * upstream.loss).to(ctx.dtypes["entropy"])
    return gradients


grpo_tokens.register_autograd(_tokens_backward, _save_tokens)
