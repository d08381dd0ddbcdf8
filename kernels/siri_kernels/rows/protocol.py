"""What the row arithmetic of every implementation is given, and what it has to do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

Selection = slice | Tensor
"""rows of a batch: a piece of it, or an index"""


def stored_width(columns: int) -> int:
    """Row stride of a stored E [n, columns]: rows start at multiples of 128 bytes."""
    return -(-columns // 64) * 64


@dataclass(frozen=True)
class Head:
    """An LM head: weight [V, D], bias [V], and what happens to its logits."""

    weight: Tensor
    bias: Tensor | None = None
    temperature: float | Tensor = 1.0
    """a number, or [N]"""
    softcap: float | None = None
    logit_dtype: str = "fp32"

    def scale(self, rows: Selection) -> float | Tensor:
        """1 / temperature, as a number or as [rows]."""
        return 1 / self.temperature[rows] if isinstance(self.temperature, Tensor) else 1 / self.temperature

    def widen(self, dtype: torch.dtype) -> Head:
        """The head in the compute dtype: one copy of a bf16 weight per call, none of an fp32 one."""
        return replace(self, weight=self.weight.to(dtype), bias=None if self.bias is None else self.bias.to(dtype))

    def slice(self, columns: slice) -> Head:
        return replace(self, weight=self.weight[columns], bias=None if self.bias is None else self.bias[columns])


class Rows(Protocol):
    """Logits, row statistics and logit gradients of chunks of rows, in buffers that every chunk reuses."""

    offset: Tensor | None
    """[n] of the chunk whose forward came last, where exponentials are measured from a number that is given before:
    with the same number the same statistics have the same bits"""

    def inputs(self, rows: Selection) -> Tensor:
        """x [n, D] as the gradient GEMMs take it."""
        ...

    def weight(self, columns: slice = ...) -> Tensor:
        """W [columns, D] as the gradient GEMMs take it."""
        ...

    def forward(self, rows: Selection, store: bool = True) -> Tensor:
        """Row statistics [4, n] over the whole vocabulary; `store`: a gradient follows."""
        ...

    def gradient(
        self,
        rows: Selection,
        stats: Tensor,
        log_sum: Tensor,
        logp: Tensor,
        entropy: Tensor,
        g: Tensor,
        h: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """(E [n, V], v [n]) with dL/dlogits = v E, of the chunk whose forward came last; v None = 1."""
        ...

    def slice_gradient(
        self,
        rows: Selection,
        columns: slice,
        maximum: Tensor,
        log_sum: Tensor,
        logp: Tensor,
        entropy: Tensor,
        g: Tensor,
        h: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """The same recomputed for a slice of the vocabulary, from what the forward left of each row."""
        ...
