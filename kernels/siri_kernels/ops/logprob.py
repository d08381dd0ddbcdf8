"""The torch.library operators of differentiable log-probs, from hidden states and from logits.

Annotations are evaluated by `custom_op`, so this file does without postponed ones.
"""

import torch
from torch import Tensor

from siri_kernels import chunked, gemm
from siri_kernels.chunked import make_head
from siri_kernels.ops.grpo import padded
from siri_kernels.sharding import Shard, resolve_group
from siri_kernels.validation import check_values, values_are_checked


@torch.library.custom_op("siri_kernels::linear_logprob", mutates_args=())
def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target_ids: Tensor,
    anchor: Tensor | None,
    keep: Tensor | None,
    temperature_N: Tensor | None,
    main_grad: Tensor | None,
    temperature: float,
    softcap: float | None,
    logit_dtype: str,
    forward_all: bool,
    budget: int,
    vocab_start: int,
    columns: int,
    group: str | None,
    impl: str,
    frozen: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logp, entropy, row maximum and log sum exp(z - maximum), each [N]."""
    if values_are_checked(hidden):
        check_values(target_ids, weight.shape[0] if group is None else None, temperature=temperature_N, keep=keep)
    return chunked.logprob(
        impl,
        hidden,
        make_head(weight, bias, temperature, temperature_N, softcap, logit_dtype),
        target_ids,
        anchor=anchor,
        keep=keep,
        forward_all=forward_all,
        budget=budget,
        shard=Shard(vocab_start, resolve_group(group), columns),
    )


@linear_logprob.register_fake
def _(hidden, *_):
    return tuple(hidden.new_empty(hidden.shape[0], dtype=chunked.compute_dtype(hidden.dtype)) for _ in range(4))


@torch.library.custom_op("siri_kernels::linear_logprob_backward", mutates_args=())
def linear_logprob_backward(
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
    temperature: float,
    softcap: float | None,
    logit_dtype: str,
    budget: int,
    vocab_start: int,
    group: str | None,
    impl: str,
    frozen: int,
    fp32_weight: bool,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dX, dW and dbias, empty when not needed; dW in fp32 when it goes into a main_grad."""
    return chunked.logprob_backward(
        impl,
        d_logp,
        d_entropy,
        hidden,
        make_head(weight, bias, temperature, temperature_N, softcap, logit_dtype),
        target_ids,
        (logp, entropy, maximum, log_sum),
        keep=keep,
        budget=budget,
        shard=Shard(vocab_start, resolve_group(group)),
        needs=chunked.Needs(need_hidden, need_weight, need_bias, frozen),
        weight_dtype=torch.float32 if fp32_weight else weight.dtype,
    )


@linear_logprob_backward.register_fake
def _(d_logp, d_entropy, logp, entropy, maximum, log_sum, hidden, weight, bias, *settings):
    frozen, fp32_weight, need_hidden, need_weight, need_bias = settings[-5:]
    return (
        torch.empty_like(hidden) if need_hidden else hidden.new_empty(0),
        weight.new_empty(
            weight.shape[0], weight.shape[1] - frozen, dtype=torch.float32 if fp32_weight else weight.dtype
        )
        if need_weight
        else weight.new_empty(0),
        torch.empty_like(bias) if need_bias else weight.new_empty(0),
    )


def _logprob_context(ctx, inputs, output):
    hidden, weight, bias, target_ids, _anchor, keep, temperature_N, main_grad, *settings = inputs
    ctx.save_for_backward(*output, hidden, weight, bias, target_ids, keep, temperature_N)
    temperature, softcap, logit_dtype, _forward_all, budget, vocab_start, _columns, group, impl, frozen = settings
    ctx.settings = (temperature, softcap, logit_dtype, budget, vocab_start, group, impl, frozen)
    ctx.main_grad = main_grad
    ctx.set_materialize_grads(False)


def _logprob_backward(ctx, d_logp, d_entropy, *_):
    if d_logp is None and d_entropy is None:
        return (None,) * 18
    need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
    if d_logp is None:
        d_logp = torch.zeros_like(d_entropy)
    into_main = ctx.main_grad is not None and need_weight
    dx, dw, db = linear_logprob_backward(
        d_logp, d_entropy, *ctx.saved_tensors, *ctx.settings, into_main, need_hidden, need_weight, need_bias
    )
    if into_main:
        ctx.main_grad.add_(dw)
    return (
        dx if need_hidden else None,
        padded(dw, ctx.settings[-1]) if need_weight and not into_main else None,
        db if need_bias else None,
        *(None,) * 15,
    )


linear_logprob.register_autograd(_logprob_backward, setup_context=_logprob_context)


@torch.library.custom_op("siri_kernels::logits_logprob", mutates_args=())
def logits_logprob(
    logits: Tensor, target_ids: Tensor, temperature_N: Tensor | None, temperature: float, impl: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logp, entropy, row maximum and log sum exp(z - maximum), each [N], of logits [N, V]."""
    if values_are_checked(logits):
        check_values(target_ids, logits.shape[1], temperature=temperature_N)
    scale = temperature if temperature_N is None else temperature_N.to(chunked.compute_dtype(logits.dtype))
    with gemm.surroundings(logits):
        return chunked.logits_logprob(
            impl, logits, target_ids, scale, budget=chunked.budget_bytes("fast", logits.device)
        )


@logits_logprob.register_fake
def _(logits, *_):
    return tuple(logits.new_empty(logits.shape[0], dtype=chunked.compute_dtype(logits.dtype)) for _ in range(4))


@torch.library.custom_op("siri_kernels::logits_logprob_backward", mutates_args=())
def logits_logprob_backward(
    d_logp: Tensor,
    d_entropy: Tensor | None,
    logp: Tensor,
    entropy: Tensor,
    maximum: Tensor,
    log_sum: Tensor,
    logits: Tensor,
    target_ids: Tensor,
    temperature_N: Tensor | None,
    temperature: float,
    impl: str,
) -> Tensor:
    """dL/dlogits [N, V]."""
    scale = temperature if temperature_N is None else temperature_N.to(chunked.compute_dtype(logits.dtype))
    saved = (logp, entropy, maximum, log_sum)
    budget = chunked.budget_bytes("fast", logits.device)
    with gemm.surroundings(logits):
        return chunked.logits_logprob_backward(impl, d_logp, d_entropy, logits, target_ids, scale, saved, budget=budget)


@logits_logprob_backward.register_fake
def _(d_logp, d_entropy, logp, entropy, maximum, log_sum, logits, *_):
    return torch.empty_like(logits)


def _logits_context(ctx, inputs, output):
    logits, target_ids, temperature_N, ctx.temperature, ctx.impl = inputs
    ctx.save_for_backward(*output, logits, target_ids, temperature_N)
    ctx.set_materialize_grads(False)


def _logits_backward(ctx, d_logp, d_entropy, *_):
    if d_logp is None and d_entropy is None:
        return (None,) * 5
    if d_logp is None:
        d_logp = torch.zeros_like(d_entropy)
    return (
        logits_logprob_backward(d_logp, d_entropy, *ctx.saved_tensors, ctx.temperature, ctx.impl),
        None,
        None,
        None,
        None,
    )


logits_logprob.register_autograd(_logits_backward, setup_context=_logits_context)
