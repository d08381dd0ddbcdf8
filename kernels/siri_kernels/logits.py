"""Log-probs of given logits [N, V]: no GEMM, so nothing of an LM head."""

from __future__ import annotations

import torch
from torch import Tensor

from siri_kernels.chunked import MIN_ROWS, bytes_per_logit, chunks, compute_dtype
from siri_kernels.rows.protocol import Selection
from siri_kernels.rows.torch import FLOOR, column, finish, statistics, target_gradient
from siri_kernels.sharding import Shard

NEAR_CACHE = 32 << 20
"""Bytes of a chunk's buffers on the torch path"""


def logits_logprob(
    impl: str, logits: Tensor, target_ids: Tensor, temperature: float | Tensor, *, budget: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logp, entropy, row maximum and log-sum [N] of given logits [N, V]."""
    n, vocab = logits.shape
    dtype = compute_dtype(logits.dtype)
    if impl == "torch":
        stats = torch.empty(4, n, dtype=dtype, device=logits.device)
        size = logits_rows(n, vocab, dtype, budget)
        buffers = torch.empty(2, size, vocab, dtype=dtype, device=logits.device)
        for rows in chunks(None, n, size):
            piece = logits[rows]
            d, e = buffers[:, : piece.shape[0]]
            d.copy_(piece).mul_(inverse(temperature, rows))  # widened first: the product must not round to bf16
            stats[:, rows] = statistics(d, e, target_ids[rows], Shard(), banned=True)
    else:
        from siri_kernels.rows.kernels import row_stats

        stats = row_stats(unit_stride(logits), target_ids.contiguous(), 1 / temperature, None)
    logp, entropy, log_sum = finish(*stats.unbind())
    return logp, entropy, stats[0].clone(), log_sum


def logits_logprob_backward(
    impl: str,
    g: Tensor,
    h: Tensor | None,
    logits: Tensor,
    target_ids: Tensor,
    temperature: float | Tensor,
    saved: tuple[Tensor, ...],
    *,
    budget: int,
) -> Tensor:
    """dL/dlogits [N, V] in the dtype of the logits."""
    n, vocab = logits.shape
    out = torch.empty(n, vocab, dtype=logits.dtype, device=logits.device)
    if impl != "torch":
        from siri_kernels.rows.kernels import dlogits

        logp, entropy, maximum, log_sum = saved
        g, h = g.contiguous(), None if h is None else h.contiguous()
        scale, y = 1 / temperature, target_ids.contiguous()
        return dlogits(unit_stride(logits), out, y, scale, None, 0, maximum, log_sum, logp, entropy, g, h)
    dtype = compute_dtype(logits.dtype)
    for rows in chunks(None, n, logits_rows(n, vocab, dtype, budget)):
        logp, entropy, maximum, log_sum = (x[rows] for x in saved)
        scale, g_rows, h_rows = inverse(temperature, rows), g[rows], None if h is None else h[rows]
        d = (logits[rows].to(dtype) * scale).clamp_(min=FLOOR).sub_(maximum[:, None]).sub_(log_sum[:, None])
        slope = -g_rows[:, None] if h_rows is None else -g_rows[:, None] - h_rows[:, None] * (d + entropy[:, None])
        gradient = d.exp_().mul_(slope * scale)
        target = target_gradient(logp, entropy, g_rows, h_rows)[:, None] * scale
        out[rows] = gradient.scatter_(1, target_ids[rows].long()[:, None], target).to(out.dtype)
    return out


def logits_rows(n: int, vocab: int, dtype: torch.dtype, budget: int) -> int:
    """Rows of a chunk of given logits on the torch path: no GEMM gains by large ones."""
    return max(1, min(n, max(MIN_ROWS, int(min(budget, NEAR_CACHE) // (vocab * bytes_per_logit("torch", dtype))))))


def inverse(temperature: float | Tensor, rows: Selection) -> float | Tensor:
    return column(1 / temperature[rows]) if isinstance(temperature, Tensor) else 1 / temperature


def unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
