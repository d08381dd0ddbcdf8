"""What surrounds the two gradient GEMMs: rows times their factors, in and out."""

from __future__ import annotations

import torch
from torch import Tensor

from siri_kernels import gemm
from siri_kernels.rows.protocol import Selection
from siri_kernels.sharding import Shard


def whole_rows(e: Tensor) -> Tensor:
    """Rows of a matrix together with what lies between them."""
    return e.as_strided((e.shape[0], e.stride(0)), (e.stride(0), 1))


def late_weight_gradient(
    e: Tensor, v: Tensor, hidden: Tensor, upstream: Tensor, *, keep: Tensor | None, vocab: int, frozen: int, plain: bool
) -> Tensor:
    """dW = upstream (diag(v) E)^T x [V, D] in hidden's dtype, of what `chunked.grpo` left, E [n, V or more] and v [n]:
    each number of it is written once. upstream []; keep: the rows of hidden that E is of, None = all; frozen: leading
    columns of x to leave out; plain: without kernels."""
    with gemm.surroundings(hidden):
        x = (hidden if keep is None or keep.numel() == hidden.shape[0] else hidden[keep.long()])[:, frozen:]
        x = x if x.stride(1) == 1 else x.contiguous()
        if plain:
            x = rows_times(x, v * upstream, clear=True)
        else:
            from siri_kernels.rows.scaling import scale_rows

            x = scale_rows(x, v, hidden.new_empty(x.shape), upstream=upstream, clear=True)
        return gemm.mm(e[:, :vocab].T, x, out=hidden.new_empty(vocab, x.shape[1]))


def put_rows_(
    d_hidden: Tensor, rows: Selection, dx: Tensor, v: Tensor | None, shard: Shard, *, plain: bool = False
) -> None:
    """d_hidden[rows] = the sum of diag(v) dx over the shards, v None = 1."""
    if v is None or not shard.whole:  # the sum over shards is taken in fp32
        d_hidden[rows] = shard.all_reduce_(times_(dx, v)).to(d_hidden.dtype)
        return
    if plain:
        d_hidden[rows] = times_(dx, v).to(d_hidden.dtype)
        return
    from siri_kernels.rows.scaling import scale_rows

    scale_rows(dx, v, d_hidden, rows)


def rows_times(x: Tensor, v: Tensor, *, clear: bool) -> Tensor:
    """diag(v) x in x's dtype; clear: 0 where v is, whatever x holds."""
    product = x * v[:, None]
    return (torch.where((v == 0)[:, None], 0.0, product) if clear else product).to(x.dtype)


def weighted(x: Tensor, v: Tensor | None, g: Tensor, h: Tensor | None, *, plain: bool = False) -> Tensor:
    """diag(v) x for the weight's gradient, v None = 1, with zeros in rows without a gradient."""
    if v is None:
        return clean(x, g, h)
    if plain:
        return rows_times(x, v, clear=True)
    from siri_kernels.rows.scaling import scale_rows

    return scale_rows(x, v, torch.empty_like(x, memory_format=torch.contiguous_format), clear=True)


def times_(dx: Tensor, v: Tensor | None) -> Tensor:
    """diag(v) dx in place; v None = 1."""
    return dx if v is None else dx.mul_(v[:, None])


def column_sums(dz: Tensor, v: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The sum over rows of diag(v) dz, [columns]."""
    if v is None:
        return dz.sum(0, dtype=dtype)
    if dz.dtype == dtype:
        return dz.T @ v
    high = v.to(dz.dtype)
    parts = torch.stack([high, (v - high).to(dz.dtype)], 1)  # v to twice the digits of a GEMM operand
    return gemm.mm(dz.T, parts, out=v.new_empty(dz.shape[1], 2)).sum(1)


def clean(x: Tensor, g: Tensor, h: Tensor | None) -> Tensor:
    """x with zeros in rows without a gradient, so that a NaN nobody counts cannot reach dW; on the CPU they were
    dropped before."""
    if x.device.type == "cpu":
        return x
    active = g != 0 if h is None else (g != 0) | (h != 0)
    return torch.where(active[:, None], x, torch.zeros((), dtype=x.dtype, device=x.device))
