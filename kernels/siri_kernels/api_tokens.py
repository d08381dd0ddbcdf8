"""The public functions on given log-probs and given logits, and what they share with the linear ones."""

from __future__ import annotations

import torch
from torch import Tensor

from siri_kernels import reference
from siri_kernels.chunked import compute_dtype
from siri_kernels.loss.tokens import LossSpec, metric_names
from siri_kernels.metrics import GrpoResult
from siri_kernels.ops import grpo as ops_grpo
from siri_kernels.ops import logprob as ops_logprob
from siri_kernels.selection import choose
from siri_kernels.validation import (
    check_loss,
    check_loss_tensors,
    check_temperature,
    check_values,
    shape_of,
    tensor,
)


def split_temperature(temperature: float | Tensor) -> tuple[float, Tensor | None]:
    return (1.0, temperature) if isinstance(temperature, Tensor) else (float(temperature), None)


def result(value: Tensor, logp: Tensor, entropy: Tensor | None, metrics: Tensor, names: list[str]) -> GrpoResult:
    return GrpoResult(
        value,
        logp.detach(),
        None if entropy is None else entropy.detach(),
        dict(zip(names, metrics.detach().unbind(), strict=True)),
    )


def fields(spec: LossSpec) -> tuple:
    """The settings in the order of the operators' arguments."""
    return tuple(getattr(spec, name) for name in LossSpec.__dataclass_fields__)


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
    if entropy is not None:
        tensor("entropy", entropy, like=logp, shape=tuple(logp.shape), kinds="float")
    tensors = (advantages, *detached(old_logp, rollout_logp), mask, cu_seqlens)
    value, metrics, _, _ = ops_grpo.grpo_tokens(
        logp, entropy, *tensors, None, as_tensor(denominator, logp), *fields(spec)
    )
    return result(value, logp, entropy, metrics, metric_names(spec, rollout_logp is not None, entropy is not None))
