"""The fused linear ops as a loop over chunks of rows: logits of a chunk, row statistics, coefficients, gradients; the
chunk's buffer is then reused.

`grpo` forms the gradients in the forward (three GEMMs, 6NDV); `logprob` and `logprob_backward` recompute the logits in
the backward (8NDV) by vocabulary chunks, each slice of dW written once, for losses whose coefficients are known only
after every log-prob.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from siri_kernels import gemm
from siri_kernels.loss.spec import LossSettings
from siri_kernels.loss.tokens import Finish, Tally, Tokens, TorchTally, gradient_rows
from siri_kernels.rows.protocol import Head, Rows, Selection
from siri_kernels.rows.torch import TorchRows, finish
from siri_kernels.sharding import Shard
from siri_kernels.validation import given

# Bytes of logits buffers per call. On the CPU chunks that stay near the cache are also the fastest.
BUDGET = {
    "cpu": {"fast": 32 << 20, "small": 16 << 20, "lean": 8 << 20},
    "cuda": {"fast": 2600 << 20, "small": 900 << 20, "lean": 192 << 20},
}
MIN_ROWS, MIN_COLUMNS = 16, 64


def host_ints(x: Tensor) -> list[int]:
    numbers: Any = x.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return numbers


def budget_bytes(memory: str | int, device: torch.device) -> int:
    return memory if isinstance(memory, int) else BUDGET["cpu" if device.type == "cpu" else "cuda"][memory]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Needs:
    """Which gradients somebody will ask for."""

    hidden: bool
    weight: bool
    bias: bool
    frozen: int = 0
    """leading columns of the weight that have no gradient"""

    @property
    def any(self) -> bool:
        return self.hidden or self.weight or self.bias


def bytes_per_logit(impl: str, dtype: torch.dtype, stored: bool = True) -> float:
    """The torch path keeps z - max and exp(z - max), the fallback fp32 logits that become their own gradient, the
    anchored path exp(z - b) in bf16, or in a forward alone three sums per tile of 64 logits or more."""
    if impl == "anchored":
        return 2 if stored else 12 / 64
    return 2 * compute_dtype(dtype).itemsize if impl == "torch" else 4


def chunk_rows(impl: str, hidden: Tensor, vocab: int, budget: int, stored: bool = True) -> int:
    """Rows of a chunk: what the budget holds, in whole waves of the dX GEMM on a GPU. stored: gradients follow."""
    n, d_model = hidden.shape
    rows = max(1, min(n, max(MIN_ROWS, int(budget / (vocab * bytes_per_logit(impl, hidden.dtype, stored))))))
    return (
        rows
        if rows == n or hidden.device.type != "cuda"
        else whole_waves(rows, d_model, gemm.multiprocessors(hidden.device))
    )


def whole_waves(rows: int, d_model: int, sms: int, tile: tuple[int, int] = (128, 256)) -> int:
    """The number of rows in (rows/2, rows] whose [rows, d_model] GEMM fills its last wave of tiles best."""
    tiles = -(-d_model // tile[1])
    best, best_share = rows, 0.0
    for blocks in range(rows // tile[0], rows // (2 * tile[0]), -1):
        waves = -(-blocks * tiles // sms)
        share = blocks * tiles / (waves * sms)
        if share > best_share + 1e-3:
            best, best_share = blocks * tile[0], share
    return best


def engine(
    impl: str,
    hidden: Tensor,
    head: Head,
    target_ids: Tensor,
    shard: Shard,
    rows: int,
    columns: int,
    dtype: torch.dtype,
    *,
    anchor: Tensor | None = None,
    entropy_gradient: bool = False,
) -> Rows:
    """The row arithmetic of an implementation."""
    buffers = (rows, columns, dtype)
    if impl == "torch":
        return TorchRows(hidden, head, target_ids, shard, *buffers)
    if impl == "anchored":
        from siri_kernels.rows.anchored.rows import AnchoredRows

        return AnchoredRows(hidden, head, target_ids, shard, *buffers, anchor, entropy_gradient)
    from siri_kernels.rows.triton import TritonRows

    return TritonRows(hidden, head, target_ids, shard, *buffers)


def tally(
    impl: str, settings: LossSettings, tokens: Tokens, logp: Tensor, entropy: Tensor, n_chunks: int, size: int
) -> Tally:
    if impl == "torch" or settings.loss == "gspo":
        return TorchTally(settings, tokens, logp, entropy, finisher(impl))
    from siri_kernels.loss.triton import TritonTally

    return TritonTally(settings, tokens, logp, entropy, n_chunks, size)


def finisher(impl: str) -> Finish:
    """Row statistics [4, n] -> logp, entropy, log-sum. One function per kind of implementation, so that a log-prob has
    the same bits in every operator and an unchanged policy a ratio of exactly 1."""
    if impl == "torch":
        return lambda stats: finish(*stats.unbind())
    from siri_kernels.loss.triton import finish as triton_finish

    return triton_finish


def split_rows(
    n: int, keep: Tensor | None, forward_all: bool, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """(rows with a gradient, rows without), None standing for every row; no host sync: the sizes are known."""
    if keep is None or keep.numel() == n:
        return None, torch.empty(0, dtype=torch.int64, device=device)
    keep = keep.long()
    if not forward_all:
        return keep, torch.empty(0, dtype=torch.int64, device=device)
    kept = torch.zeros(n, dtype=torch.uint8, device=device).index_fill_(0, keep, 1)
    return keep, kept.argsort(stable=True)[: n - keep.numel()]


def chunks(rows: Tensor | None, n: int, size: int, lengths: list[int] | None = None) -> list[Selection]:
    """Slices of all n rows, or pieces of an index; with the lengths of sequences, cut between these only."""
    total = n if rows is None else rows.numel()
    ends = list(range(size, total, size)) if lengths is None else sequence_ends(lengths, size)
    bounds = list(zip([0, *ends], [*ends, total], strict=True))
    return [slice(*b) if rows is None else rows[slice(*b)] for b in bounds if b[0] < b[1]]


def sequence_ends(lengths: list[int], size: int) -> list[int]:
    """Where chunks of at most `size` rows end, each between two sequences of at most `size`."""
    ends: list[int] = []
    start = end = 0
    for length in lengths:
        if end + length - start > size:
            ends.append(end)
            start = end
        end += length
    return ends


def grpo(
    impl: str,
    hidden: Tensor,
    head: Head,
    target_ids: Tensor,
    settings: LossSettings,
    tokens: Tokens,
    *,
    keep: Tensor | None,
    keep_lengths: Tensor | None,
    forward_all: bool,
    budget: int,
    shard: Shard,
    needs: Needs,
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor], Tensor, Tensor, Tensor]:
    """loss, logp, entropy, metrics and the gradients of the loss: dX in hidden's dtype, dW and dbias in the compute
    dtype, empty when not needed. keep_lengths [S], on the host: how many rows of each sequence have gradients; chunks
    of those then end between sequences."""
    n, d_model = hidden.shape
    vocab, dtype, device = head.weight.shape[0], compute_dtype(hidden.dtype), hidden.device
    if keep is None and device.type == "cpu":
        keep = gradient_rows(settings, tokens)
    kept, others = split_rows(n, keep, forward_all, device)
    if kept is not None and not forward_all:
        tokens = tokens.restrict(torch.zeros(n, dtype=torch.bool, device=device).index_fill_(0, kept, True))
    size = chunk_rows(impl, hidden, shard.columns or vocab, budget)
    lengths = None if keep_lengths is None else host_ints(keep_lengths)
    pieces = [(rows, False) for rows in chunks(others, n, size)]
    pieces += [(rows, needs.any) for rows in chunks(kept, n, size, lengths)]

    logp = torch.full((n,), torch.nan, dtype=dtype, device=device)
    entropy = logp.clone()
    d_hidden = hidden.new_zeros(hidden.shape if needs.hidden else (0,))
    d_weight = torch.zeros((vocab, d_model - needs.frozen) if needs.weight else (0,), dtype=dtype, device=device)
    d_bias = torch.zeros((vocab,) if needs.bias else (0,), dtype=dtype, device=device)
    count = tally(impl, settings, tokens, logp, entropy, len(pieces), size)
    rows_of = engine(
        impl,
        hidden,
        head,
        target_ids,
        shard,
        size,
        vocab,
        dtype,
        anchor=tokens.rollout_logp,
        entropy_gradient=bool(settings.entropy_coef),
    )
    with gemm.surroundings(hidden):
        for rows, backward in pieces:
            stats = rows_of.forward(rows, backward)
            log_sum, g, h = count.add(rows, stats, backward)
            if g is None or not backward:
                continue
            dz, v = rows_of.gradient(rows, stats, log_sum, logp[rows], entropy[rows], g, h)
            if needs.hidden:
                exact = shard.whole and v is None and dz.dtype == hidden.dtype
                dx = torch.empty(dz.shape[0], d_model, dtype=hidden.dtype if exact else dtype, device=device)
                gemm.mm(dz, rows_of.weight(), out=dx)
                d_hidden[rows] = shard.all_reduce_(times_(dx, v)).to(hidden.dtype)
            if needs.weight:
                x = clean(rows_of.inputs(rows)[:, needs.frozen :], g, h)
                gemm.add_mm(dz.T, x if v is None else (x * v[:, None]).to(x.dtype), out=d_weight)
            if needs.bias:
                d_bias.add_(column_sums(dz, v, dtype))
    loss, metrics = count.result()
    return loss, logp, entropy, metrics, d_hidden, d_weight, d_bias


def times_(dx: Tensor, v: Tensor | None) -> Tensor:
    """diag(v) dx in place; v None = 1."""
    return dx if v is None else dx.mul_(v[:, None])


def column_sums(dz: Tensor, v: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The sum over rows of diag(v) dz, [columns]."""
    if v is None:
        return dz.sum(0, dtype=dtype)
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


def logprob(
    impl: str,
    hidden: Tensor,
    head: Head,
    target_ids: Tensor,
    *,
    anchor: Tensor | None,
    keep: Tensor | None,
    forward_all: bool,
    budget: int,
    shard: Shard,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logp, entropy, row maximum and log-sum [N]; rows outside `keep` are NaN when forward_all is False."""
    n, dtype, vocab = hidden.shape[0], compute_dtype(hidden.dtype), head.weight.shape[0]
    size = chunk_rows(impl, hidden, shard.columns or vocab, budget, stored=False)
    rows_of = engine(impl, hidden, head, target_ids, shard, size, vocab, dtype, anchor=anchor)
    all_logp, all_entropy, all_maximum, all_log_sum = (
        torch.full((n,), torch.nan, dtype=dtype, device=hidden.device) for _ in range(4)
    )
    only = None if forward_all or keep is None or keep.numel() == n else keep.long()
    with gemm.surroundings(hidden):
        for rows in chunks(only, n, size):
            stats = rows_of.forward(rows, False)
            all_logp[rows], all_entropy[rows], all_log_sum[rows] = finisher(impl)(stats)
            all_maximum[rows] = stats[0]
    return all_logp, all_entropy, all_maximum, all_log_sum


def logprob_backward(
    impl: str,
    g: Tensor,
    h: Tensor | None,
    hidden: Tensor,
    head: Head,
    target_ids: Tensor,
    saved: tuple[Tensor, ...],
    *,
    keep: Tensor | None,
    budget: int,
    shard: Shard,
    needs: Needs,
    weight_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """dX, dW, dbias in the inputs' dtypes from dL/dlogp and dL/dentropy [N]; rows outside `keep` have no gradient."""
    dtype, device, (vocab, d_model) = compute_dtype(hidden.dtype), hidden.device, head.weight.shape
    if keep is None and device.type == "cpu":
        keep = (g != 0 if h is None else (g != 0) | (h != 0)).nonzero().squeeze(1)
    rows = slice(0, hidden.shape[0]) if keep is None or keep.numel() == hidden.shape[0] else keep.long()
    logp, entropy, maximum, log_sum = (x[rows] for x in saved)
    g, h = g[rows].contiguous(), None if h is None else h[rows].contiguous()
    n = g.numel()
    held = int(budget // (bytes_per_logit(impl, hidden.dtype) * max(n, 1)))
    width = max(1, min(vocab, max(MIN_COLUMNS, held // 64 * 64)))
    rows_of = engine(impl, hidden, head, target_ids, shard, n, width, dtype)
    dx = torch.zeros(n if needs.hidden else 0, d_model, dtype=dtype, device=device)
    shape = (vocab, d_model - needs.frozen) if needs.weight else (0,)
    dw = torch.empty(shape, dtype=weight_dtype, device=device)
    db = torch.empty_like(given(head.bias)) if needs.bias else head.weight.new_zeros(0)
    x = clean(rows_of.inputs(rows)[:, needs.frozen :], g, h) if needs.weight else None
    v = None
    with gemm.surroundings(hidden):
        for start in range(0, vocab, width):
            columns = slice(start, min(start + width, vocab))
            dz, v = rows_of.slice_gradient(rows, columns, maximum, log_sum, logp, entropy, g, h)
            if v is not None and x is not None and start == 0:
                x = (x * v[:, None]).to(x.dtype)
            if needs.hidden:
                gemm.add_mm(dz, rows_of.weight(columns), out=dx)
            if x is not None:
                exact = dw.dtype in (dz.dtype, dtype)
                product = dw[columns] if exact else torch.empty(dz.shape[1], x.shape[1], dtype=dtype, device=device)
                gemm.mm(dz.T, x, out=product)
                if not exact:
                    dw[columns] = product.to(dw.dtype)
            if needs.bias:
                db[columns] = column_sums(dz, v, dtype).to(db.dtype)
    times_(dx, v)
    del x, rows_of  # before dX is narrowed: this is where a lean step peaks
    if not needs.hidden:
        return hidden.new_zeros(0), dw, db
    dx = shard.all_reduce_(dx).to(hidden.dtype)
    return dx if isinstance(rows, slice) else hidden.new_zeros(hidden.shape).index_copy_(0, rows, dx), dw, db
