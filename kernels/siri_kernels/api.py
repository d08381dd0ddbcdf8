"""The public functions: check, choose an implementation, call the operator.

Shapes: N packed tokens, D hidden size, V vocabulary (or this rank's shard of it), S sequences. Every error is a
ValueError.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from siri_kernels import ops_grpo, ops_logprob, reference
from siri_kernels.chunked import budget_bytes, chunk_rows, compute_dtype
from siri_kernels.metrics import GrpoResult
from siri_kernels.sharding import group_name
from siri_kernels.token_loss import LossSpec, metric_names
from siri_kernels.validation import (
    IMPLS,
    check_head,
    check_loss,
    check_loss_tensors,
    check_placement,
    check_temperature,
    check_values,
    one_of,
    shape_of,
    tensor,
)


def choose(impl: str, like: Tensor) -> str:
    """The implementation that runs: "reference", "torch", or "fallback" (cuBLAS and the Triton row kernels)."""
    one_of("impl", impl, IMPLS)
    if impl == "anchored":
        raise ValueError("impl='anchored' (the anchored-exp GEMM) is not in this version; use 'triton' or 'auto'")
    if impl in ("reference", "torch"):
        return impl
    on_gpu = like.device.type == "cuda" and like.dtype != torch.float64
    if impl == "auto":
        return "fallback" if on_gpu else "torch"
    if like.dtype == torch.float64:
        raise ValueError(f"impl={impl!r} computes in fp32; use impl='torch' for fp64")
    if not on_gpu and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"impl={impl!r} needs CUDA tensors, got {like.device}; use impl='torch' or 'auto'")
    return "fallback"


def split_temperature(temperature: float | Tensor) -> tuple[float, Tensor | None]:
    return (1.0, temperature) if isinstance(temperature, Tensor) else (float(temperature), None)


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    target_ids: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    anchor: Tensor | None = None,
    return_entropy: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """log softmax(softcap(hidden @ weight.T + bias) / temperature)[target] without materialised logits, differentiable.

    hidden [N, D] and weight [V, D] in one of fp16, bf16, fp32, fp64; target_ids [N] int; temperature a number or [N];
    bias [V]. anchor [N], an approximate log-prob of the targets (the rollout's), is a hint for implementations that use
    one and never changes the result. Returns logp [N] in nats, fp32 (fp64 for fp64 inputs), and the entropy [N] of the
    same distribution with return_entropy. Gradients reach hidden, weight and bias; the backward recomputes logits in
    vocabulary chunks and writes each slice of dW once, in weight's dtype.
    """
    check_head(hidden, weight, target_ids, temperature=temperature, bias=bias, softcap=softcap)
    if anchor is not None and anchor.shape != target_ids.shape:
        raise ValueError(f"anchor must have shape {list(target_ids.shape)}, got {list(anchor.shape)}")
    impl = choose(impl, hidden)
    if impl == "reference":
        check_values(target_ids, weight.shape[0])
        z_NV = reference.logits(hidden, weight, temperature=temperature, bias=bias, softcap=softcap)
        logp, entropy = reference.logprob_and_entropy(z_NV, target_ids)
    else:
        scalar, per_row = split_temperature(temperature)
        budget = budget_bytes("fast", hidden.device)
        logp, entropy, _, _ = ops_logprob.linear_logprob(
            hidden, weight, bias, target_ids, None, per_row, None, scalar, softcap, "fp32", True, budget, 0, None, impl
        )
    return (logp, entropy) if return_entropy else logp


def linear_grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    target_ids: Tensor,
    advantages: Tensor,
    *,
    old_logp: Tensor | None = None,
    rollout_logp: Tensor | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    keep: Tensor | None = None,
    loss: str = "grpo",
    clip_low: float | None = 0.2,
    clip_high: float | None = 0.28,
    dual_clip: float | None = None,
    importance: str = "none",
    importance_low: float = 0.5,
    importance_cap: float = 2.0,
    aggregation: str = "token_mean",
    denominator: float | Tensor | None = None,
    fixed_length: float | None = None,
    temperature: float | Tensor = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    entropy_coef: float = 0.0,
    forward_all: bool = True,
    memory: str | int = "fast",
    logit_dtype: str = "fp32",
    vocab_start: int = 0,
    group=None,
    main_grad: Tensor | None = None,
    impl: str = "auto",
) -> GrpoResult:
    """LM head, log-prob, entropy and the clipped policy loss of a packed batch, in chunks of rows; gradients are formed
    in the forward.

    hidden [N, D], weight [V, D] (one float dtype), target_ids [N] int; advantages [N] per token, or [S] per sequence
    with cu_seqlens [S+1] (when N == S, per token). mask [N] bool, True = counts. old_logp [N]: log-probs before the
    first update; None = on-policy, the ratio is 1 and its gradient that of logp. rollout_logp [N]: the sampler's
    log-probs, for the importance weight and the mismatch metrics.

    Minimised: sum_i u_i (w_i t_i - entropy_coef H_i) over counted tokens, t = -min(r A, clip(r, 1 - clip_low, 1 +
    clip_high) A) ("grpo"; "gspo" with the sequence ratio exp(mean log r); "cispo": -sg(clip r) A logp); for A < 0 at
    most -dual_clip A; a clip that is None has no bound. w: "none" 1, "tis" min(w, importance_cap), "icepop" w inside
    [importance_low, importance_cap], else 0, with w = exp(sg(old_logp, or logp) - rollout_logp). Log ratios are clamped
    to +-20. u: "token_mean" m/sum m, "seq_mean" mean of the S token means, "seq_sum" mean of S token sums,
    "seq_mean_fixed" that over fixed_length. `denominator` replaces sum m, or S: with the divisor of the whole optimizer
    step, micro-batches add up to the loss of the whole step.

    keep [K] int: the rows that may have a gradient (distinct; a promise, the others' gradient is dropped); None finds
    them from mask and advantages on CPU tensors and means every row on CUDA, where finding them would synchronise.
    forward_all=False skips the others altogether: their logp and entropy are NaN and no metric counts them. memory:
    "fast", "small", "lean", or bytes for the logits of a chunk; "lean", and "gspo" over more than one chunk, recompute
    the logits by vocabulary chunks. logit_dtype="bf16" rounds logits as a bf16 rollout does. vocab_start and group:
    this rank's shard of the vocabulary and the ranks that hold the others (hidden and everything per token is
    replicated; dX is summed over the group). main_grad fp32 [V, D]: dW is added to it in the backward and weight gets
    no .grad; this bypasses whatever reduces .grad, FSDP2's included.

    Returns GrpoResult. Under any upstream gradient the result is exact: gradients are kept in fp32 and scaled in the
    backward. Second derivatives do not exist.
    """
    check_head(hidden, weight, target_ids, temperature=temperature, bias=bias, softcap=softcap, logit_dtype=logit_dtype)
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
    check_loss(spec)
    n, vocab = hidden.shape[0], weight.shape[0]
    per_token = {"old_logp": old_logp, "rollout_logp": rollout_logp, "mask": mask, "cu_seqlens": cu_seqlens}
    check_loss_tensors(spec, n, advantages, **per_token, denominator=denominator, like=hidden)
    check_placement(
        n,
        keep=keep,
        memory=memory,
        main_grad=main_grad,
        weight=weight,
        vocab_start=vocab_start,
        group=group,
        like=hidden,
    )
    impl = choose(impl, hidden)
    if impl == "reference":
        if group is not None or main_grad is not None:
            raise ValueError("impl='reference' has neither vocabulary shards nor main_grad; use impl='torch'")
        check_values(target_ids, vocab, cu_seqlens=cu_seqlens, keep=keep)
        options = {**vars(spec), **per_token, "denominator": denominator, "keep": keep, "forward_all": forward_all}
        return reference.linear_grpo_loss(
            hidden,
            weight,
            target_ids,
            advantages,
            temperature=temperature,
            bias=bias,
            softcap=softcap,
            logit_dtype=logit_dtype,
            **options,
        )

    scalar, per_row = split_temperature(temperature)
    denominator = as_tensor(denominator, hidden)
    budget = budget_bytes(memory, hidden.device)
    placement = (forward_all, budget, vocab_start, group_name(group), impl)
    tensors = (advantages, *detached(old_logp, rollout_logp), mask, cu_seqlens)
    one_chunk = n <= chunk_rows(impl, hidden, vocab, budget)
    if memory == "lean" or (loss == "gspo" and not one_chunk):
        return _recomputing(
            hidden,
            weight,
            bias,
            target_ids,
            keep,
            per_row,
            main_grad,
            scalar,
            softcap,
            logit_dtype,
            placement,
            tensors,
            denominator,
            spec,
        )

    grad = torch.is_grad_enabled()
    needs = (
        grad and hidden.requires_grad,
        grad and weight.requires_grad,
        grad and bias is not None and bias.requires_grad,
    )
    value, logp, entropy, metrics, *_ = ops_grpo.linear_grpo(
        hidden,
        weight,
        bias,
        target_ids,
        *tensors,
        keep,
        per_row,
        denominator,
        main_grad,
        scalar,
        softcap,
        logit_dtype,
        *vars(spec).values(),
        *placement,
        *needs,
    )
    return result(value, logp, entropy, metrics, metric_names(spec, rollout_logp is not None, True))


def _recomputing(
    hidden,
    weight,
    bias,
    target_ids,
    keep,
    per_row,
    main_grad,
    scalar,
    softcap,
    logit_dtype,
    placement,
    tensors,
    denominator,
    spec,
) -> GrpoResult:
    """The loss of differentiable log-probs: 8NDV, no fp32 dW, and the only way when coefficients need every log-prob of
    a long sequence."""
    forward_all = placement[0]
    logp, entropy, _, _ = ops_logprob.linear_logprob(
        hidden, weight, bias, target_ids, keep, per_row, main_grad, scalar, softcap, logit_dtype, *placement
    )
    computed = None
    if keep is not None and not forward_all:
        computed = torch.zeros_like(logp, dtype=torch.bool).index_fill(0, keep.long(), True)
    value, metrics, _, _ = ops_grpo.grpo_tokens(logp, entropy, *tensors, computed, denominator, *vars(spec).values())
    return result(value, logp, entropy, metrics, metric_names(spec, tensors[2] is not None, True))


def logprob_from_logits(
    logits: Tensor,
    target_ids: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    return_entropy: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """log softmax(logits / temperature)[target] of given logits [..., V] and target_ids [...], differentiable; with the
    entropy on request.

    temperature: a number, or a tensor shaped like target_ids. Computed in fp32 (fp64 for fp64 logits) whatever the
    dtype of the logits; logits of -inf (banned tokens) are fine. Returns logp [...] in nats.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.dim() < 2 or logits.shape[-1] == 0:
        raise ValueError(f"logits must be a float tensor [..., V], got {shape_of(logits)}")
    tensor("target_ids", target_ids, like=logits, shape=tuple(logits.shape[:-1]), kinds="int")
    scalar, per_row = split_temperature(temperature)
    shape = target_ids.shape
    flat, target_ids = logits.reshape(-1, logits.shape[-1]), target_ids.reshape(-1)
    if per_row is not None:
        tensor("temperature", per_row, like=logits, shape=tuple(shape), kinds="float")
        per_row = per_row.reshape(-1)
    check_temperature(scalar, target_ids.numel(), logits)
    impl = choose(impl, logits)
    if impl == "reference":
        check_values(target_ids, flat.shape[1], temperature=per_row)
        wide = flat.to(compute_dtype(flat.dtype))
        logp, entropy = reference.logprob_and_entropy(
            wide / (scalar if per_row is None else per_row.to(wide.dtype)[:, None]), target_ids
        )
    else:
        logp, entropy, _, _ = ops_logprob.logits_logprob(flat, target_ids, per_row, scalar, impl)
    return (logp.view(shape), entropy.view(shape)) if return_entropy else logp.view(shape)


def result(value: Tensor, logp: Tensor, entropy: Tensor | None, metrics: Tensor, names: list[str]) -> GrpoResult:
    return GrpoResult(
        value,
        logp.detach(),
        None if entropy is None else entropy.detach(),
        dict(zip(names, metrics.detach().unbind(), strict=True)),
    )


def detached(*tensors: Tensor | None):
    return (None if x is None else x.detach() for x in tensors)


def as_tensor(denominator: float | Tensor | None, like: Tensor) -> Tensor | None:
    """A 0-dim tensor; a number is filled in on the device, because copying it there would synchronise."""
    if denominator is None:
        return None
    return (
        denominator.detach().reshape(())
        if isinstance(denominator, Tensor)
        else torch.full((), float(denominator), dtype=torch.float64, device=like.device)
    )


def grpo_loss(
    logp: Tensor,
    old_logp: Tensor | None,
    advantages: Tensor,
    *,
    entropy: Tensor | None = None,
    rollout_logp: Tensor | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    loss: str = "grpo",
    clip_low: float | None = 0.2,
    clip_high: float | None = 0.28,
    dual_clip: float | None = None,
    importance: str = "none",
    importance_low: float = 0.5,
    importance_cap: float = 2.0,
    aggregation: str = "token_mean",
    denominator: float | Tensor | None = None,
    fixed_length: float | None = None,
    entropy_coef: float = 0.0,
) -> GrpoResult:
    """`linear_grpo_loss` for log-probs [N] that exist already: the same loss and metrics, differentiable in logp and
    entropy.

    entropy [N] is needed when entropy_coef is not 0; without it entropy_mean is not among the metrics.
    """
    if not isinstance(logp, Tensor) or logp.dim() != 1 or not logp.is_floating_point():
        raise ValueError(f"logp must be a float tensor [N]; flatten or pack it first, got {shape_of(logp)}")
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
    check_loss(spec)
    check_loss_tensors(
        spec,
        logp.numel(),
        advantages,
        old_logp=old_logp,
        rollout_logp=rollout_logp,
        mask=mask,
        cu_seqlens=cu_seqlens,
        denominator=denominator,
        like=logp,
    )
    if entropy is None and entropy_coef:
        raise ValueError(
            "entropy_coef needs the entropy [N]: pass entropy=, from linear_logprob(..., return_entropy=True)"
        )
    if entropy is not None and entropy.shape != logp.shape:
        raise ValueError(f"entropy must have shape {list(logp.shape)}, got {list(entropy.shape)}")
    tensors = (advantages, *detached(old_logp, rollout_logp), mask, cu_seqlens)
    value, metrics, _, _ = ops_grpo.grpo_tokens(
        logp, entropy, *tensors, None, as_tensor(denominator, logp), *vars(spec).values()
    )
    return result(value, logp, entropy, metrics, metric_names(spec, rollout_logp is not None, entropy is not None))
