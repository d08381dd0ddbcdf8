"""Row arithmetic on a CPU where a row of logits is long: the anchored one (`rows.anchored`) in plain torch.

Logits are made by blocks of rows and columns that stay in the cache, and leave it as E = exp(z - b) in the operands'
dtype, from offsets b known before: no maximum, no second pass over a row, and the gradient is E times a factor per row.
bf16 operands whose products the CPU has instructions for stay bf16 values all the way: the GEMM of a block takes them
widened, rounds them back without loss, and adds up in fp32. A forward without a gradient holds no logits at all.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from siri_kernels import gemm_cpu
from siri_kernels.rows.protocol import Head, Selection, stored_width
from siri_kernels.rows.torch import FLOOR, column, target_gradient
from siri_kernels.sharding import Shard
from siri_kernels.validation import given

LN2 = math.log(2)
BLOCK_ROWS, BLOCK_COLUMNS = 512, 1024
"""of a block of logits, 2 MiB in fp32"""
REDONE = 64
"""rows that are done again at once"""
LOWEST_ANCHOR = -40.0
LARGEST, HIGHEST_GAP = 2.0**100, 64 * LN2
"""of a row's sum, and of how far above the row it may be measured from: rows beyond are done again"""


def operand_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of E and of the gradient GEMMs for inputs of this dtype."""
    return torch.bfloat16 if dtype == torch.bfloat16 and gemm_cpu.multiplies_bf16() else torch.float32


def columns_of(vocab: int, start: int = 0) -> list[slice]:
    return [slice(first, min(first + BLOCK_COLUMNS, vocab)) for first in range(start, vocab, BLOCK_COLUMNS)]


class Targets:
    """Which rows of a block have their target in which columns: (row, column of a slice) pairs, slice by slice."""

    def __init__(self, y: Tensor, slices: list[slice]):
        self.order = y.argsort()
        self.sorted = y[self.order]
        edges = torch.tensor([*(part.start for part in slices), slices[-1].stop])
        self.edges: list[int] = torch.searchsorted(self.sorted, edges).tolist()  # pyright: ignore[reportUnknownMemberType]

    def of(self, number: int, start: int) -> tuple[Tensor, Tensor]:
        these = slice(self.edges[number], self.edges[number + 1])
        return self.order[these], self.sorted[these] - start


class SlicedRows:
    """Statistics and logit gradients of a chunk of rows, on one shard; owns one buffer of E that every chunk with a
    gradient reuses."""

    def __init__(
        self,
        hidden: Tensor,
        head: Head,
        target_ids: Tensor,
        shard: Shard,
        rows: int,
        columns: int,
        dtype: torch.dtype,
        anchor: Tensor | None = None,
        offset: Tensor | None = None,
        entropy_gradient: bool = False,
    ):
        assert shard.whole
        self.hidden, self.head, self.target_ids, self.dtype = hidden, head, target_ids.long(), dtype
        self.operands = operand_dtype(hidden.dtype)
        self.precision = "bf16" if self.operands == torch.bfloat16 else "ieee"
        self.bias = None if head.bias is None else head.bias.to(dtype)
        self.anchor, self.entropy_gradient = anchor, entropy_gradient
        self.given = None if offset is None else offset.to(dtype).mul(LN2).nan_to_num_(0.0, 0.0, 0.0)
        self.size = rows * stored_width(columns)
        self.whole_weight: Tensor | None = None
        self.buffer = self.e = None
        self.offset: Tensor | None = None
        self.gap = hidden.new_zeros(0)
        d_model, block = hidden.shape[1], BLOCK_ROWS * BLOCK_COLUMNS
        self.scratch = torch.empty(2, block, dtype=dtype)
        self.wide = torch.empty(BLOCK_COLUMNS if head.weight.dtype != dtype else 0, d_model, dtype=dtype)

    def inputs(self, rows: Selection) -> Tensor:
        """x [n, D] as the gradient GEMMs take it."""
        return self.hidden[rows].to(self.operands)

    def weight(self, columns: slice = slice(None)) -> Tensor:
        if self.whole_weight is None:  # the weight itself, or one copy per call where the CPU has no products of bf16
            self.whole_weight = self.head.weight.to(self.operands)
        return self.whole_weight[columns]

    def _stored(self, n: int, columns: int) -> Tensor:
        if self.buffer is None:
            self.buffer = torch.empty(self.size, dtype=self.operands)
        width = stored_width(columns)
        e = self.buffer[: n * width].view(n, width)
        e[:, columns:] = 0  # oneDNN's products of bf16 read what is behind a row (`rows.torch`)
        return e[:, :columns]

    def _widened(self, columns: slice) -> Tensor:
        """W of a block's columns in the dtype of the sums."""
        w = self.head.weight[columns]
        return w if w.dtype == self.dtype else self.wide[: w.shape[0]].copy_(w)

    def _logits(self, x: Tensor, w: Tensor, columns: slice, scale: float | Tensor) -> tuple[Tensor, Tensor | None]:
        """Scaled logits of a block, and the softcap's slope."""
        z = torch.mm(x, w.T, out=self.scratch[0, : x.shape[0] * w.shape[0]].view(x.shape[0], w.shape[0]))
        if self.bias is not None:
            z.add_(self.bias[columns])
        if self.head.logit_dtype == "bf16":
            z.copy_(z.to(torch.bfloat16))
        slope = None
        if self.head.softcap is not None:
            z.div_(self.head.softcap).tanh_()
            slope = 1 - z.square()
            z.mul_(self.head.softcap)
        if isinstance(scale, Tensor) or scale != 1:
            z.mul_(column(scale))
        return z, slope

    def _blocks(self, x: Tensor, y: Tensor, scale: float | Tensor, columns: slice):
        """(rows, columns, z, slope, rows with a target here, its column) of every block, columns outermost: a slice of
        the weight is widened once."""
        slices = columns_of(columns.stop, columns.start)
        parts = [slice(first, min(first + BLOCK_ROWS, len(y))) for first in range(0, len(y), BLOCK_ROWS)]
        targets = [Targets(y[part], slices) for part in parts]
        for number, here in enumerate(slices):
            w = self._widened(here)
            for part, target in zip(parts, targets, strict=True):
                z, slope = self._logits(x[part], w, here, scale[part] if isinstance(scale, Tensor) else scale)
                yield part, here, z, slope, *target.of(number, here.start)

    def forward(self, rows: Selection, store: bool = True) -> Tensor:
        """Row statistics [4, n] over the whole vocabulary; `store`: a gradient follows."""
        x, y, scale = self.hidden[rows].to(self.dtype), self.target_ids[rows], self.head.scale(rows)
        n, vocab = x.shape[0], self.head.weight.shape[0]
        self.e = self._stored(n, vocab) if store else None
        with gemm_cpu.products(self.precision):
            b = self._offsets(x, y, scale, rows)
            self.offset = b / LN2
            total, weighted, target = self._sums(x, y, scale, b, self.e)
            gap = b - target
            # measured from the target's logit, or from above it where it is less likely and entropies would cancel
            maximum = target + (gap + total.log()).clamp_(min=0.0)
            self.gap = gap + (target - maximum)
            factor = self.gap.exp()
            stats = torch.stack([maximum, total * factor, factor * (weighted + total * self.gap), target])
            fine = (total < LARGEST) & (weighted.abs() < math.inf) & (self.gap < HIGHEST_GAP) & (self.gap > -100 * LN2)
            broken = (~fine).nonzero().squeeze(1)
            for first in range(0, len(broken), REDONE):
                these = broken[first : first + REDONE]
                self._redo(these, x[these], y[these], scale[these] if isinstance(scale, Tensor) else scale, stats)
        return stats

    def _offsets(self, x: Tensor, y: Tensor, scale: float | Tensor, rows: Selection) -> Tensor:
        """b [n], nats: given, or the target's logit less its anchor."""
        if self.given is not None:
            return self.given[rows]
        z = (x * self.head.weight[y]).sum(1)
        if self.bias is not None:
            z += self.bias[y]
        if self.head.softcap is not None:
            z = self.head.softcap * torch.tanh(z / self.head.softcap)
        z = z * scale
        z = torch.where(z == -math.inf, 0.0, z)
        if self.anchor is not None:
            z -= self.anchor[rows].to(self.dtype).nan_to_num(nan=0.0).clamp(LOWEST_ANCHOR, 0.0)
        return z

    def _sums(
        self, x: Tensor, y: Tensor, scale: float | Tensor, b: Tensor, e: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """sum E, sum E (z - b) over the other tokens, and the target's logit, [n] each; E into `e` [n, V]."""
        total, weighted, target = (torch.zeros(len(y), dtype=self.dtype) for _ in range(3))
        direct = e is not None and e.dtype == self.dtype
        for part, here, z, slope, i, j in self._blocks(x, y, scale, slice(0, self.head.weight.shape[0])):
            target[part][i] = z[i, j]
            d = z.sub_(b[part, None])
            if self.bias is not None:
                d.clamp_(min=FLOOR)
            scratch = self.scratch[1, : d.numel()].view_as(d)
            exponentials = torch.exp(d, out=given(e)[part, here] if direct else scratch)
            exponentials[i, j] = 0
            total[part] += exponentials.sum(1)
            weighted[part] += d.mul_(exponentials).sum(1)
            if e is not None and slope is not None and not self.entropy_gradient:
                exponentials.mul_(slope)
            if e is not None and not direct:
                e[part, here].copy_(exponentials)
        return total, weighted, target

    def _redo(self, these: Tensor, x: Tensor, y: Tensor, scale: float | Tensor, stats: Tensor) -> None:
        """A few rows once more, measured from their maximum."""
        whole = slice(0, self.head.weight.shape[0])
        b = torch.full((len(y),), FLOOR, dtype=self.dtype)
        for part, _, z, *_ in self._blocks(x, y, scale, whole):
            b[part] = torch.maximum(b[part], z.amax(1))
        e = None if self.e is None else torch.empty(len(y), whole.stop, dtype=self.operands)
        total, weighted, target = self._sums(x, y, scale, b, e)
        stats[:, these] = torch.stack([b, total, weighted, target])
        self.gap[these] = 0
        if e is not None:
            given(self.e)[these] = e

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
        """(E' [n, V], v [n]) with dL/dlogits = v E', of the chunk whose forward came last, in its buffer; v None = 1,
        where the entropy has a gradient, for which every number is rewritten."""
        e, scale, cap = given(self.e), self.head.scale(rows), self.head.softcap
        base = self.gap - log_sum
        target = torch.expm1(logp) if h is None else target_gradient(logp, entropy, g, h) * scale
        if cap is not None:
            target = target * (1 - (stats[3] / (cap * scale)).square())
        if h is not None:
            self._with_entropy(e, base, stats[0] + log_sum, entropy, g, h, scale)
            e[torch.arange(len(g)), self.target_ids[rows]] = target.to(e.dtype)
            cleared(e, base, g, h)
            return e, None
        e[torch.arange(len(g)), self.target_ids[rows]] = (target * (-base).exp()).to(
            e.dtype
        )  # scatter_ copies all of it
        return e, cleared(e, base.exp() * scale, g, h)

    def _with_entropy(
        self, e: Tensor, base: Tensor, lse: Tensor, entropy: Tensor, g: Tensor, h: Tensor, scale: float | Tensor
    ) -> None:
        """E becomes dL/dlogits, -p (g + h (log p + entropy)) by the slope of softcap and temperature; log p = log E +
        base."""
        cap, factor = self.head.softcap, -base.exp() * scale
        limit = None if cap is None else column(scale * cap)
        for first in range(0, len(g), BLOCK_ROWS):
            part = slice(first, first + BLOCK_ROWS)
            for here in columns_of(e.shape[1]):
                x = e[part, here].to(self.dtype)
                log_p = x.clamp(min=1e-38).log_().add_(base[part, None])  # where x is 0 it stays 0
                slope = (log_p + entropy[part, None]).mul_(h[part, None]).add_(g[part, None])
                if limit is not None:
                    by_row = limit[part] if isinstance(limit, Tensor) else limit
                    slope.mul_(1 - (log_p.add_(lse[part, None]) / by_row).square())
                e[part, here].copy_(x.mul_(factor[part, None]).mul_(slope))

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
        """The same recomputed for a slice of the vocabulary, where E is the probability."""
        x, y, scale = self.hidden[rows].to(self.dtype), self.target_ids[rows], self.head.scale(rows)
        e = self._stored(len(y), columns.stop - columns.start)
        target = torch.expm1(logp) if h is None else -target_gradient(logp, entropy, g, h)
        with gemm_cpu.products(self.precision):
            for part, here, z, slope, i, j in self._blocks(x, y, scale, columns):
                d = z.sub_(maximum[part, None]).sub_(log_sum[part, None])  # in one step log_sum would round away
                if self.bias is not None:
                    d.clamp_(min=FLOOR)
                p = torch.exp(d, out=self.scratch[1, : d.numel()].view_as(d))
                if h is not None:
                    p.mul_(d.add_(entropy[part, None]).mul_(h[part, None]).add_(g[part, None]))
                p[i, j] = target[part][i]
                if slope is not None:
                    p.mul_(slope)
                e[part, here.start - columns.start : here.stop - columns.start].copy_(p)
        return e, cleared(e, torch.ones_like(g) * scale, g, h)


def cleared(e: Tensor, scale: Tensor, g: Tensor, h: Tensor | None) -> Tensor:
    """The factor of each row; E becomes 0 in rows without a gradient, because 0 * NaN must not reach dW."""
    idle = g == 0 if h is None else (g == 0) & (h == 0)
    factor = -scale if h is not None else -scale * g
    if bool(idle.any()):
        e[idle] = 0
        factor = torch.where(idle, 0.0, factor)
    return factor
