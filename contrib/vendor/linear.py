"""Log-prob and entropy of given tokens from hidden states and an LM head, without the logits of the batch: what the
vendored files for prime-rl and SkyRL share.

N tokens, D hidden size, V vocabulary of this rank.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from siri_kernels.gemm import full_precision
from siri_kernels.rows.kernels import INTERPRETED, dlogits, narrow_view, row_stats
from siri_kernels.rows.torch import FLOOR, column, finish, statistics, target_gradient
from siri_kernels.rows.triton import gradient_dtype
from siri_kernels.sharding import Shard
from torch import Tensor


@contextmanager
def exact_products(like: Tensor) -> Generator[None, None, None]:
    """The tensors' device is the current one, no autocast, no TF32 and no sums in half precision, whatever is set."""
    with torch.autocast(like.device.type, enabled=False):
        if not like.is_cuda:
            yield
            return
        with torch.cuda.device(like.device), full_precision(like.dtype):
            yield


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b in `dtype`, not rounded to the operands' dtype on the way."""
    if a.dtype == dtype:
        return a @ b
    return torch.mm(a, b, out_dtype=dtype) if a.is_cuda else a.to(dtype) @ b.to(dtype)


def by_kernels(z: Tensor) -> bool:
    return z.dtype == torch.float32 and (z.is_cuda or INTERPRETED)


def statistics_of(z: Tensor, target_ids: Tensor, inverse_t: float | Tensor, shard: Shard) -> Tensor:
    """[4, n] of logits z [n, V] times inverse_t, over all shards: maximum, sums without the target, target's logit."""
    if by_kernels(z):
        return shard.combine(row_stats(z, target_ids, inverse_t, None, shard.start))
    d = z * column(inverse_t)
    return shard.combine(statistics(d, torch.empty_like(d), target_ids, shard, banned=True))


def logits_gradient(
    z: Tensor,
    out: Tensor,
    target_ids: Tensor,
    inverse_t: float | Tensor,
    shard: Shard,
    saved: tuple[Tensor, Tensor, Tensor, Tensor],
    g: Tensor,
    h: Tensor | None,
) -> Tensor:
    """dL/dz [n, V] into `out`, which may lie over z, from dL/dlogp and dL/dentropy [n]."""
    logp, entropy, maximum, log_sum = saved
    if by_kernels(z):
        numbers = maximum, log_sum, logp, entropy, g, h
        return dlogits(z, out, target_ids, inverse_t, None, shard.start, *numbers)
    scale = column(inverse_t)
    d = (z * scale).clamp_(min=FLOOR).sub_(maximum[:, None]).sub_(log_sum[:, None])
    slope = -g[:, None] if h is None else -g[:, None] - h[:, None] * (d + entropy[:, None])
    dz = d.exp_().mul_(slope * scale)
    here, y = shard.localize(target_ids, z.shape[1])
    target = target_gradient(logp, entropy, g, h)[:, None] * scale
    dz.scatter_(1, y, target if here is None else torch.where(here[:, None], target, dz.gather(1, y)))
    return out.copy_(dz)


class LinearLogProb(torch.autograd.Function):
    """hidden [N, D] and weight [V, D] in one dtype, target_ids [N], 1/temperature (a number or [N]) -> log-prob and
    entropy [N], fp32 (fp64 of fp64). The logits of `chunk_rows` rows are there at a time, and are made again in the
    backward; dW is summed in fp32. With shards of the vocabulary dX is this shard's part of it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        target_ids: Tensor,
        inverse_t: float | Tensor,
        shard: Shard,
        chunk_rows: int,
    ) -> tuple[Tensor, Tensor]:
        n = hidden.shape[0]
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        saved = torch.empty(4, n, dtype=dtype, device=hidden.device)
        with exact_products(hidden):
            for start in range(0, n, chunk_rows):
                rows = slice(start, start + chunk_rows)
                scale = inverse_t[rows] if isinstance(inverse_t, Tensor) else inverse_t
                stats = statistics_of(product(hidden[rows], weight.T, dtype), target_ids[rows], scale, shard)
                saved[0, rows], saved[1, rows], saved[3, rows] = finish(*stats.unbind())
                saved[2, rows] = stats[0]
        per_token = inverse_t if isinstance(inverse_t, Tensor) else None
        ctx.save_for_backward(hidden, weight, target_ids, per_token, saved)
        ctx.set_materialize_grads(False)
        ctx.number, ctx.shard, ctx.chunk_rows = inverse_t, shard, chunk_rows
        return saved[0].clone(), saved[1].clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, target_ids, per_token, saved = ctx.saved_tensors
        g, h = (None if x is None else x.to(saved.dtype).contiguous() for x in grad_outputs)
        g = torch.zeros_like(saved[0]) if g is None else g
        operand = gradient_dtype(hidden.dtype) if hidden.dtype != torch.float64 else hidden.dtype
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight, dtype=saved.dtype) if ctx.needs_input_grad[1] else None
        with exact_products(hidden):
            narrow_weight = weight.to(operand)
            for start in range(0, hidden.shape[0], ctx.chunk_rows):
                rows = slice(start, start + ctx.chunk_rows)
                scale = ctx.number if per_token is None else per_token[rows]
                x, h_rows = hidden[rows], None if h is None else h[rows]
                z = product(x, weight.T, saved.dtype)
                numbers = saved[0, rows], saved[1, rows], saved[2, rows], saved[3, rows]
                out = narrow_view(z, operand) if by_kernels(z) else torch.empty_like(z, dtype=operand)
                dz = logits_gradient(z, out, target_ids[rows], scale, ctx.shard, numbers, g[rows], h_rows)
                if d_hidden is not None:
                    d_hidden[rows] = product(dz, narrow_weight, saved.dtype).to(hidden.dtype)
                if d_weight is not None:
                    d_weight += product(dz.T, x.to(operand), saved.dtype)
        return d_hidden, None if d_weight is None else d_weight.to(weight.dtype), None, None, None, None
