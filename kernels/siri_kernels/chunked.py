"""The fused linear ops as a loop over chunks of rows: logits of a chunk, row statistics, coefficients, gradients; the
chunk is then reused.

`grpo` forms the gradients in the forward (three GEMMs, 6NDV); `logprob` and `logprob_backward` recompute the logits in
the backward (8NDV) by vocabulary chunks, each slice of dW written once, for losses whose coefficients are known only
after every log-prob.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from siri_kernels.rows_torch import FLOOR, Head, TorchRows, column, inverse, logits_, target_gradient
from siri_kernels.sharding import Shard, locate
from siri_kernels.token_loss import LossSpec, Tokens, coefficients, gradient_rows, summarize

# Bytes of logits buffers per call. On the CPU chunks that stay near the cache are also the fastest.
BUDGET = {
    "cpu": {"fast": 32 << 20, "small": 16 << 20, "lean": 8 << 20},
    "cuda": {"fast": 2600 << 20, "small": 900 << 20, "lean": 270 << 20},
}
MIN_ROWS, MIN_COLUMNS = 16, 64


def budget_bytes(memory: str | int, device: torch.device) -> int:
    return memory if isinstance(memory, int) else BUDGET["cpu" if device.type == "cpu" else "cuda"][memory]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def make_head(weight, bias, temperature, temperature_N, softcap, logit_dtype) -> Head:
    """The head from an operator's arguments; temperature_N, when given, wins."""
    return Head(
        weight,
        bias,
        temperature if temperature_N is None else temperature_N.to(compute_dtype(weight.dtype)),
        softcap,
        logit_dtype,
    )


def widen(head: Head, dtype: torch.dtype) -> Head:
    """The head in the compute dtype: one copy of a bf16 weight per call, none of an fp32 one."""
    return replace(head, weight=head.weight.to(dtype), bias=None if head.bias is None else head.bias.to(dtype))


@dataclass(frozen=True)
class Needs:
    """Which gradients somebody will ask for."""

    hidden: bool
    weight: bool
    bias: bool

    @property
    def any(self) -> bool:
        return self.hidden or self.weight or self.bias


def split_rows(n: int, keep: Tensor | None, forward_all: bool, device) -> tuple[Tensor | None, Tensor | None]:
    """(rows with a gradient, rows without), None standing for every row; no host sync: the sizes are known."""
    if keep is None or keep.numel() == n:
        return None, torch.empty(0, dtype=torch.int64, device=device)
    keep = keep.long()
    if not forward_all:
        return keep, torch.empty(0, dtype=torch.int64, device=device)
    kept = torch.zeros(n, dtype=torch.uint8, device=device).index_fill_(0, keep, 1)
    return keep, kept.argsort(stable=True)[: n - keep.numel()]


def chunks(rows: Tensor | None, n: int, size: int):
    """Slices of all n rows, or pieces of an index."""
    total = n if rows is None else rows.numel()
    for start in range(0, total, size):
        stop = min(start + size, total)
        yield slice(start, stop) if rows is None else rows[start:stop]


def chunk_rows(n: int, vocab: int, bytes_per_logit: int, budget: int) -> int:
    return max(1, min(n, max(MIN_ROWS, budget // (vocab * bytes_per_logit))))


def grpo(
    hidden: Tensor,
    head: Head,
    target_ids: Tensor,
    spec: LossSpec,
    tokens: Tokens,
    *,
    keep,
    forward_all: bool,
    budget: int,
    shard: Shard,
    needs: Needs,
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor], Tensor, Tensor, Tensor]:
    """loss, logp, entropy, metrics and the gradients of the loss (dX in hidden's dtype, dW and dbias in the compute
    dtype; empty when not needed)."""
    n, d_model = hidden.shape
    vocab, dtype, device = head.weight.shape[0], compute_dtype(hidden.dtype), hidden.device
    wide = widen(head, dtype)
    if keep is None and device.type == "cpu":
        keep = gradient_rows(spec, tokens)
    with_gradient, without = split_rows(n, keep, forward_all, device)
    size = chunk_rows(n, vocab, 2 * dtype.itemsize, budget)
    engine = TorchRows(size, vocab, dtype, device, shard)

    logp = torch.full((n,), torch.nan, dtype=dtype, device=device)
    entropy = logp.clone()
    d_hidden = hidden.new_zeros(hidden.shape if needs.hidden else (0,))
    d_weight = torch.zeros((vocab, d_model) if needs.weight else (0,), dtype=dtype, device=device)
    d_bias = torch.zeros((vocab,) if needs.bias else (0,), dtype=dtype, device=device)

    def forward(rows):
        x, y, scale = hidden[rows].to(dtype), target_ids[rows], head.scale(rows)
        stats = engine.forward(wide, x, y, scale)
        logp[rows], entropy[rows] = stats.logp, stats.entropy
        return x, y, scale, stats

    if with_gradient is not None and not forward_all:
        computed = torch.zeros(n, dtype=torch.bool, device=device).index_fill_(0, with_gradient, True)
        tokens = tokens.restrict(computed)
    for rows in chunks(without, n, size):
        forward(rows)
    for rows in chunks(with_gradient, n, size):
        x, y, scale, stats = forward(rows)
        if not needs.any:
            continue
        if spec.loss == "gspo":  # one chunk only: the rows of every sequence are there
            g, h = (None if c is None else c[rows] for c in coefficients(spec, tokens, logp))
        else:
            g, h = coefficients(spec, tokens.select(rows), stats.logp)
        dz = engine.backward_(stats, y, scale, g, h)
        if needs.hidden:
            d_hidden[rows] = shard.all_reduce_(dz @ wide.weight).to(hidden.dtype)
        if needs.weight:
            d_weight.addmm_(dz.T, x)
        if needs.bias:
            d_bias.add_(dz.sum(0))
    loss, metrics = summarize(spec, tokens, logp, entropy)
    return loss, logp, entropy, metrics, d_hidden, d_weight, d_bias


def logprob(
    hidden: Tensor, head: Head, target_ids: Tensor, *, keep, forward_all: bool, budget: int, shard: Shard
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logp, entropy, row maximum and log-sum [N]; rows outside `keep` are NaN when forward_all is False."""
    n, dtype = hidden.shape[0], compute_dtype(hidden.dtype)
    size = chunk_rows(n, head.weight.shape[0], 2 * dtype.itemsize, budget)
    wide = widen(head, dtype)
    engine = TorchRows(size, head.weight.shape[0], dtype, hidden.device, shard)
    out = torch.full((4, n), torch.nan, dtype=dtype, device=hidden.device)
    only = None if forward_all or keep is None or keep.numel() == n else keep.long()
    for rows in chunks(only, n, size):
        stats = engine.forward(wide, hidden[rows].to(dtype), target_ids[rows], head.scale(rows))
        out[:, rows] = torch.stack([stats.logp, stats.entropy, stats.maximum, stats.log_sum])
    return tuple(row.clone() for row in out)


def logprob_backward(
    g: Tensor,
    h: Tensor | None,
    hidden: Tensor,
    head: Head,
    target_ids: Tensor,
    saved: tuple[Tensor, ...],
    *,
    keep,
    budget: int,
    shard: Shard,
    needs: Needs,
    weight_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """dX, dW, dbias in the inputs' dtypes from dL/dlogp and dL/dentropy [N]; rows outside `keep` have no gradient."""
    dtype, vocab = compute_dtype(hidden.dtype), head.weight.shape[0]
    if keep is None and hidden.device.type == "cpu":
        keep = (g != 0 if h is None else (g != 0) | (h != 0)).nonzero().squeeze(1)
    rows = slice(None) if keep is None or keep.numel() == hidden.shape[0] else keep.long()
    logp, entropy, maximum, log_sum = (x[rows] for x in saved)
    x, y, g, scale = hidden[rows].to(dtype), target_ids[rows], g[rows], head.scale(rows)
    h = None if h is None else h[rows]
    n = x.shape[0]
    width = max(1, min(vocab, max(MIN_COLUMNS, budget // (2 * dtype.itemsize * max(n, 1)))))
    buffers = torch.empty(2, n * width, dtype=dtype, device=x.device)
    target = target_gradient(logp, entropy, g, h) * scale
    dx = torch.zeros_like(x) if needs.hidden else x.new_zeros(0)
    dw = torch.empty_like(head.weight, dtype=weight_dtype) if needs.weight else head.weight.new_zeros(0)
    db = torch.empty_like(head.bias) if needs.bias else head.weight.new_zeros(0)
    for start in range(0, vocab, width):
        columns = slice(start, min(start + width, vocab))
        piece = Head(
            head.weight[columns].to(dtype),
            None if head.bias is None else head.bias[columns].to(dtype),
            head.temperature,
            head.softcap,
            head.logit_dtype,
        )
        d, p = (b[: n * piece.weight.shape[0]].view(n, piece.weight.shape[0]) for b in buffers)
        slope = logits_(piece, x, scale, d)
        d.sub_(maximum[:, None]).sub_(
            log_sum[:, None]
        )  # in two steps: their sum would round log_sum away at large logits
        if head.bias is not None:
            d.clamp_(min=FLOOR)
        torch.exp(d, out=p)
        if h is None:
            p.mul_(column(-g * scale))
        else:
            p.mul_(d.add_(entropy[:, None]).mul_((-h * scale)[:, None]).add_((-g * scale)[:, None]))
        local, position = locate(y, shard.start + start, p.shape[1])
        p.scatter_(1, position, torch.where(local[:, None], target[:, None], p.gather(1, position)))
        if slope is not None:
            p.mul_(slope)
        if needs.hidden:
            dx.addmm_(p, piece.weight)
        if needs.weight:
            dw[columns] = (p.T @ x).to(dw.dtype)
        if needs.bias:
            db[columns] = p.sum(0).to(db.dtype)
    if not needs.hidden:
        return dx, dw, db
    dx = shard.all_reduce_(dx).to(hidden.dtype)
    return dx if isinstance(rows, slice) else hidden.new_zeros(hidden.shape).index_copy_(0, rows, dx), dw, db


def logits_logprob(
    logits: Tensor, target_ids: Tensor, temperature: float | Tensor, *, budget: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logp, entropy, row maximum and log-sum [N] of given logits [N, V]."""
    n, vocab = logits.shape
    dtype = compute_dtype(logits.dtype)
    size = chunk_rows(n, vocab, 2 * dtype.itemsize, budget)
    engine = TorchRows(size, vocab, dtype, logits.device, Shard())
    out = torch.empty(4, n, dtype=dtype, device=logits.device)
    for rows in chunks(None, n, size):
        d = engine.buffers[0, : rows.stop - rows.start]
        d.copy_(logits[rows]).mul_(inverse(temperature, rows))  # widened first: the product must not round to bf16
        stats = engine.statistics(d, None, target_ids[rows], banned=True)
        out[:, rows] = torch.stack([stats.logp, stats.entropy, stats.maximum, stats.log_sum])
    return tuple(row.clone() for row in out)


def logits_logprob_backward(
    g: Tensor,
    h: Tensor | None,
    logits: Tensor,
    target_ids: Tensor,
    temperature,
    saved: tuple[Tensor, ...],
    *,
    budget: int,
) -> Tensor:
    """dL/dlogits [N, V] in the dtype of the logits."""
    n, vocab = logits.shape
    dtype = compute_dtype(logits.dtype)
    size = chunk_rows(n, vocab, dtype.itemsize, budget)
    out = torch.empty_like(logits)
    for rows in chunks(None, n, size):
        logp, entropy, maximum, log_sum = (x[rows] for x in saved)
        scale, g_rows, h_rows = inverse(temperature, rows), g[rows], None if h is None else h[rows]
        d = (logits[rows].to(dtype) * scale).clamp_(min=FLOOR).sub_(maximum[:, None]).sub_(log_sum[:, None])
        slope = -g_rows[:, None] if h is None else -g_rows[:, None] - h_rows[:, None] * (d + entropy[:, None])
        gradient = d.exp_().mul_(slope * scale)
        target = target_gradient(logp, entropy, g_rows, h_rows)[:, None] * scale
        out[rows] = gradient.scatter_(1, target_ids[rows].long()[:, None], target)
    return out
