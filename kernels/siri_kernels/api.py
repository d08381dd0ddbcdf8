"""The public functions: check, choose an implementation, call the operator.

Shapes: N packed tokens, D hidden size, V vocabulary (or this rank's shard of it), S sequences. Every error is a
ValueError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from siri_kernels import reference
from siri_kernels.adapter import with_adapter
from siri_kernels.chunked import LN2, Needs, budget_bytes, chunk_rows, compute_dtype
from siri_kernels.kept_rows import by_sequence, in_one_chunk, rows_by_value
from siri_kernels.loss.spec import LossOptions, checked, metric_names, with_loss_options
from siri_kernels.metrics import METRIC_REDUCTION, GrpoResult
from siri_kernels.ops.grpo import grpo_tokens, linear_grpo
from siri_kernels.ops.logprob import linear_logprob as logprob_operator
from siri_kernels.ops.logprob import logits_logprob
from siri_kernels.ops.settings import (
    GrpoSettings,
    HeadSettings,
    LogitsSettings,
    LogprobSettings,
    Placement,
    TokenSettings,
    as_tensor,
    detached,
    split_temperature,
)
from siri_kernels.selection import select
from siri_kernels.sharding import group_name, plan_columns
from siri_kernels.validation import (
    check_head,
    check_memory,
    check_placement,
    check_temperature,
    check_values,
    counted_targets,
    given,
    is_float_tensor,
    shape_of,
    tensor,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    target_ids: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    anchor: Tensor | None = None,
    offset: Tensor | None = None,
    return_entropy: bool = False,
    return_offset: bool = False,
    memory: str | int = "fast",
    impl: str = "auto",
    low_rank: tuple[Tensor, Tensor] | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """log softmax(softcap(hidden @ weight.T + bias) / temperature)[target] without materialised logits, differentiable.

    hidden [N, D] and weight [V, D] in one of fp16, bf16, fp32, fp64; target_ids [N] int; temperature a number or [N];
    bias [V]. Returns logp [N] in nats, fp32 (fp64 for fp64 inputs), with return_entropy also the entropy [N] of the
    same distribution, and with return_offset last the offset [N], from which a row's exponentials were measured.

    anchor [N], an approximate log-prob of the targets (the rollout's), and offset [N], of an earlier pass over the same
    tokens, are hints for impl="anchored", where one of them says whence to measure, and move nothing but rounding
    errors. With the anchor that `linear_grpo_loss` uses, its rollout_logp, the log-probs are bitwise its own; with the
    offset of a pass, that pass's.

    Gradients reach hidden, weight and bias; the backward recomputes logits in vocabulary chunks and writes each slice
    of dW once, in weight's dtype. memory: "fast", "small", "lean", or bytes for the logits that are held at once.
    """
    check_head(hidden, weight, target_ids, temperature=temperature, bias=bias, softcap=softcap)
    check_memory(memory)
    for name, x in (("anchor", anchor), ("offset", offset)):
        if x is not None:
            tensor(name, x, like=hidden, shape=tuple(target_ids.shape), kinds="float")
    if anchor is not None and offset is not None:
        raise ValueError("anchor and offset exclude each other: pass the offset alone where an earlier pass left one")
    hidden, weight, frozen = with_adapter(hidden, weight, low_rank)
    impl = select(impl, hidden, weight, temperature=temperature, bias=bias, softcap=softcap)
    if impl == "reference":
        check_values(target_ids, weight.shape[0])
        z_NV = reference.logits(hidden, weight, temperature=temperature, bias=bias, softcap=softcap)
        logp, entropy = reference.logprob_and_entropy(z_NV, target_ids)
        measured = z_NV.logsumexp(1) / LN2
    else:
        scalar, temperature_N = split_temperature(temperature)
        rows = logprob_operator(
            hidden=hidden,
            weight=weight,
            bias=bias,
            target_ids=target_ids,
            anchor=detached(anchor),
            offset=detached(offset),
            keep=None,
            temperature_N=temperature_N,
            main_grad=None,
            settings=LogprobSettings(
                HeadSettings(scalar, softcap), Placement(impl, budget_bytes(memory, hidden.device)), frozen
            ),
        )
        logp, entropy, measured = rows.logp, rows.entropy, rows.offset
    outputs = (logp, *((entropy,) if return_entropy else ()), *((measured.detach(),) if return_offset else ()))
    return outputs if len(outputs) > 1 else logp


@with_loss_options
def linear_grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    target_ids: Tensor,
    advantages: Tensor,
    *,
    old_logp: Tensor | None = None,
    rollout_logp: Tensor | None = None,
    offset: Tensor | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    keep: Tensor | None = None,
    denominator: float | Tensor | None = None,
    temperature: float | Tensor = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    forward_all: bool = True,
    memory: str | int = "fast",
    logit_dtype: str = "fp32",
    keep_lengths: Tensor | None = None,
    vocab_start: int = 0,
    vocab_size: int | None = None,
    group: ProcessGroup | None = None,
    main_grad: Tensor | None = None,
    impl: str = "auto",
    low_rank: tuple[Tensor, Tensor] | None = None,
    **options: Unpack[LossOptions],
) -> GrpoResult:
    """LM head, log-prob, entropy and the clipped policy loss of a packed batch, in chunks of rows; gradients are formed
    in the forward.

    hidden [N, D], weight [V, D] (one float dtype), target_ids [N] int; advantages [N] per token, or [S] per sequence
    with cu_seqlens [S+1] (when N == S, per token). mask [N] bool, True = counts; where it is False an id may be none,
    such as -100 (its logp is that of id 0). old_logp [N]: log-probs before the
    first update; None = on-policy, the ratio is 1 and its gradient that of logp. rollout_logp [N]: the sampler's
    log-probs, for the importance weight and the mismatch metrics. offset [N]: what the pass of old_logp returned with
    return_offset; it spares a kernel and keeps the ratio at exactly 1 under unchanged weights.

    Minimised: sum_i u_i (w_i t_i - entropy_coef H_i) over counted tokens, t = -min(r A, clip(r, 1 - clip_low, 1 +
    clip_high) A) ("grpo"; "gspo" with the sequence ratio exp(mean log r); "cispo": -sg(clip r) A logp); for A < 0 at
    most -dual_clip A; a clip that is None has no bound. "auto" is what the papers of loss and importance have
    (`loss.spec.by_name`). w: "none" 1, "tis" min(w, importance_cap), "icepop" w inside
    [importance_low, importance_cap], else 0, with w = exp(sg(old_logp, or logp) - rollout_logp). Log ratios are clamped
    to +-20. Under "gspo" w_i scales how far token i moves its sequence's ratio: with a weight of 0 it has no gradient.
    u: "token_mean" m/sum m, "seq_mean" mean of the S token means, "seq_sum" mean of S token sums, "seq_mean_fixed" that
    over fixed_length. `denominator` replaces sum m, or S: with the divisor of the whole optimizer step, micro-batches
    add up to the loss of the whole step.

    keep [K] int: the rows that may have a gradient (distinct; a promise, the others' gradient is dropped); None finds
    them from mask and advantages on CPU tensors and means every row on CUDA, where finding them would synchronise.
    forward_all=False skips the others altogether: their logp and entropy are NaN and no metric counts them. memory:
    "fast", "small", "lean", or bytes for the logits of a chunk; "lean" recomputes the logits by vocabulary chunks.
    "gspo" does, too, where a sequence is longer than a chunk; chunks that end between sequences need keep_lengths on
    CUDA: int [S] on the host, how many of keep's rows (of all rows, without keep) are the sequence's, in this order.
    logit_dtype="bf16" rounds logits as a bf16 rollout does. vocab_start and group: this rank's shard of the vocabulary
    and the ranks that hold the others (hidden and everything per token is replicated; dX is summed over the group);
    with shards that differ in size also vocab_size, that of the whole vocabulary, because all ranks must plan the same
    chunks. main_grad fp32 [V, D]: dW is added to it in the backward and weight gets no .grad; this bypasses whatever
    reduces .grad, FSDP2's included.

    impl: "auto" or one that `selection.select` names. low_rank: (u [N, r], B [V, r]), an adapter's share u B^T of the
    logits; while weight needs no gradient only B's columns of dW are formed.

    Returns GrpoResult. Under any upstream gradient the result is exact: gradients are kept in fp32 and scaled in the
    backward. Second derivatives do not exist.
    """
    check_head(hidden, weight, target_ids, temperature=temperature, bias=bias, softcap=softcap, logit_dtype=logit_dtype)
    loss, (n, vocab) = checked(options), (hidden.shape[0], weight.shape[0])
    per_token = {"old_logp": old_logp, "rollout_logp": rollout_logp, "mask": mask, "cu_seqlens": cu_seqlens}
    loss.check_tensors(n, advantages, **per_token, denominator=denominator, like=hidden)
    if offset is not None:
        tensor("offset", offset, like=hidden, shape=(n,), kinds="float")
        if group is not None:
            raise ValueError("offset does not go with vocabulary shards, whose passes agree without it; leave it out")
    check_placement(
        n,
        keep=keep,
        forward_all=forward_all,
        memory=memory,
        main_grad=main_grad,
        weight=weight,
        vocab_start=vocab_start,
        vocab_size=vocab_size,
        group=group,
        keep_lengths=keep_lengths,
        sequences=None if cu_seqlens is None else cu_seqlens.numel() - 1,
        like=hidden,
    )
    if low_rank is not None and main_grad is not None:
        raise ValueError("main_grad and low_rank exclude each other: an adapter's gradient goes into its own .grad")
    target_ids = counted_targets(target_ids, mask, vocab if group is None else vocab_size)
    hidden, weight, frozen = with_adapter(hidden, weight, low_rank)
    kind: dict[str, Any] = {"temperature": temperature, "bias": bias, "softcap": softcap, "logit_dtype": logit_dtype}
    impl = select(impl, hidden, weight, **kind, group=group)
    if impl == "reference":
        if group is not None or main_grad is not None:
            raise ValueError("impl='reference' has neither vocabulary shards nor main_grad; use impl='torch'")
        check_values(target_ids, vocab, cu_seqlens=cu_seqlens, keep=keep)
        return reference.linear_grpo_loss(
            hidden,
            weight,
            target_ids,
            advantages,
            **kind,
            keep=keep,
            forward_all=forward_all,
            denominator=denominator,
            **per_token,
            **vars(loss),
        )

    scalar, temperature_N = split_temperature(temperature)
    head = HeadSettings(scalar, softcap, logit_dtype)
    columns, budget = plan_columns(group, vocab_start, vocab, vocab_size), budget_bytes(memory, hidden.device)
    placement = Placement(impl, budget, forward_all, vocab_start, columns, group_name(group))
    offset = detached(offset)
    matrices: dict[str, Any] = {"hidden": hidden, "weight": weight, "bias": bias, "target_ids": target_ids}
    matrices |= {"temperature_N": temperature_N, "main_grad": main_grad}
    tokens: dict[str, Any] = {
        "advantages": advantages,
        "old_logp": detached(old_logp),
        "rollout_logp": detached(rollout_logp),
    }
    tokens |= {"mask": mask, "cu_seqlens": cu_seqlens, "denominator": as_tensor(denominator, hidden)}
    in_forward = memory != "lean"
    if loss.loss == "gspo" and in_forward:
        size = chunk_rows(impl, hidden, columns, budget)
        keep, keep_lengths, in_forward = by_sequence(
            loss, n, size, advantages, mask, given(cu_seqlens), keep, keep_lengths
        )
    else:
        keep_lengths = None
    names = metric_names(loss, rollout_logp is not None, entropy=True)
    if in_forward:
        if impl == "sliced" and keep is None and not torch.compiler.is_compiling():
            keep = rows_by_value(loss, n, advantages, mask, cu_seqlens)
        single = impl in ("anchored", "sliced") and in_one_chunk(impl, hidden, columns, budget, keep)
        grad = torch.is_grad_enabled()
        needed = (grad and x is not None and x.requires_grad for x in (hidden, weight, bias))
        needs = Needs(*needed, frozen=frozen)
        out = linear_grpo(
            **matrices,
            **tokens,
            keep=keep,
            keep_lengths=keep_lengths,
            offset=offset,
            settings=GrpoSettings(head, loss, placement, needs, needs.weight and main_grad is None and single),
        )
        return result(out.loss, out.logp, out.entropy, out.metrics, names)

    # the loss of differentiable log-probs: 8NDV, but no fp32 dW, and coefficients may need every log-prob
    if keep is None and not forward_all and hidden.device.type == "cpu":
        keep = rows_by_value(loss, n, advantages, mask, cu_seqlens)
    rows = logprob_operator(
        **matrices,
        anchor=tokens["rollout_logp"],
        offset=offset,
        keep=keep,
        settings=LogprobSettings(head, placement, frozen),
    )
    computed = None
    if keep is not None and not forward_all:
        computed = torch.zeros_like(rows.logp, dtype=torch.bool).index_fill(0, keep.long(), True)
    out = grpo_tokens(logp=rows.logp, entropy=rows.entropy, computed=computed, **tokens, settings=TokenSettings(loss))
    return result(out.loss, rows.logp, rows.entropy, out.metrics, names)


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
    if not is_float_tensor(logits) or logits.dim() < 2 or logits.shape[-1] == 0:
        raise ValueError(f"logits must be a float tensor [..., V], got {shape_of(logits)}")
    tensor("target_ids", target_ids, like=logits, shape=tuple(logits.shape[:-1]), kinds="int")
    scalar, temperature_N = split_temperature(temperature)
    shape = target_ids.shape
    flat, target_ids = logits.reshape(-1, logits.shape[-1]), target_ids.reshape(-1)
    if temperature_N is not None:
        tensor("temperature", temperature_N, like=logits, shape=tuple(shape), kinds="float")
        temperature_N = temperature_N.reshape(-1)
    check_temperature(scalar, target_ids.numel(), logits)
    impl = select(impl, logits)
    if impl == "reference":
        check_values(target_ids, flat.shape[1], temperature=temperature_N)
        wide = flat.to(compute_dtype(flat.dtype))
        logp, entropy = reference.logprob_and_entropy(
            wide / (scalar if temperature_N is None else temperature_N.to(wide.dtype)[:, None]), target_ids
        )
    else:
        rows = logits_logprob(
            logits=flat, target_ids=target_ids, temperature_N=temperature_N, settings=LogitsSettings(impl, scalar)
        )
        logp, entropy = rows.logp, rows.entropy
    return (logp.view(shape), entropy.view(shape)) if return_entropy else logp.view(shape)


@with_loss_options
def grpo_loss(
    logp: Tensor,
    old_logp: Tensor | None,
    advantages: Tensor,
    *,
    entropy: Tensor | None = None,
    rollout_logp: Tensor | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    denominator: float | Tensor | None = None,
    **options: Unpack[LossOptions],
) -> GrpoResult:
    """`linear_grpo_loss` for log-probs [N] that exist already: the same loss and metrics, differentiable in logp and
    entropy.

    entropy [N] is needed when entropy_coef is not 0; without it entropy_mean is not among the metrics.
    """
    if not is_float_tensor(logp) or logp.dim() != 1:
        raise ValueError(f"logp must be a float tensor [N]; flatten or pack it first, got {shape_of(logp)}")
    loss = checked(options)
    per_token = {"old_logp": old_logp, "rollout_logp": rollout_logp, "mask": mask, "cu_seqlens": cu_seqlens}
    loss.check_tensors(logp.numel(), advantages, **per_token, denominator=denominator, like=logp)
    if entropy is None and loss.entropy_coef:
        raise ValueError(
            "entropy_coef needs the entropy [N]: pass entropy=, from linear_logprob(..., return_entropy=True)"
        )
    if entropy is not None:
        tensor("entropy", entropy, like=logp, shape=tuple(logp.shape), kinds="float")
    out = grpo_tokens(
        logp=logp,
        entropy=entropy,
        advantages=advantages,
        old_logp=detached(old_logp),
        rollout_logp=detached(rollout_logp),
        mask=mask,
        cu_seqlens=cu_seqlens,
        computed=None,
        denominator=as_tensor(denominator, logp),
        settings=TokenSettings(loss),
    )
    names = metric_names(loss, rollout_logp is not None, entropy is not None)
    return result(out.loss, logp, entropy, out.metrics, names)


def result(loss: Tensor, logp: Tensor, entropy: Tensor | None, metrics_M: Tensor, names: list[str]) -> GrpoResult:
    every = dict(zip(METRIC_REDUCTION, metrics_M.detach().unbind(), strict=True))
    metrics = {name: every[name] for name in names}
    return GrpoResult(loss, logp.detach(), detached(entropy), metrics)
