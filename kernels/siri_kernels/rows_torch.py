"""Row arithmetic on a chunk of logits in plain torch: what the Triton row kernels do, for CPU tensors, fp64, and as
their cross-check.

Per row, with d = z - max(z) and the target y left out of the sums (so that p -> 1 keeps its last bit):
    s_off = sum over j != y of exp(d_j),    s = exp(d_y) + s_off
    logp = d_y - log s,    H = log s - (sum exp(d) d) / s
    dL/dz_j = p_j (-g - h (log p_j + H)) for j != y,    dL/dz_y = g s_off/s - h p_y (logp + H)
where g = dL/dlogp and h = dL/dH.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from siri_kernels.sharding import Shard

FLOOR = -1e30  # stands in for -inf (a banned token) where 0 * inf would be NaN


@dataclass(frozen=True)
class Head:
    """The LM head as the row arithmetic sees it: weight_VD and bias_V in the compute dtype."""

    weight: Tensor
    bias: Tensor | None = None
    temperature: float | Tensor = 1.0
    """a number, or [N]"""
    softcap: float | None = None
    logit_dtype: str = "fp32"

    def scale(self, rows) -> float | Tensor:
        """1 / temperature, as a number or as [rows]."""
        return 1 / self.temperature[rows] if isinstance(self.temperature, Tensor) else 1 / self.temperature


def inverse(temperature: float | Tensor, rows) -> float | Tensor:
    """1 / temperature, as a number or as a column [rows, 1]."""
    return 1 / temperature[rows][:, None] if isinstance(temperature, Tensor) else 1 / temperature


def column(x) -> Tensor:
    return x[:, None] if isinstance(x, Tensor) else x


def logits_(head: Head, x: Tensor, scale, out: Tensor, columns: slice = slice(None)) -> Tensor | None:
    """Write softcap(x @ W.T + b) * scale into `out`; returns d softcap / dz when there is a softcap."""
    weight = head.weight[columns]
    if head.bias is None:
        torch.mm(x, weight.T, out=out)
    else:
        torch.addmm(head.bias[columns], x, weight.T, out=out)
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


@dataclass
class Rows:
    """Statistics of one chunk of rows, [n] each, and the buffers its gradient is formed in."""

    logp: Tensor
    entropy: Tensor
    maximum: Tensor
    """max of the row's logits over all vocabulary shards"""
    log_sum: Tensor
    """log sum exp(z - maximum)"""
    d: Tensor
    e: Tensor
    slope: Tensor | None
    shift: Tensor
    """local maximum - maximum: what d and e have to be moved by"""


class TorchRows:
    """Forward and backward of the rows of a chunk; owns two buffers [rows, V] that every chunk reuses."""

    def __init__(self, rows: int, vocab: int, dtype: torch.dtype, device: torch.device, shard: Shard):
        self.shard = shard
        self.buffers = torch.empty(2, rows, vocab, dtype=dtype, device=device)

    def forward(self, head: Head, x: Tensor, target_ids: Tensor, scale) -> Rows:
        """Statistics of the rows x [n, D] under the head."""
        d = self.buffers[0, : x.shape[0]]
        slope = logits_(head, x, scale, d)
        return self.statistics(d, slope, target_ids, banned=head.bias is not None)

    def statistics(self, d: Tensor, slope: Tensor | None, target_ids: Tensor, *, banned: bool) -> Rows:
        """Statistics of scaled logits in the first buffer; `banned`: -inf, a token that cannot be sampled, may be among
        them."""
        e = self.buffers[1, : d.shape[0]]
        own, y = self.shard.localize(target_ids, d.shape[1])
        target_z = d.gather(1, y).squeeze(1)
        if own is not None:
            target_z = torch.where(own, target_z, 0.0)
        if banned:
            d.clamp_(min=FLOOR)
        local_max = d.amax(1)
        d.sub_(local_max[:, None])
        torch.exp(d, out=e)
        e.scatter_(
            1, y, torch.zeros_like(target_z)[:, None] if own is None else torch.where(own[:, None], 0.0, e.gather(1, y))
        )
        maximum, s_off, u_off, target_z = self.shard.combine(local_max, e.sum(1), torch.linalg.vecdot(e, d), target_z)
        logp, entropy, log_sum = finish(maximum, s_off, u_off, target_z)
        return Rows(logp, entropy, maximum, log_sum, d, e, slope, local_max - maximum)

    def backward_(self, rows: Rows, target_ids: Tensor, scale, g: Tensor, h: Tensor | None) -> Tensor:
        """dL/dlogits [n, V] of the raw logits, in place of the chunk's buffer."""
        d, e = rows.d, rows.e
        own, y = self.shard.localize(target_ids, d.shape[1])
        inv = (rows.shift - rows.log_sum).exp() * scale
        if h is None:
            e.mul_((-g * inv)[:, None])
        else:
            d.add_((rows.shift - rows.log_sum + rows.entropy)[:, None]).mul_((-h * inv)[:, None]).add_(
                (-g * inv)[:, None]
            )
            e.mul_(d)
        target = target_gradient(rows.logp, rows.entropy, g, h) * scale
        if own is not None:
            target = torch.where(own, target, e.gather(1, y).squeeze(1))
        e.scatter_(1, y, target[:, None])
        if rows.slope is not None:
            e.mul_(rows.slope)
        return e


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
