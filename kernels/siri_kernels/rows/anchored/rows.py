"""The same in three GEMMs and no softmax pass: E = exp(z - b) leaves the logits GEMM, and E itself, with its target
column replaced, is the logit gradient up to a factor per row.

With the target's logit z_y = x . W[y] / T (one dot product), an approximate log-prob a of the target (the rollout's,
or 0) and the offset b = z_y - a, kept in sums over j != y:
    s_off = sum exp(z_j - b),    logp = -log1p(s_off exp(-a)),    s = exp(a) + s_off
    dL/dz = v E',   v = -g / (T s),   E'_j = E_j,   E'_y = -s_off
Rows whose sums leave the range of fp32 (targets below exp(-69), NaN) are found and redone on the device, with their
maximum for b. Sources: this package's own; QuACK's chunked cross-entropy has the same three GEMMs for the mean loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from siri_kernels.rows.anchored.gemm import Logits, exp_gemm, new_partials, stored_width
from siri_kernels.rows.anchored.kernels import LOG2E, gradient, online_sums, sums, target_logit
from siri_kernels.rows.anchored.tiles import INTERPRETER, SINGLE_ROWS, pick_tile
from siri_kernels.rows.kernels import INTERPRETED
from siri_kernels.rows.protocol import Head, Selection
from siri_kernels.sharding import Shard, locate
from siri_kernels.validation import given

LOWEST_ANCHOR = -40.0


class AnchoredRows:
    """Statistics and logit gradients of a chunk of rows; owns one bf16 buffer that every chunk with a gradient
    reuses."""

    def __init__(
        self, hidden: Tensor, head: Head, target_ids: Tensor, shard: Shard, rows: int, columns: int, dtype: torch.dtype,
        anchor: Tensor | None = None, entropy_gradient: bool = False,
    ):  # fmt: skip
        self.hidden = hidden if hidden.stride(-1) == 1 else hidden.contiguous()
        self.matrix = head.weight if head.weight.stride(-1) == 1 else head.weight.contiguous()
        self.head, self.target_ids, self.shard = head, target_ids.contiguous(), shard
        self.anchor, self.entropy_gradient = anchor, entropy_gradient
        self.size = rows * stored_width(columns)
        self.buffer: Tensor | None = None
        self.e: Tensor | None = None
        self.gap = hidden.new_zeros(0)

    def inputs(self, rows: Selection) -> Tensor:
        """x [n, D] as the GEMMs take it."""
        return self.hidden[rows]

    def weight(self, columns: slice = slice(None)) -> Tensor:
        return self.matrix[columns]

    def _logits(self, rows: Selection, columns: slice = slice(None)) -> Logits:
        head, scale = self.head, self.head.scale(rows)
        per_row = isinstance(scale, Tensor)
        return Logits(
            LOG2E * (1.0 if per_row else scale),
            scale.contiguous() if per_row else None,
            None if head.bias is None else head.bias[columns].contiguous(),
            head.softcap,
            head.logit_dtype == "bf16",
            self.shard.start + (columns.start or 0),
        )

    def _stored(self, n: int, columns: int) -> Tensor:
        if self.buffer is None:
            self.buffer = torch.empty(self.size, dtype=torch.bfloat16, device=self.hidden.device)
        width = stored_width(columns)
        return self.buffer[: n * width].view(n, width)[:, :columns]

    def forward(self, rows: Selection, store: bool = True) -> Tensor:
        """Row statistics [4, n] over the whole vocabulary; `store`: a gradient follows."""
        x, y, logits = self.hidden[rows], self.target_ids[rows], self._logits(rows)
        n, vocab = x.shape[0], self.matrix.shape[0]
        self.e = self._stored(n, vocab) if store else None
        target = self.shard.all_reduce_(target_logit(x, self.matrix, y, logits))
        b2 = target.clone()
        if self.anchor is not None:
            b2 -= self.anchor[rows].float().nan_to_num(nan=0.0).clamp_(LOWEST_ANCHOR, 0.0) * LOG2E
        tile = pick_tile(x, self.matrix, logits.busy)
        partials = new_partials(n, vocab, tile, x.device)
        slope = not self.entropy_gradient
        exp_gemm(x, self.matrix, y, b2, logits, out=self.e, partials=partials, target=target, slope=slope, tile=tile)
        if logits.round_bf16 and not self.shard.whole:
            here, _ = locate(y, self.shard.start, vocab)
            target = self.shard.all_reduce_(torch.where(here, target, 0.0))
        local, self.gap, redo = sums(partials, partials.shape[1], b2, target, y, vocab, self.shard.start)
        self._redo(x, y, logits, slope, partials, target, b2, local, redo)
        stats = self.shard.combine(local)
        self.gap = self.gap + (local[0] - stats[0])
        return stats

    def _redo(
        self,
        x: Tensor,
        y: Tensor,
        logits: Logits,
        slope: bool,
        partials: Tensor,
        target: Tensor,
        b2: Tensor,
        local: Tensor,
        redo: Tensor,
    ) -> None:
        """Do the flagged rows again with an online maximum: launches whose programs end at once when there are
        none."""
        rows, count = redo.argsort(descending=True, stable=True), redo.sum()
        tile = INTERPRETER[False] if INTERPRETED else SINGLE_ROWS
        flagged: dict[str, Any] = {"target": target, "slope": slope, "tile": tile, "rows": rows, "count": count}
        exp_gemm(x, self.matrix, y, b2, logits, out=None, partials=partials, online=True, **flagged)
        vocab = self.matrix.shape[0]
        tiles = -(-vocab // tile.columns)
        online_sums(partials, tiles, b2, target, y, local, self.gap, rows, count, vocab, self.shard.start)
        if self.e is not None:
            exp_gemm(x, self.matrix, y, b2, logits, out=self.e, partials=None, **flagged)

    def gradient(
        self,
        rows: Selection,
        stats: Tensor,
        log_sum: Tensor,
        logp: Tensor,
        entropy: Tensor,
        g: Tensor,
        h: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """(E' [n, V], v [n]) with dL/dlogits = v E', of the chunk whose forward came last, in its buffer."""
        y, logits = self.target_ids[rows], self._logits(rows)
        base, lse, e = self.gap - log_sum, stats[0] + log_sum, given(self.e)
        return e, gradient(e, y, logits, base, lse, logp, entropy, g, h)

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
    ) -> tuple[Tensor, Tensor]:
        """The same recomputed for a slice of the vocabulary, with the log-sum-exp for b: E is the probability."""
        x, y, logits = self.hidden[rows], self.target_ids[rows], self._logits(rows, columns)
        weight, lse = self.matrix[columns], maximum + log_sum
        e = self._stored(x.shape[0], weight.shape[0])
        b2 = lse * LOG2E
        exp_gemm(x, weight, y, b2, logits, out=e, partials=None, target=b2, slope=h is None)
        return e, gradient(e, y, logits, torch.zeros_like(lse), lse, logp, entropy, g, h)
