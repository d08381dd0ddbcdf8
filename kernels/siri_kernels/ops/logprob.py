"""The operators of differentiable log-probs, from hidden states and from logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from siri_kernels import chunked, gemm
from siri_kernels import logits as given_logits
from siri_kernels.chunked import Needs
from siri_kernels.ops.grpo import padded
from siri_kernels.ops.operator import operator
from siri_kernels.ops.settings import LogitsSettings, LogprobBackwardSettings, LogprobSettings
from siri_kernels.validation import check_values, values_are_checked


class Logprob(NamedTuple):
    """Each [N]; maximum and log_sum = log sum exp(z - maximum) are those of the row's logits z."""

    logp: Tensor
    entropy: Tensor
    maximum: Tensor
    log_sum: Tensor


class LinearLogprob(NamedTuple):
    """Each [N]; what `Logprob` has, and the offset of `rows.anchored`, or about the log-sum-exp, in units of log2."""

    logp: Tensor
    entropy: Tensor
    maximum: Tensor
    log_sum: Tensor
    offset: Tensor


def empty_rows(like: Tensor, count: int) -> list[Tensor]:
    n, dtype = like.shape[0], chunked.compute_dtype(like.dtype)
    return [like.new_empty(n, dtype=dtype) for _ in range(count)]


def upstream_of(upstream: Any) -> dict[str, Tensor | None] | None:
    """dL/dlogp and dL/dentropy [N] for a backward operator; None where there is neither."""
    if upstream.logp is None and upstream.entropy is None:
        return None
    d_logp = torch.zeros_like(upstream.entropy) if upstream.logp is None else upstream.logp
    return {"d_logp": d_logp, "d_entropy": upstream.entropy}


@operator("siri_kernels::linear_logprob")
def linear_logprob(
    *,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target_ids: Tensor,
    anchor: Tensor | None,
    offset: Tensor | None,
    keep: Tensor | None,
    temperature_N: Tensor | None,
    main_grad: Tensor | None,
    settings: LogprobSettings,
) -> LinearLogprob:
    """Of hidden states; main_grad is for the backward."""
    placement = settings.placement
    if values_are_checked(hidden):
        vocab = weight.shape[0] if placement.whole else None
        check_values(target_ids, vocab, temperature=temperature_N, keep=keep)
    return LinearLogprob(
        *chunked.logprob(
            placement.impl,
            hidden,
            settings.head.head(weight, bias, temperature_N),
            target_ids,
            anchor=anchor,
            offset=offset,
            keep=keep,
            forward_all=placement.forward_all,
            budget=placement.budget,
            shard=placement.shard(),
        )
    )


@linear_logprob.register_fake
def _(*, hidden: Tensor, **_: Any) -> LinearLogprob:
    return LinearLogprob(*empty_rows(hidden, 5))


class LinearGradients(NamedTuple):
    """Empty when not needed."""

    d_hidden: Tensor
    d_weight: Tensor
    d_bias: Tensor


@operator("siri_kernels::linear_logprob_backward")
def linear_logprob_backward(
    *,
    d_logp: Tensor,
    d_entropy: Tensor | None,
    logp: Tensor,
    entropy: Tensor,
    maximum: Tensor,
    log_sum: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target_ids: Tensor,
    keep: Tensor | None,
    temperature_N: Tensor | None,
    settings: LogprobBackwardSettings,
) -> LinearGradients:
    """dX, dW and dbias; dW in fp32 when it goes into a main_grad."""
    return LinearGradients(
        *chunked.logprob_backward(
            settings.placement.impl,
            d_logp,
            d_entropy,
            hidden,
            settings.head.head(weight, bias, temperature_N),
            target_ids,
            (logp, entropy, maximum, log_sum),
            keep=keep,
            budget=settings.placement.budget,
            shard=settings.placement.shard(),
            needs=settings.needs,
            weight_dtype=torch.float32 if settings.fp32_weight else weight.dtype,
        )
    )


@linear_logprob_backward.register_fake
def _(
    *, hidden: Tensor, weight: Tensor, bias: Tensor | None, settings: LogprobBackwardSettings, **_: Any
) -> LinearGradients:
    needs = settings.needs
    shape = (weight.shape[0], weight.shape[1] - needs.frozen) if needs.weight else (0,)
    dtype = torch.float32 if settings.fp32_weight and needs.weight else weight.dtype
    return LinearGradients(
        d_hidden=hidden.new_empty(hidden.shape if needs.hidden else 0),
        d_weight=weight.new_empty(shape, dtype=dtype),
        d_bias=bias.new_empty(bias.shape) if needs.bias and bias is not None else weight.new_empty(0),
    )


KEPT = ("hidden", "weight", "bias", "target_ids", "keep", "temperature_N")


def _save_logprob(
    ctx: Any, outputs: LinearLogprob, *, main_grad: Tensor | None, settings: LogprobSettings, **tensors: Any
) -> None:
    of_rows = (getattr(outputs, name) for name in Logprob._fields)
    ctx.save_for_backward(*of_rows, *(tensors[name] for name in KEPT))
    ctx.settings, ctx.main_grad = settings, main_grad


def _logprob_backward(ctx: Any, upstream: Any, needed: dict[str, bool]) -> dict[str, Tensor | None]:
    of_rows = upstream_of(upstream)
    if of_rows is None:
        return {}
    settings: LogprobSettings = ctx.settings
    needs = Needs(needed["hidden"], needed["weight"], needed["bias"], settings.frozen)
    main_grad: Tensor | None = ctx.main_grad if needs.weight else None
    tensors = dict(zip((*Logprob._fields, *KEPT), ctx.saved_tensors, strict=True))
    gradients = linear_logprob_backward(
        **of_rows,
        **tensors,
        settings=LogprobBackwardSettings(settings.head, settings.placement, needs, fp32_weight=main_grad is not None),
    )
    if main_grad is not None:
        main_grad.add_(gradients.d_weight)
    return {
        "hidden": gradients.d_hidden if needs.hidden else None,
        "weight": padded(gradients.d_weight, needs.frozen) if needs.weight and main_grad is None else None,
        "bias": gradients.d_bias if needs.bias else None,
    }


linear_logprob.register_autograd(_logprob_backward, _save_logprob)


def scale_of(settings: LogitsSettings, temperature_N: Tensor | None, logits: Tensor) -> float | Tensor:
    """The temperature, a number or [N]."""
    return settings.temperature if temperature_N is None else temperature_N.to(chunked.compute_dtype(logits.dtype))


@operator("siri_kernels::logits_logprob")
def logits_logprob(
    *, logits: Tensor, target_ids: Tensor, temperature_N: Tensor | None, settings: LogitsSettings
) -> Logprob:
    """Of logits [N, V]."""
    if values_are_checked(logits):
        check_values(target_ids, logits.shape[1], temperature=temperature_N)
    temperature, budget = scale_of(settings, temperature_N, logits), chunked.budget_bytes("fast", logits.device)
    with gemm.surroundings(logits):
        return Logprob(*given_logits.logits_logprob(settings.impl, logits, target_ids, temperature, budget=budget))


@logits_logprob.register_fake
def _(*, logits: Tensor, **_: Any) -> Logprob:
    return Logprob(*empty_rows(logits, 4))


class LogitsGradient(NamedTuple):
    """[N, V]"""

    d_logits: Tensor


@operator("siri_kernels::logits_logprob_backward")
def logits_logprob_backward(
    *,
    d_logp: Tensor,
    d_entropy: Tensor | None,
    logp: Tensor,
    entropy: Tensor,
    maximum: Tensor,
    log_sum: Tensor,
    logits: Tensor,
    target_ids: Tensor,
    temperature_N: Tensor | None,
    settings: LogitsSettings,
) -> LogitsGradient:
    """dL/dlogits."""
    temperature, budget = scale_of(settings, temperature_N, logits), chunked.budget_bytes("fast", logits.device)
    saved = (logp, entropy, maximum, log_sum)
    with gemm.surroundings(logits):
        return LogitsGradient(
            given_logits.logits_logprob_backward(
                settings.impl, d_logp, d_entropy, logits, target_ids, temperature, saved, budget=budget
            )
        )


@logits_logprob_backward.register_fake
def _(*, logits: Tensor, **_: Any) -> LogitsGradient:
    return LogitsGradient(logits.new_empty(logits.shape))


def _save_logits(
    ctx: Any,
    outputs: Logprob,
    *,
    logits: Tensor,
    target_ids: Tensor,
    temperature_N: Tensor | None,
    settings: LogitsSettings,
) -> None:
    ctx.save_for_backward(*outputs, logits, target_ids, temperature_N)
    ctx.settings = settings


def _logits_backward(ctx: Any, upstream: Any, needed: dict[str, bool]) -> dict[str, Tensor | None]:
    of_rows = upstream_of(upstream)
    if of_rows is None or not needed["logits"]:
        return {}
    names = (*Logprob._fields, "logits", "target_ids", "temperature_N")
    tensors = dict(zip(names, ctx.saved_tensors, strict=True))
    return {"logits": logits_logprob_backward(**of_rows, **tensors, settings=ctx.settings).d_logits}


logits_logprob.register_autograd(_logits_backward, _save_logits)
