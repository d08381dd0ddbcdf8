"""The operators of the loss: from hidden states, and from log-probs that exist."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from siri_kernels import chunked, gemm
from siri_kernels.gradients import late_weight_gradient
from siri_kernels.loss.tokens import coefficients, prepare, summarize
from siri_kernels.metrics import METRIC_REDUCTION, in_order
from siri_kernels.ops.operator import operator
from siri_kernels.ops.settings import GrpoSettings, ScaleSettings, TokenSettings, WeightSettings
from siri_kernels.rows.protocol import stored_width
from siri_kernels.validation import check_values, values_are_checked


def padded(d_weight: Tensor | None, frozen: int) -> Tensor | None:
    """Zeros for the leading columns of the weight that are frozen (an adapter's columns follow them)."""
    return F.pad(d_weight, (frozen, 0)) if frozen and d_weight is not None else d_weight


PIECE = 1024
"""Rows of dW that are narrowed at once on a CPU."""


class Scaled(NamedTuple):
    """Of the shape of the gradient."""

    scaled: Tensor


@operator("siri_kernels::scaled")
def scale(*, gradient: Tensor, upstream: Tensor, settings: ScaleSettings) -> Scaled:
    """A contiguous gradient times that of the loss [], in a narrower dtype."""
    dtype = getattr(torch, settings.dtype)
    if gradient.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        out = torch.empty(gradient.shape, dtype=dtype)  # by pieces: no second whole one in fp32
        for start in range(0, len(out), PIECE):
            out[start : start + PIECE].copy_(gradient[start : start + PIECE] * upstream)
        return Scaled(out)
    from siri_kernels.rows.scaling import scaled

    with gemm.surroundings(gradient):
        return Scaled(scaled(gradient, upstream, dtype))


@scale.register_fake
def _(*, gradient: Tensor, settings: ScaleSettings, **_: Any) -> Scaled:
    return Scaled(gradient.new_empty(gradient.shape, dtype=getattr(torch, settings.dtype)))


def scaled_gradient(gradient: Tensor, upstream: Tensor, dtype: torch.dtype | None) -> Tensor | None:
    """A gradient times that of the loss, in the dtype of its tensor; None where it was not formed."""
    if gradient.numel() == 0 and gradient.dim() == 1:
        return None
    if dtype in (None, gradient.dtype):
        return gradient * upstream
    return scale(gradient=gradient, upstream=upstream, settings=ScaleSettings(str(dtype).removeprefix("torch."))).scaled


class Grpo(NamedTuple):
    """metrics in the order of METRIC_REDUCTION; gradients of the loss, empty when not needed; e [n, columns] and
    factor [n], of which `linear_grpo_weight` makes dW, empty where d_weight is there."""

    loss: Tensor
    logp: Tensor
    entropy: Tensor
    metrics: Tensor
    d_hidden: Tensor
    d_weight: Tensor
    d_bias: Tensor
    e: Tensor
    factor: Tensor


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
    offset: Tensor | None,
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
    loss, logp, entropy, metrics, d_hidden, d_weight, d_bias, late = chunked.grpo(
        placement.impl,
        hidden,
        settings.head.head(weight, bias, temperature_N),
        target_ids,
        settings.loss,
        tokens,
        offset=offset,
        keep=keep,
        keep_lengths=keep_lengths,
        forward_all=placement.forward_all,
        budget=placement.budget,
        shard=placement.shard(),
        needs=settings.needs,
        late_weight=settings.late_weight,
    )
    return Grpo(loss, logp, entropy, metrics, d_hidden, d_weight, d_bias, *late)


@linear_grpo.register_fake
def _(
    *,
    hidden: Tensor,
    weight: Tensor,
    keep: Tensor | None,
    settings: GrpoSettings,
    **_: Any,
) -> Grpo:
    dtype, needs, late = chunked.compute_dtype(hidden.dtype), settings.needs, settings.late_weight
    kept = hidden.shape[0] if keep is None else keep.shape[0]

    def new(*shape: int) -> Tensor:
        return hidden.new_empty(shape, dtype=dtype)

    return Grpo(
        loss=new(),
        logp=new(hidden.shape[0]),
        entropy=new(hidden.shape[0]),
        metrics=new(len(METRIC_REDUCTION)),
        d_hidden=hidden.new_empty(hidden.shape if needs.hidden else 0),
        d_weight=new(weight.shape[0], weight.shape[1] - needs.frozen) if needs.weight and not late else new(0),
        d_bias=new(weight.shape[0]) if needs.bias else new(0),
        e=hidden.new_empty(kept, stored_width(weight.shape[0])) if late else hidden.new_empty(0),
        factor=new(kept if late else 0),
    )


def _save_grpo(
    ctx: Any,
    outputs: Grpo,
    *,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    keep: Tensor | None,
    main_grad: Tensor | None,
    settings: GrpoSettings,
    **_: Any,
) -> None:
    late = (outputs.e, outputs.factor, hidden, keep) if settings.late_weight else (None,) * 4
    ctx.save_for_backward(outputs.d_hidden, outputs.d_weight, outputs.d_bias, *late)
    ctx.main_grad, ctx.frozen, ctx.vocab = main_grad, settings.needs.frozen, weight.shape[0]
    ctx.plain = settings.placement.impl in chunked.PLAIN
    ctx.dtypes = {"hidden": hidden.dtype, "weight": weight.dtype, "bias": None if bias is None else bias.dtype}


def _grpo_backward(ctx: Any, upstream: Any, needed: dict[str, bool]) -> dict[str, Tensor | None]:
    if upstream.loss is None:
        return {}
    d_hidden, d_weight, d_bias, e, factor, hidden, keep = ctx.saved_tensors
    gradients = {
        "hidden": scaled_gradient(d_hidden, upstream.loss, ctx.dtypes["hidden"]),
        "bias": scaled_gradient(d_bias, upstream.loss, ctx.dtypes["bias"]),
    }
    if e is not None:
        if needed["weight"]:
            late = {"e": e, "factor": factor, "hidden": hidden, "upstream": upstream.loss, "keep": keep}
            d_weight = linear_grpo_weight(**late, settings=WeightSettings(ctx.vocab, ctx.frozen, ctx.plain)).d_weight
            gradients["weight"] = padded(d_weight, ctx.frozen)
    elif ctx.main_grad is None:
        gradients["weight"] = padded(scaled_gradient(d_weight, upstream.loss, ctx.dtypes["weight"]), ctx.frozen)
    elif needed["weight"]:
        ctx.main_grad.addcmul_(d_weight, upstream.loss)
    return gradients


linear_grpo.register_autograd(_grpo_backward, _save_grpo)


class WeightGradient(NamedTuple):
    """[V, D - frozen] in the dtype of hidden."""

    d_weight: Tensor


@operator("siri_kernels::linear_grpo_weight")
def linear_grpo_weight(
    *, e: Tensor, factor: Tensor, hidden: Tensor, upstream: Tensor, keep: Tensor | None, settings: WeightSettings
) -> WeightGradient:
    """dW of what `linear_grpo` left to the backward."""
    return WeightGradient(
        late_weight_gradient(
            e,
            factor,
            hidden,
            upstream,
            keep=keep,
            vocab=settings.vocab,
            frozen=settings.frozen,
            plain=settings.plain,
        )
    )


@linear_grpo_weight.register_fake
def _(*, hidden: Tensor, settings: WeightSettings, **_: Any) -> WeightGradient:
    return WeightGradient(hidden.new_empty(settings.vocab, hidden.shape[1] - settings.frozen))


class TokenLoss(NamedTuple):
    """metrics in the order of METRIC_REDUCTION; dL/dlogp [N], and dL/dentropy [N], empty without entropy_coef."""

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
    return TokenLoss(loss, in_order(metrics), g, logp.new_empty(0) if h is None else h)


@grpo_tokens.register_fake
def _(*, logp: Tensor, settings: TokenSettings, **_: Any) -> TokenLoss:
    def new(*shape: int) -> Tensor:
        return logp.new_empty(shape, dtype=chunked.compute_dtype(logp.dtype))

    n = logp.numel()
    return TokenLoss(new(), new(len(METRIC_REDUCTION)), new(n), new(n if settings.loss.entropy_coef else 0))


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
