"""FusedLMHead: a drop-in for `lm_head` whose log-probs and loss never materialise logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from siri_kernels.api import linear_grpo_loss, linear_logprob
from siri_kernels.metrics import GrpoResult


class _Call:
    """Arguments that travel through `__call__` unseen: FSDP2 casts every float tensor it finds there (in dataclasses,
    too) to its compute dtype, and old_logp in bf16 would be noise in the ratio."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Tensor, ...], options: dict[str, Any]):
        self.function, self.arguments, self.options = function, arguments, options


class FusedLMHead(nn.Linear):
    """LM head over the parameters of an existing one: `model.lm_head = FusedLMHead.of(model.lm_head)`.

    head(hidden) returns logits [..., V] as before, so `generate()` works; parameter names, tied embeddings and
    checkpoints stay as they are, because the parameters are the same objects. `logprob` and `grpo_loss` go through
    `__call__` as well: hooks on the module (FSDP2's all-gather, offloading) fire for them when the head is sharded as a
    module of its own (`fully_shard(model.lm_head)`).

    It is an nn.Linear for those who ask, such as transformers' `resize_token_embeddings`, which for an untied model
    puts a plain nn.Linear of the new size in its place: make that one fused again.

    softcap applies to `logprob` and `grpo_loss` only: models with a final softcap apply it to the logits themselves.
    """

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None = None, *, softcap: float | None = None):
        nn.Module.__init__(self)  # not nn.Linear's, which would make parameters of its own
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.bias = bias
        self.softcap = softcap

    @classmethod
    def of(cls, head: nn.Module, *, softcap: float | None = None) -> nn.Module:
        """The fused version of an `nn.Linear`, or of a LoRA layer around one (`base_layer`, `lora_A`, `lora_B`,
        `scaling` as in PEFT). ValueError for anything else."""
        if all(hasattr(head, name) for name in ("base_layer", "lora_A", "lora_B", "scaling")):
            return FusedLoraHead(head, softcap=softcap)
        weight: Any = getattr(head, "weight", None)
        if weight is None or weight.dim() != 2:
            raise ValueError(f"FusedLMHead.of takes an nn.Linear or a LoRA layer around one, got {type(head).__name__}")
        return cls(weight, getattr(head, "bias", None), softcap=softcap)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  # hidden is what callers of a fused head know
        self, hidden: Tensor, call: _Call | None = None
    ) -> Any:
        if call is None:
            return F.linear(hidden, self.weight, self.bias)
        return call.function(hidden, self.weight, *call.arguments, bias=self.bias, softcap=self.softcap, **call.options)

    def logprob(self, hidden: Tensor, target_ids: Tensor, **options: Any) -> Tensor | tuple[Tensor, Tensor]:
        """`linear_logprob` of this head: hidden [N, D], target_ids [N] -> logp [N] (and entropy)."""
        return self(hidden, _Call(linear_logprob, (target_ids,), options))

    def grpo_loss(self, hidden: Tensor, target_ids: Tensor, advantages: Tensor, **options: Any) -> GrpoResult:
        """`linear_grpo_loss` of this head."""
        return self(hidden, _Call(linear_grpo_loss, (target_ids, advantages), options))


class FusedLoraHead(FusedLMHead):
    """The same for a head with a LoRA adapter: logits = x W^T + scaling (dropout(x) A^T) B^T, one pass over both terms.

    Only the adapter's columns of the weight gradient are formed while W is frozen. Reads the layer's active adapter at
    every call; a merged adapter is the base layer alone.
    """

    def __init__(self, layer: Any, *, softcap: float | None = None):
        nn.Module.__init__(self)
        self.layer: Any = layer
        self.out_features, self.in_features = layer.base_layer.weight.shape
        self.softcap = softcap

    @property
    def weight(self) -> nn.Parameter:
        return self.layer.base_layer.weight

    @property
    def bias(self) -> nn.Parameter | None:
        return self.layer.base_layer.bias

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  # hidden is what callers of a fused head know
        self, hidden: Tensor, call: _Call | None = None
    ) -> Any:
        if call is None:
            return self.layer(hidden)
        low_rank = self._low_rank(hidden)
        options = call.options if low_rank is None else {**call.options, "low_rank": low_rank}
        return call.function(hidden, self.weight, *call.arguments, bias=self.bias, softcap=self.softcap, **options)

    def _low_rank(self, hidden: Tensor) -> tuple[Tensor, Tensor] | None:
        """(u [N, r], B [V, r]) with u B^T the adapters' share of the logits."""
        layer = self.layer
        if getattr(layer, "merged", False) or getattr(layer, "disable_adapters", False):
            return None
        shares: list[tuple[Tensor, Tensor]] = []
        for name in getattr(layer, "active_adapters", list(layer.lora_A.keys())):
            dropout = layer.lora_dropout[name] if name in getattr(layer, "lora_dropout", {}) else nn.Identity()
            down = layer.lora_A[name]
            u = down(dropout(hidden.to(down.weight.dtype))) * layer.scaling[name]
            shares.append((u.to(hidden.dtype), layer.lora_B[name].weight.to(hidden.dtype)))
        if not shares:
            return None
        return torch.cat([u for u, _ in shares], 1), torch.cat([b for _, b in shares], 1)
