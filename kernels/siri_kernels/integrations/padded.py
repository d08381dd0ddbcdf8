"""What the adapters share: the way from a padded batch to packed tokens and back.

Shapes: B sequences padded to T positions, D hidden size, V vocabulary, N = mask.sum() packed tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from siri_kernels.api import linear_grpo_loss, linear_logprob
from siri_kernels.head import FusedLMHead
from siri_kernels.metrics import GrpoResult
from siri_kernels.validation import given

AGGREGATION = {
    "grpo": "seq_mean",
    "bnpo": "token_mean",
    "dapo": "token_mean",
    "cispo": "token_mean",
    "dr_grpo": "seq_mean_fixed",
}
"""TRL's and Liger's loss types that `linear_grpo_loss` has"""


def clip_options(kind: str, by_sequence: bool, low: float, high: float, delta: float | None) -> dict[str, Any] | None:
    """TRL's and Liger's clipping as arguments of `linear_grpo_loss`; None where it has no such thing."""
    if kind == "cispo":
        return None if by_sequence or high < 1 else {"loss": "cispo", "clip_low": None, "clip_high": high - 1}
    if kind not in AGGREGATION or (delta is not None and delta <= 1 + max(high, 0)):
        return None  # a two-sided clip tighter than the clip itself
    return {"loss": "gspo" if by_sequence else "grpo", "clip_low": low, "clip_high": high, "dual_clip": delta}


def scales_logits(config: object) -> bool:
    """Whether the model multiplies its logits by something after the head."""
    names = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
    return any(getattr(config, name, None) not in (None, 1, 1.0) for name in names)


def softcap_of(config: object) -> float | None:
    return getattr(config, "final_logit_softcapping", None)


def dense(parameter: Tensor) -> Tensor:
    """A whole tensor. FSDP2 shows a sharded head as a DTensor when it is read outside the head's forward: gather it,
    and average its gradient over the ranks, which have other data each, as FSDP2's own hooks would."""
    if not hasattr(parameter, "full_tensor"):
        return parameter
    from torch.distributed.tensor import DTensor, Partial

    whole: Any = cast(DTensor, parameter)
    return whole.full_tensor(grad_placements=[Partial("avg")] * whole.device_mesh.ndim)


def bound(
    head: Any, hidden: Tensor, bias: Tensor | None, softcap: float | None
) -> tuple[Tensor, Callable[..., Any], Callable[..., GrpoResult]]:
    """hidden in the dtype that the head computes in, and the head's `logprob` and `grpo_loss`.

    head: a weight [V, D], a module with weight and bias, or a `FusedLMHead`, which is called, so that its hooks fire.
    The dtype is the one in which a Linear would have met them: autocast's, or that of the hidden states.
    """
    if isinstance(head, FusedLMHead):
        if softcap is not None and head.softcap != softcap:
            raise ValueError(
                f"the model caps its logits: FusedLMHead.of(lm_head, softcap={softcap}), got {head.softcap}"
            )
        return hidden, head.logprob, head.grpo_loss
    if not isinstance(head, Tensor):
        if hasattr(head, "lora_A"):
            raise ValueError("the LM head carries a LoRA adapter: replace it by siri_kernels.FusedLMHead.of(lm_head)")
        head, bias = head.weight, getattr(head, "bias", None)
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    weight, bias = dense(head).to(dtype), None if bias is None else dense(bias).to(dtype)
    return (
        hidden.to(dtype),
        of_weight(linear_logprob, weight, bias=bias, softcap=softcap),
        of_weight(linear_grpo_loss, weight, bias=bias, softcap=softcap),
    )


def of_weight(function: Callable[..., Any], weight: Tensor, **fixed: Any) -> Callable[..., Any]:
    """`linear_logprob` or `linear_grpo_loss` with its second argument and some options given."""

    def call(hidden_ND: Tensor, *args: Any, **options: Any) -> Any:
        return function(hidden_ND, weight, *args, **fixed, **options)

    return call


def no_autocast(hidden: Tensor):
    """What surrounds the operators, which see to themselves, in its own precision: a LoRA layer's products, a head cast
    to fp32."""
    return torch.autocast(hidden.device.type, enabled=False)


def pack(x: Tensor, mask: Tensor | None, dims: int = 2) -> Tensor:
    """The selected rows of x [B, T, ...]; a mask makes the host wait for their number, None (all rows) does not."""
    return x.flatten(0, dims - 1) if mask is None else x[mask]


def unpack(values_N: Tensor, mask: Tensor) -> Tensor:
    """[N] -> the mask's shape, zero elsewhere; keeps the graph even where nothing is selected."""
    return values_N.new_zeros(mask.shape).masked_scatter(mask, values_N)


def padded_logprob(
    hidden: Tensor,
    head: Any,
    target_ids: Tensor,
    mask: Tensor | None,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float | Tensor = 1.0,
) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy [B, T] of hidden [B, T, D] for target_ids [B, T] where mask [B, T] is True, else 0.

    Only those positions reach the head; mask None: all, without host synchronisation, and of any shape [..., D] and
    [...]. temperature is a number or like target_ids.
    """
    dims = target_ids.dim()
    hidden, logprob, _ = bound(head, hidden, bias, softcap)
    if isinstance(temperature, Tensor):
        temperature = pack(temperature.expand_as(target_ids), mask, dims)
    rows = pack(hidden, mask, dims), pack(target_ids, mask, dims)
    with no_autocast(hidden):
        logp, entropy = logprob(*rows, temperature=temperature, return_entropy=True)
    if mask is None:
        return logp.view(target_ids.shape), entropy.view(target_ids.shape)
    return unpack(logp, mask), unpack(entropy, mask)


def rows_with_gradient(advantages_N: Tensor, counted: Tensor | None) -> Tensor:
    """Indices of the tokens that count and have an advantage: all others' gradient is exactly 0."""
    useful = advantages_N != 0
    return (useful if counted is None else useful & counted).nonzero().squeeze(1)


def padded_grpo_loss(
    hidden: Tensor,
    head: Any,
    target_ids: Tensor,
    mask: Tensor,
    advantages: Tensor,
    *,
    loss_mask: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    **options: Any,
) -> GrpoResult:
    """`linear_grpo_loss` of a padded batch: hidden [B, T, D], target_ids and mask [B, T], advantages [B] or [B, T],
    loss_mask [B, T] for the tokens inside mask that count (default: all); old_logp, rollout_logp and a temperature per
    token in options are [B, T], too. logp and entropy of the result are [B, T], 0 outside the mask. Tokens that count
    nowhere or have no advantage stay out of the backward.
    """
    hidden, _, grpo_loss = bound(head, hidden, bias, softcap)
    advantages_N = (advantages[:, None] if advantages.dim() == 1 else advantages).expand_as(mask)[mask]
    counted = None if loss_mask is None else loss_mask[mask].bool()
    keep = None
    if hidden.is_cuda and not options.get("entropy_coef"):  # on CPU tensors the operator looks for them itself
        keep = rows_with_gradient(advantages_N, counted)
    for name in ("old_logp", "rollout_logp", "temperature"):
        if isinstance(options.get(name), Tensor):
            options[name] = options[name].expand_as(mask)[mask]
    lengths = mask.sum(1)
    with no_autocast(hidden):
        result = grpo_loss(
            hidden[mask],
            target_ids[mask],
            advantages_N,
            mask=counted,
            cu_seqlens=torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
            keep=keep,
            **options,
        )
    return GrpoResult(result.loss, unpack(result.logp, mask), unpack(given(result.entropy), mask), result.metrics)
