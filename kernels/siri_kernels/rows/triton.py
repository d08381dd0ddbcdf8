"""The same on a GPU: cuBLAS makes the logits of a chunk, the Triton row kernels read them once and turn them into their
gradient in place."""

from __future__ import annotations

import torch
from torch import Tensor

from siri_kernels import gemm
from siri_kernels.rows.kernels import dlogits, narrow_view, row_stats
from siri_kernels.rows.protocol import Head, Selection
from siri_kernels.sharding import Shard


def gradient_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of dlogits and of the gradient GEMMs: fp16 would lose coefficients of 1/N to its range, so fp16 inputs take
    bf16."""
    return torch.float32 if dtype == torch.float32 else torch.bfloat16


def logits_dtype(hidden: Tensor, head: Head) -> torch.dtype:
    """fp32, unless the caller wants the rounding of a bf16 rollout and the GEMM can store it so."""
    stored = head.logit_dtype == "bf16" and hidden.dtype == torch.bfloat16 and head.bias is None
    return torch.bfloat16 if stored else torch.float32


class TritonRows:
    """Logits, statistics and logit gradients of a chunk of rows; owns one buffer that every chunk reuses."""

    def __init__(
        self, hidden: Tensor, head: Head, target_ids: Tensor, shard: Shard, rows: int, columns: int, dtype: torch.dtype
    ):
        self.hidden, self.head, self.target_ids, self.shard = hidden, head, target_ids.contiguous(), shard
        self.offset: Tensor | None = None  # a row is measured from its own maximum
        self.operand = gradient_dtype(hidden.dtype)
        self.buffer = torch.empty(rows * columns, dtype=logits_dtype(hidden, head), device=hidden.device)
        self.narrow_weight: Tensor | None = None
        self.z = self.buffer

    def inputs(self, rows: Selection) -> Tensor:
        """x [n, D] as the gradient GEMMs take it."""
        return self.hidden[rows].to(self.operand)

    def weight(self, columns: slice = slice(None)) -> Tensor:
        if columns != slice(None):
            return self.head.weight[columns].to(self.operand)
        if self.narrow_weight is None:  # the weight itself, or one copy per call of an fp16 one
            self.narrow_weight = self.head.weight.to(self.operand)
        return self.narrow_weight

    def _logits(self, rows: Selection, columns: slice) -> Tensor:
        x, weight = self.hidden[rows], self.head.weight[columns]
        z = self.buffer[: x.shape[0] * weight.shape[0]].view(x.shape[0], weight.shape[0])
        gemm.mm(x, weight.T, out=z)
        if self.head.bias is not None:
            z.add_(self.head.bias[columns].float())
        if self.head.logit_dtype == "bf16" and z.dtype == torch.float32:
            z.copy_(z.to(torch.bfloat16))
        return z

    def forward(self, rows: Selection, store: bool = True) -> Tensor:
        """Row statistics [4, n] over the whole vocabulary; `store`: a gradient follows."""
        self.z = self._logits(rows, slice(0, self.head.weight.shape[0]))
        y, scale = self.target_ids[rows], self.head.scale(rows)
        return self.shard.combine(row_stats(self.z, y, scale, self.head.softcap, self.shard.start))

    def gradient(
        self,
        rows: Selection,
        stats: Tensor,
        log_sum: Tensor,
        logp: Tensor,
        entropy: Tensor,
        g: Tensor,
        h: Tensor | None,
    ) -> tuple[Tensor, None]:
        """dL/dlogits [n, V] of the chunk whose forward came last, over its logits, and no row factor."""
        return self._gradient(self.z, rows, self.shard.start, stats[0], log_sum, logp, entropy, g, h)

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
    ) -> tuple[Tensor, None]:
        """dL/dlogits [n, columns] recomputed for a slice of the vocabulary, and no row factor."""
        z = self._logits(rows, columns)
        return self._gradient(z, rows, self.shard.start + columns.start, maximum, log_sum, logp, entropy, g, h)

    def _gradient(
        self,
        z: Tensor,
        rows: Selection,
        start: int,
        maximum: Tensor,
        log_sum: Tensor,
        logp: Tensor,
        entropy: Tensor,
        g: Tensor,
        h: Tensor | None,
    ) -> tuple[Tensor, None]:
        y, scale = self.target_ids[rows], self.head.scale(rows)
        out = narrow_view(z, self.operand)
        return dlogits(z, out, y, scale, self.head.softcap, start, maximum, log_sum, logp, entropy, g, h), None
