"""The same in three GEMMs and no softmax pass: E = exp(z - b) leaves the logits GEMM, and E itself, with its target
column replaced, is the logit gradient up to a factor per row.

With an offset b near the row's log-sum-exp and d = z_y - b of the target y, a column of the same product, kept in sums
over j != y:
    s_off = sum exp(z_j - b),    logp = -log1p(s_off exp(-d)),    s = exp(d) + s_off
    dL/dz = v E',   v = -g / (T s),   E'_j = E_j,   E'_y = -s_off
b is z_y - a, by one dot product of a kernel of its own, with an approximate log-prob a of the target (the rollout's, or
0); or it is the b of an earlier pass over the same tokens, such as that of the old log-probs, under weights a step
away. The same b under the same weights gives the same bits. It is not improved between two such passes, although the
log-sum-exp is known then: a ratio of exactly 1 is worth more than a b that is nearer.

z_y comes from the product and not from that dot product, which would not share what tensor cores do to all logits: they
cut the sum off at every step of 16, and where all logits of a row share an offset, the cut does not show in log p.
Where it would (another token dominates), a factor takes the mean of it away (`tiles.CUT_OFF`).
Rows whose sums leave the range of fp32 (targets below exp(-69), NaN) are found and redone on the device, with their
maximum for b. Sources: this package's own; QuACK's chunked cross-entropy has the exponential in the epilogue and the
same three GEMMs for the mean loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from siri_kernels.rows.anchored.gemm import Logits, exp_gemm, new_partials
from siri_kernels.rows.anchored.kernels import LOG2E, LOWEST_ANCHOR, gradient, offsets, online_sums, sums
from siri_kernels.rows.anchored.tiles import INTERPRETER, SINGLE_ROWS, pick_tile
from siri_kernels.rows.kernels import INTERPRETED, row_stride
from siri_kernels.rows.protocol import Head, Selection, stored_width
from siri_kernels.sharding import Shard, locate
from siri_kernels.validation import given


def aligned(hidden: Tensor) -> Tensor:
    """hidden [N, D], its rows one after the other where they do not start at multiples of 16 bytes but could: the tile
    must follow from D alone, and not differ between a slice of a batch and rows that were gathered from it."""
    _, d_model = hidden.shape
    fine = hidden.stride(1) == 1 and row_stride(hidden) * hidden.element_size() % 16 == 0
    if hidden.stride(1) == 1 and (fine or d_model * hidden.element_size() % 16):
        return hidden
    return hidden.clone(memory_format=torch.contiguous_format)


class AnchoredRows:
    """Statistics and logit gradients of a chunk of rows; owns one bf16 buffer that every chunk with a gradient
    reuses."""

    def __init__(
        self, hidden: Tensor, head: Head, target_ids: Tensor, shard: Shard, rows: int, columns: int, dtype: torch.dtype,
        anchor: Tensor | None = None, offset: Tensor | None = None, entropy_gradient: bool = False,
    ):  # fmt: skip
        """anchor [N], a log-prob of the targets in nats, or offset [N], what an earlier pass left in `offset`."""
        self.hidden = aligned(hidden)
        self.matrix = head.weight if head.weight.stride(-1) == 1 else head.weight.contiguous()
        self.head, self.target_ids, self.shard = head, target_ids.contiguous(), shard
        self.anchor, self.entropy_gradient = anchor, entropy_gradient
        # a row that had none, or a broken one, is redone
        self.given = None if offset is None else offset.float().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        self.size = rows * stored_width(columns)
        self.buffer: Tensor | None = None
        self.e: Tensor | None = None
        self.gap = hidden.new_zeros(0)
        self.offset: Tensor | None = None

    def inputs(self, rows: Selection) -> Tensor:
        """x [n, D] as the GEMMs take it."""
        x = self.hidden[rows]
        return x if x.data_ptr() % 16 == 0 else x.clone()  # an odd D: rows start anywhere, a chunk must not

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
        x, y, logits = self.inputs(rows), self.target_ids[rows], self._logits(rows)
        n, vocab = x.shape[0], self.matrix.shape[0]
        self.e = self._stored(n, vocab) if store else None
        b2 = self.offset = self._offsets(x, y, logits, rows)
        tile = pick_tile(x, self.matrix, logits.busy)
        partials, target = new_partials(n, vocab, tile, x.device), torch.empty_like(b2)
        slope = not self.entropy_gradient
        exp_gemm(x, self.matrix, y, b2, logits, out=self.e, partials=partials, target=target, slope=slope, tile=tile)
        if not self.shard.whole:
            here, _ = locate(y, self.shard.start, vocab)
            target = self.shard.all_reduce_(torch.where(here, target, 0.0))
        local, self.gap, *redo = sums(partials, partials.shape[1], b2, target, y, vocab, self.shard.start)
        self._redo(x, y, logits, slope, partials, target, local, *redo)
        if self.shard.whole:
            return local
        stats = self.shard.combine(local)
        self.gap = self.gap + (local[0] - stats[0])
        return stats

    def _offsets(self, x: Tensor, y: Tensor, logits: Logits, rows: Selection) -> Tensor:
        """b [n] of these rows, in units of log2."""
        if self.given is not None:
            return self.given[rows]
        b2 = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
        anchor = None if self.anchor is None else self.anchor[rows].contiguous()
        if self.shard.whole:
            return offsets(x, self.matrix, y, logits, anchor, b2)
        self.shard.all_reduce_(offsets(x, self.matrix, y, logits, None, b2))
        if anchor is not None:
            b2 -= anchor.float().nan_to_num(nan=0.0).clamp_(LOWEST_ANCHOR, 0.0) * LOG2E
        return b2

    def _redo(
        self,
        x: Tensor,
        y: Tensor,
        logits: Logits,
        slope: bool,
        partials: Tensor,
        target: Tensor,
        local: Tensor,
        flagged_rows: Tensor,
        count: Tensor,
    ) -> None:
        """Do the flagged rows again with an online maximum: launches whose programs end at once when there are
        none."""
        tile = INTERPRETER[False] if INTERPRETED else SINGLE_ROWS
        flagged: dict[str, Any] = {"slope": slope, "tile": tile, "rows": flagged_rows, "count": count}
        maxima = torch.empty_like(target)  # of the flagged rows; b itself may be the caller's
        exp_gemm(x, self.matrix, y, maxima, logits, out=None, partials=partials, target=target, online=True, **flagged)
        vocab = self.matrix.shape[0]
        tiles = -(-vocab // tile.columns)
        online_sums(partials, tiles, maxima, target, y, local, self.gap, flagged_rows, count, vocab, self.shard.start)
        if self.e is not None:
            exp_gemm(x, self.matrix, y, maxima, logits, out=self.e, partials=None, **flagged)

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
        e = given(self.e)
        return e, gradient(e, y, logits, self.gap, stats[0], log_sum, logp, entropy, g, h)

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
        x, y, logits = self.inputs(rows), self.target_ids[rows], self._logits(rows, columns)
        weight = self.matrix[columns]
        e = self._stored(x.shape[0], weight.shape[0])
        b2 = (maximum + log_sum) * LOG2E
        exp_gemm(x, weight, y, b2, logits, out=e, partials=None, slope=h is None)
        return e, gradient(e, y, logits, log_sum, maximum, log_sum, logp, entropy, g, h)
