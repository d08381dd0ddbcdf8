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

from siri_kernels.rows.protocol import Head, Selection
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
    if head.bias is None:
        torch.mm(x, head.weight.T, out=out)
    else:
        torch.addmm(head.bias, x, head.weight.T, out=out)
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


class TorchRows:
    """Logits, statistics and logit gradients of a chunk of rows; owns two buffers that every chunk reuses."""

    def __init__(
        self, hidden: Tensor, head: Head, target_ids: Tensor, shard: Shard, rows: int, columns: int, dtype: torch.dtype
    ):
        self.hidden, self.target_ids, self.shard, self.dtype = hidden, target_ids, shard, dtype
        whole = columns == head.weight.shape[0]
        self.head = head.widen(dtype) if whole else head
        self.buffers = torch.empty(2, rows * columns, dtype=dtype, device=hidden.device)
        self.slope: Tensor | None = None
        self.shift: Tensor | None = None

    def inputs(self, rows: Selection) -> Tensor:
        """x [n, D] as the GEMMs take it."""
        return self.hidden[rows].to(self.dtype)

    def weight(self, columns: slice = slice(None)) -> Tensor:
        return self.head.weight[columns].to(self.dtype)

    def views(self, rows: int, columns: int) -> list[Tensor]:
        return [b[: rows * columns].view(rows, columns) for b in self.buffers]

    def forward(self, rows: Selection, store: bool = True) -> Tensor:
        """Row statistics [4, n] over the whole vocabulary; `store`: a gradient follows."""
        x = self.inputs(rows)
        d, e = self.views(x.shape[0], self.head.weight.shape[0])
        self.slope = logits_(self.head, x, self.head.scale(rows), d)
        local = statistics(d, e, self.target_ids[rows], self.shard, banned=self.head.bias is not None)
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
        d, e = self.views(logp.numel(), self.head.weight.shape[0])
        scale, shift = self.head.scale(rows), given(self.shift)
        here, y = self.shard.localize(self.target_ids[rows], d.shape[1])
        factor = (shift - log_sum).exp() * scale
        if h is None:
            e.mul_((-g * factor)[:, None])
        else:
            offset = shift - log_sum + entropy
            e.mul_(d.add_(offset[:, None]).mul_((-h * factor)[:, None]).add_((-g * factor)[:, None]))
        return self._finish_gradient(e, here, y, target_gradient(logp, entropy, g, h) * scale, self.slope), None

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
        x, scale = self.inputs(rows), self.head.scale(rows)
        d, p = self.views(x.shape[0], columns.stop - columns.start)
        slope = logits_(self.head.slice(columns).widen(self.dtype), x, scale, d)
        d.sub_(maximum[:, None]).sub_(log_sum[:, None])  # in two steps: their sum would round log_sum away
        if self.head.bias is not None:
            d.clamp_(min=FLOOR)
        torch.exp(d, out=p)
        if h is None:
            p.mul_(column(-g * scale))
        else:
            p.mul_(d.add_(entropy[:, None]).mul_((-h * scale)[:, None]).add_((-g * scale)[:, None]))
        here, y = locate(self.target_ids[rows], self.shard.start + columns.start, p.shape[1])
        return self._finish_gradient(p, here, y, target_gradient(logp, entropy, g, h) * scale, slope), None

    @staticmethod
    def _finish_gradient(dz: Tensor, here: Tensor | None, y: Tensor, target: Tensor, slope: Tensor | None) -> Tensor:
        target = target[:, None]
        dz.scatter_(1, y, target if here is None else torch.where(here[:, None], target, dz.gather(1, y)))
        return dz if slope is None else dz.mul_(slope)
