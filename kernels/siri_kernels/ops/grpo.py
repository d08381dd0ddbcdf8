"""The torch.library operators of the loss: opaque to torch.compile, with fake kernels and autograd formulas.

Annotations are evaluated by `custom_op`, so this file does without postponed ones.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from siri_kernels import chunked
from siri_kernels.chunked import make_head
from siri_kernels.loss.tokens import LossSpec, coefficients, metric_names, prepare, summarize
from siri_kernels.sharding import Shard, resolve_group
from siri_kernels.validation import check_values, values_are_checked


def padded(d_weight: Tensor | None, frozen: int) -> Tensor | None:
    """Zeros for the leading columns of the weight that are frozen (an adapter's columns follow them)."""
    return F.pad(d_weight, (frozen, 0)) if frozen and d_weight is not None else d_weight


def scaled(gradient: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor | None:
    return None if gradient.numel() == 0 and gradient.dim() == 1 else (gradient * upstream).to(dtype)


@torch.library.custom_op("siri_kernels::linear_grpo", mutates_args=())
def linear_grpo(
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
    temperature: float,
    softcap: float | None,
    logit_dtype: str,
    loss: str,
    clip_low: float | None,
    clip_high: float | None,
    dual_clip: float | None,
    importance: str,
    importance_low: float,
    importance_cap: float,
    aggregation: str,
    fixed_length: float | None,
    entropy_coef: float,
    forward_all: bool,
    budget: int,
    vocab_start: int,
    columns: int,
    group: str | None,
    impl: str,
    frozen: int,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """loss, logp [N], entropy [N], metrics [M] (in the order of `metric_names`), and the loss's gradients, empty when
    not needed."""
    if values_are_checked(hidden):
        vocab = weight.shape[0] if group is None else None
        check_values(
            target_ids, vocab, temperature=temperature_N, cu_seqlens=cu_seqlens, keep=keep, denominator=denominator
        )
    spec = LossSpec(
        loss,
        clip_low,
        clip_high,
        dual_clip,
        importance,
        importance_low,
        importance_cap,
        aggregation,
        fixed_length,
        entropy_coef,
    )
    tokens = prepare(
        spec,
        hidden.shape[0],
        advantages,
        old_logp=old_logp,
        rollout_logp=rollout_logp,
        mask=mask,
        cu_seqlens=cu_seqlens,
        denominator=denominator,
        dtype=chunked.compute_dtype(hidden.dtype),
    )
    value, logp, entropy, metrics, d_hidden, d_weight, d_bias = chunked.grpo(
        impl,
        hidden,
        make_head(weight, bias, temperature, temperature_N, softcap, logit_dtype),
        target_ids,
        spec,
        tokens,
        keep=keep,
        keep_lengths=keep_lengths,
        forward_all=forward_all,
        budget=budget,
        shard=Shard(vocab_start, resolve_group(group), columns),
        needs=chunked.Needs(need_hidden, need_weight, need_bias, frozen),
    )
    names = metric_names(spec, rollout_logp is not None, True)
    return value, logp, entropy, torch.stack([metrics[name] for name in names]), d_hidden, d_weight, d_bias


@linear_grpo.register_fake
def _(
    hidden,
    weight,
    bias,
    target_ids,
    advantages,
    old_logp,
    rollout_logp,
    mask,
    cu_seqlens,
    keep,
    temperature_N,
    denominator,
    main_grad,
    keep_lengths,
    *settings,
):
    dtype = chunked.compute_dtype(hidden.dtype)
    frozen, need_hidden, need_weight, need_bias = settings[-4:]
    spec = LossSpec(*settings[3:13])
    new = lambda *shape: hidden.new_empty(shape, dtype=dtype)  # noqa: E731
    return (
        new(),
        new(hidden.shape[0]),
        new(hidden.shape[0]),
        new(len(metric_names(spec, rollout_logp is not None, True))),
        torch.empty_like(hidden) if need_hidden else hidden.new_empty(0),
        new(weight.shape[0], weight.shape[1] - frozen) if need_weight else new(0),
        new(weight.shape[0]) if need_bias else new(0),
    )


def _grpo_context(ctx, inputs, output):
    ctx.main_grad, ctx.frozen = inputs[12], inputs[-4]
    ctx.dtypes = (inputs[0].dtype, inputs[1].dtype, None if inputs[2] is None else inputs[2].dtype)
    ctx.save_for_backward(*output[4:])
    ctx.n_inputs = len(inputs)
    ctx.set_materialize_grads(False)


def _grpo_backward(ctx, upstream, *_):
    gradients = [None] * ctx.n_inputs
    if upstream is not None:
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        gradients[0] = scaled(d_hidden, upstream, ctx.dtypes[0])
        if ctx.main_grad is None:
            gradients[1] = padded(scaled(d_weight, upstream, ctx.dtypes[1]), ctx.frozen)
        elif ctx.needs_input_grad[1]:
            ctx.main_grad.addcmul_(d_weight, upstream)
        gradients[2] = scaled(d_bias, upstream, ctx.dtypes[2])
    return tuple(gradients)


linear_grpo.register_autograd(_grpo_backward, setup_context=_grpo_context)


@torch.library.custom_op("siri_kernels::grpo_tokens", mutates_args=())
def grpo_tokens(
    logp: Tensor,
    entropy: Tensor | None,
    advantages: Tensor,
    old_logp: Tensor | None,
    rollout_logp: Tensor | None,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    computed: Tensor | None,
    denominator: Tensor | None,
    loss: str,
    clip_low: float | None,
    clip_high: float | None,
    dual_clip: float | None,
    importance: str,
    importance_low: float,
    importance_cap: float,
    aggregation: str,
    fixed_length: float | None,
    entropy_coef: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """loss, metrics [M], dL/dlogp [N] and dL/dentropy [N] (empty without entropy_coef) of given log-probs."""
    if values_are_checked(logp):
        check_values(logp, None, cu_seqlens=cu_seqlens, denominator=denominator)
    spec = LossSpec(
        loss,
        clip_low,
        clip_high,
        dual_clip,
        importance,
        importance_low,
        importance_cap,
        aggregation,
        fixed_length,
        entropy_coef,
    )
    dtype = chunked.compute_dtype(logp.dtype)
    tokens = prepare(
        spec,
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
    g, h = coefficients(spec, tokens, logp)
    value, metrics = summarize(spec, tokens, logp, entropy)
    names = metric_names(spec, rollout_logp is not None, entropy is not None)
    return value, torch.stack([metrics[name] for name in names]), g, logp.new_empty(0) if h is None else h


@grpo_tokens.register_fake
def _(logp, entropy, advantages, old_logp, rollout_logp, mask, cu_seqlens, computed, denominator, *settings):
    spec = LossSpec(*settings)
    new = lambda *shape: logp.new_empty(shape, dtype=chunked.compute_dtype(logp.dtype))  # noqa: E731
    names = metric_names(spec, rollout_logp is not None, entropy is not None)
    return new(), new(len(names)), new(logp.numel()), new(logp.numel() if spec.entropy_coef else 0)


def _tokens_context(ctx, inputs, output):
    ctx.save_for_backward(output[2], output[3])
    ctx.dtypes = (inputs[0].dtype, None if inputs[1] is None else inputs[1].dtype)
    ctx.set_materialize_grads(False)


def _tokens_backward(ctx, upstream, *_):
    if upstream is None:
        return (None,) * 19
    g, h = ctx.saved_tensors
    d_entropy = (
        (h * upstream).to(ctx.dtypes[1]) if ctx.needs_input_grad[1] and h.numel() == g.numel() and h.numel() else None
    )
    return ((g * upstream).to(ctx.dtypes[0]), d_entropy, *(None,) * 17)


grpo_tokens.register_autograd(_tokens_backward, setup_context=_tokens_context)
