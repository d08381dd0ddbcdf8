"""Row arithmetic on a chunk of logits in plain torch: for CPU tensors and fp64, and the cross-check of the Triton
kernels.

Per row, with d = z - max(z) and the target y left out of the sums (so that p -> 1 keeps its last bit):
    s_off = sum over j != y of exp(d_j),    s = exp(d_y) + s_off
    logp = d_y - log s,    H = log s - (sum exp(d) d) / s
    dL/dz_j = p_j (-g - h (log p_j + H)) for j != y,    dL/dz_y = g s_off/s - h p_y (logp + H)
where g = dL/dlogp and h = dL/dH.
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from siri_kernels import gemm_cpu
from siri_kernels.rows.protocol import Head, Selection, stored_width
from siri_kernels.sharding import Shard, locate
from siri_kernels.validation import given

FLOOR = -1e30  # stands in for -inf (a banned token) where 0 * inf would be NaN


@overload
def column(x: float) -> float: ...


@overload
def column(x: Tensor) -> Tensor: ...


def column(x: float | Tensor) -> float | Tensor:
    """A per-row factor [n] as [n, 1]; a number as it is."""
    return x[:, None] if isinstance(x, Tensor) else x


def logits_(head: Head, x: Tensor, scale: float | Tensor, out: Tensor) -> Tensor | None:
    """Write softcap(x @ W.T + b) * scale into `out`; returns d softcap / dz when there is a softcap."""
    gemm_cpu.logits(x, head.weight, head.bias, out)
    if head.logit_dtype == "bf16":
        out.copy_(out.to(torch.bfloat16))
    slope = None
    if head.softcap is not None:
        out.div_(head.softcap).tanh_()
        slope = 1 - out.square()
        out.mul_(head.softcap)
    if isinstance(scale, Tensor) or scale != 1:
        out.mul_(column(scale))
    return slope


def statistics(d: Tensor, e: Tensor, target_ids: Tensor, shard: Shard, *, banned: bool) -> Tensor:
    """[4, n]: maximum, s_off, u_off = sum over j != y of exp(d_j) d_j, and z_y, of this shard alone.

    In: scaled logits in d [n, V]. Out: d = z - max, e = exp(d) with 0 at the target. `banned`: -inf, a token that
    cannot be sampled, may be there.
    """
    here, y = shard.localize(target_ids, d.shape[1])
    target_z = d.gather(1, y).squeeze(1)
    if here is not None:
        target_z = torch.where(here, target_z, 0.0)
    if banned:
        d.clamp_(min=FLOOR)
    maximum = d.amax(1)
    d.sub_(maximum[:, None])
    torch.exp(d, out=e)
    e.scatter_(
        1, y, torch.zeros_like(target_z)[:, None] if here is None else torch.where(here[:, None], 0, e.gather(1, y))
    )
    return torch.stack([maximum, e.sum(1), torch.linalg.vecdot(e, d), target_z])  # pyright: ignore[reportUnknownMemberType]


def finish(maximum: Tensor, s_off: Tensor, u_off: Tensor, target_z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """logp, entropy and log sum exp(z - maximum) from the sums over the other tokens."""
    target_d = target_z - maximum
    target_e = target_d.exp()
    log_sum = torch.log1p(s_off + (target_e - 1))
    u = u_off + torch.where(target_e == 0, 0.0, target_e * target_d)
    return target_d - log_sum, log_sum - u * (-log_sum).exp(), log_sum


def target_gradient(logp: Tensor, entropy: Tensor, g: Tensor, h: Tensor | None) -> Tensor:
    """dL/dz of the target column (temperature aside); -expm1(logp) is 1 - p without cancellation."""
    gradient = -g * torch.expm1(logp)
    if h is None:
        return gradient
    p = logp.exp()
    return gradient - h * torch.where(p == 0, 0.0, p * (logp + entropy))


BLOCK = 2 << 20
"""Bytes of logits of a block, whose arithmetic is many passes: they stay in the cache between them"""


class TorchRows:
    """Logits, statistics and logit gradients of a chunk of rows, in one buffer that every chunk reuses: logits become
    exp(z - max) and these the gradient, block by block. Only a gradient of the entropy wants both, and a second buffer.

    bf16 operands on a CPU that multiplies them: the weight stays bf16, and the gradient is rounded to bf16 in the
    memory of the fp32 rows (each row's first half). Not with a bias, whose gradient is a sum that may cancel, and only
    where the vocabulary is whole tiles of 32: oneDNN's AMX kernels read strided rows up to the next tile, and zero
    times what lies there, bits of fp32 numbers, may be NaN.
    """

    def __init__(
        self,
        hidden: Tensor,
        head: Head,
        target_ids: Tensor,
        shard: Shard,
        rows: int,
        columns: int,
        dtype: torch.dtype,
        entropy_gradient: bool = False,
    ):
        self.hidden, self.target_ids, self.shard, self.dtype = hidden, target_ids, shard, dtype
        self.offset: Tensor | None = None  # a row is measured from its own maximum
        half = hidden.dtype == torch.bfloat16 == head.weight.dtype and hidden.device.type == "cpu"
        tiles = head.weight.shape[0] % gemm_cpu.TILE == 0
        narrow = half and tiles and shard.whole and head.bias is None and gemm_cpu.multiplies_bf16()
        self.operands = hidden.dtype if narrow else dtype
        whole = columns == head.weight.shape[0]
        self.head = head.widen(dtype) if whole and self.operands == dtype else head

        def empty(size: int) -> Tensor:
            return torch.empty(size, dtype=dtype, device=hidden.device)

        self.logits = empty(rows * columns)
        self.exponentials = empty(rows * columns if entropy_gradient else 0)
        self.scratch = empty(min(rows * columns, max(BLOCK // dtype.itemsize, columns)))
        self.slope: Tensor | None = None
        self.shift: Tensor | None = None

    def blocks(self, rows: int, columns: int) -> list[tuple[slice, Tensor]]:
        """(rows of a block, scratch of its shape) of a chunk."""
        size = max(1, self.scratch.numel() // max(columns, 1))
        parts = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
        return [(p, self.scratch[: (p.stop - p.start) * columns].view(-1, columns)) for p in parts]

    def inputs(self, rows: Selection) -> Tensor:
        """x [n, D] as the GEMMs take it."""
        return self.hidden[rows].to(self.operands)

    def weight(self, columns: slice = slice(None)) -> Tensor:
        return self.head.weight[columns].to(self.operands)

    def forward(self, rows: Selection, store: bool = True) -> Tensor:
        """Row statistics [4, n] over the whole vocabulary; `store`: a gradient follows."""
        x, y = self.inputs(rows), self.target_ids[rows]
        n, vocab = x.shape[0], self.head.weight.shape[0]
        z = view(self.logits, n, vocab)
        self.slope = logits_(self.head, x, self.head.scale(rows), z)
        exponentials = view(self.exponentials, n, vocab) if self.exponentials.numel() else None
        local = torch.empty(4, n, dtype=self.dtype, device=x.device)
        for part, scratch in self.blocks(n, vocab):
            e = scratch if exponentials is None else exponentials[part]
            local[:, part] = statistics(z[part], e, y[part], self.shard, banned=self.head.bias is not None)
            if store and exponentials is None:
                z[part].copy_(e)
        stats = self.shard.combine(local)
        self.shift = local[0] - stats[0]
        return stats

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
        """dL/dlogits [n, V] of the chunk whose forward came last, in its buffer, and no row factor."""
        n, vocab = logp.numel(), self.head.weight.shape[0]
        d = view(self.logits, n, vocab)
        e = view(self.exponentials, n, vocab) if self.exponentials.numel() else d
        out = self.narrowed(e)
        scale, shift = self.head.scale(rows), given(self.shift)
        here, y = self.shard.localize(self.target_ids[rows], vocab)
        factor = (shift - log_sum).exp() * scale
        offset, target = shift - log_sum + entropy, target_gradient(logp, entropy, g, h) * scale
        for part, scratch in self.blocks(n, vocab):
            dz = scratch if out.dtype != e.dtype else e[part]
            if h is None:
                torch.mul(e[part], (-g * factor)[part, None], out=dz)
            else:
                slope = d[part].add_(offset[part, None]).mul_((-h * factor)[part, None]).add_((-g * factor)[part, None])
                torch.mul(e[part], slope, out=dz)
            self._finish_gradient(dz, here, y, target, self.slope, part)
            if dz is scratch:
                out[part].copy_(dz)
        self._clear_behind(e)
        return out, None

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
        x, scale, width = self.inputs(rows), self.head.scale(rows), columns.stop - columns.start
        z = view(self.logits, x.shape[0], width)
        head = self.head.slice(columns)
        slope = logits_(head if self.operands != self.dtype else head.widen(self.dtype), x, scale, z)
        out = self.narrowed(z)
        here, y = locate(self.target_ids[rows], self.shard.start + columns.start, width)
        target = target_gradient(logp, entropy, g, h) * scale
        for part, p in self.blocks(x.shape[0], width):
            d = z[part].sub_(maximum[part, None]).sub_(log_sum[part, None])  # in one step log_sum would round away
            if self.head.bias is not None:
                d.clamp_(min=FLOOR)
            torch.exp(d, out=p)
            if h is None:
                p.mul_((-g * scale)[part, None])
            else:
                d.add_(entropy[part, None]).mul_((-h * scale)[part, None]).add_((-g * scale)[part, None])
                p.mul_(d)
            self._finish_gradient(p, here, y, target, slope, part)
            out[part].copy_(p)
        self._clear_behind(z)
        return out, None

    def narrowed(self, x: Tensor) -> Tensor:
        """Where the gradient in x's memory [n, columns] goes: x itself, or the first half of each of its rows in the
        dtype of the operands."""
        return x if self.operands == x.dtype else x.view(self.operands)[:, : x.shape[1]]

    def _clear_behind(self, x: Tensor) -> None:
        """The numbers behind each narrowed row: oneDNN's products of bf16 go by blocks of the depth, so that it reads
        some of them on CPUs with AMX and multiplies them by 0, which of a NaN is one."""
        if self.operands != x.dtype:
            x.view(self.operands)[:, x.shape[1] : stored_width(x.shape[1])] = 0

    @staticmethod
    def _finish_gradient(
        dz: Tensor, here: Tensor | None, y: Tensor, target: Tensor, slope: Tensor | None, part: slice
    ) -> None:
        """Write the target's gradient into a block and apply the softcap's slope."""
        y, target = y[part], target[part, None]
        dz.scatter_(1, y, target if here is None else torch.where(here[part, None], target, dz.gather(1, y)))
        if slope is not None:
            dz.mul_(slope[part])


def view(buffer: Tensor, rows: int, columns: int) -> Tensor:
    return buffer[: rows * columns].view(rows, columns)
