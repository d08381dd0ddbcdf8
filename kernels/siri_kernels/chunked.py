"""The fused linear ops as a loop over chunks of rows: logits of a chunk, row statistics, coefficients, gradients; the
chunk's buffer is then reused.

`grpo` forms the gradients in the forward (three GEMMs, 6NDV); `logprob` and `logprob_backward` recompute the logits in
the backward (8NDV) by vocabulary chunks, each slice of dW written once, for losses whose coefficients are known only
after every log-prob.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from siri_kernels import gemm
from siri_kernels.gradients import column_sums, put_rows_, weighted, whole_rows
from siri_kernels.loss.spec import LossSettings
from siri_kernels.loss.tokens import Finish, Tally, Tokens, TorchTally, gradient_rows
from siri_kernels.rows.protocol import Head, Rows, Selection
from siri_kernels.rows.sliced import SlicedRows, operand_dtype
from siri_kernels.rows.torch import TorchRows, finish
from siri_kernels.sharding import Shard
from siri_kernels.validation import given

PLAIN = ("torch", "sliced")
"""Implementations without a kernel of our own"""
# Bytes of logits buffers per call. Each chunk costs a pass over all of dW, which a large chunk makes small beside its
# GEMMs; what has to stay in the cache is done in blocks of it (`rows.sliced`, `rows.torch`).
BUDGET = {
    "cpu": {"fast": 1 << 30, "small": 128 << 20, "lean": 64 << 20},
    "cuda": {"fast": 2600 << 20, "small": 900 << 20, "lean": 192 << 20},
}
MIN_ROWS, MIN_COLUMNS, TILE_COLUMNS = 16, 64, 256
LN2 = math.log(2)


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
    """The torch path keeps fp32 logits that become their own gradient, and with an entropy bonus as many exponentials
    beside them (room is left for these in any case: chunks, and with them the last bits of log-probs, do not depend on
    the bonus), the fallback fp32 logits, the anchored path exp(z - b) in bf16, or in a forward alone three sums per
    tile of 64 logits or more; sliced on a CPU the same in the operands' dtype, and in a forward alone nothing."""
    if impl == "anchored":
        return 2 if stored else 12 / 64
    if impl == "sliced":
        return operand_dtype(dtype).itemsize if stored else 12 / 64
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


def slice_columns(impl: str, dtype: torch.dtype, n: int, vocab: int, budget: int) -> int:
    """Columns of a slice of the vocabulary for n rows: what the budget holds, for the anchored GEMM in whole tiles (it
    has a kernel of its own for others)."""
    step = TILE_COLUMNS if impl == "anchored" else MIN_COLUMNS
    held = int(budget // (bytes_per_logit(impl, dtype) * max(n, 1)))
    return max(1, min(vocab, max(step, held // step * step)))


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
    offset: Tensor | None = None,
    entropy_gradient: bool = False,
) -> Rows:
    """The row arithmetic of an implementation; anchor and offset are for those that measure from somewhere."""
    buffers = (rows, columns, dtype)
    if impl == "torch":
        return TorchRows(hidden, head, target_ids, shard, *buffers, entropy_gradient)
    if impl == "sliced":
        return SlicedRows(hidden, head, target_ids, shard, *buffers, anchor, offset, entropy_gradient)
    if impl == "anchored":
        from siri_kernels.rows.anchored.rows import AnchoredRows

        return AnchoredRows(hidden, head, target_ids, shard, *buffers, anchor, offset, entropy_gradient)
    from siri_kernels.rows.triton import TritonRows

    return TritonRows(hidden, head, target_ids, shard, *buffers)


def tally(
    impl: str, settings: LossSettings, tokens: Tokens, logp: Tensor, entropy: Tensor, n_chunks: int, size: int
) -> Tally:
    if impl in PLAIN or settings.loss == "gspo":
        return TorchTally(settings, tokens, logp, entropy, finisher(impl))
    from siri_kernels.loss.triton import TritonTally

    return TritonTally(settings, tokens, logp, entropy, n_chunks, size)


def finisher(impl: str) -> Finish:
    """Row statistics [4, n] -> logp, entropy, log-sum. One function per kind of implementation, so that a log-prob has
    the same bits in every operator and an unchanged policy a ratio of exactly 1."""
    if impl in PLAIN:
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
    offset: Tensor | None,
    keep: Tensor | None,
    keep_lengths: Tensor | None,
    forward_all: bool,
    budget: int,
    shard: Shard,
    needs: Needs,
    late_weight: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """loss, logp, entropy, metrics (by METRIC_REDUCTION) and the gradients of the loss: dX in hidden's dtype,
    dW and dbias in the compute dtype, empty when not needed. keep_lengths [S], on the host: how many rows of each
    sequence have gradients; chunks of those then end between sequences. late_weight: leave dW to
    `late_weight_gradient`, which takes what comes last, E and v of the only chunk with gradients."""
    n, d_model = hidden.shape
    vocab, dtype, device = head.weight.shape[0], compute_dtype(hidden.dtype), hidden.device
    if keep is None and device.type == "cpu" and not late_weight:
        keep = gradient_rows(settings, tokens)
    early_weight = needs.weight and not late_weight
    kept, others = split_rows(n, keep, forward_all, device)
    if kept is not None and not forward_all:
        tokens = tokens.restrict(torch.zeros(n, dtype=torch.bool, device=device).index_fill_(0, kept, True))
    size = chunk_rows(impl, hidden, shard.columns or vocab, budget)
    lengths = None if keep_lengths is None else host_ints(keep_lengths)
    pieces = [(rows, False) for rows in chunks(others, n, size)]
    pieces += [(rows, needs.any) for rows in chunks(kept, n, size, lengths)]

    logp = torch.full((n,), torch.nan, dtype=dtype, device=device)
    entropy = logp.clone()
    d_hidden = (hidden.new_empty if kept is None else hidden.new_zeros)(hidden.shape if needs.hidden else (0,))
    d_weight = torch.empty((vocab, d_model - needs.frozen) if early_weight else (0,), dtype=dtype, device=device)
    written = False
    kept_e = kept_v = None
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
        offset=offset,
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
                in_place = exact and isinstance(rows, slice)
                dx = torch.empty(dz.shape[0], d_model, dtype=hidden.dtype if exact else dtype, device=device)
                dx = gemm.mm(dz, rows_of.weight(), out=d_hidden[rows] if in_place else dx)
                if not in_place:
                    put_rows_(d_hidden, rows, dx, v, shard, plain=impl in PLAIN)
            if early_weight:
                x = weighted(rows_of.inputs(rows)[:, needs.frozen :], v, g, h, plain=impl in PLAIN)
                (gemm.add_mm if written else gemm.mm)(dz.T, x, out=d_weight)
                written = True
            elif needs.weight:
                kept_e, kept_v = dz, torch.ones_like(g) if v is None else v
            if needs.bias:
                d_bias.add_(column_sums(dz, v, dtype))
    if early_weight and not written:
        d_weight.zero_()
    nothing = hidden.new_empty(0), hidden.new_empty(0, dtype=dtype)
    late = nothing if kept_e is None else (whole_rows(kept_e), given(kept_v))
    loss, metrics = count.result()
    return loss, logp, entropy, metrics, d_hidden, d_weight, d_bias, late


def logprob(
    impl: str,
    hidden: Tensor,
    head: Head,
    target_ids: Tensor,
    *,
    anchor: Tensor | None,
    offset: Tensor | None,
    keep: Tensor | None,
    forward_all: bool,
    budget: int,
    shard: Shard,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """logp, entropy, row maximum, log-sum and offset [N]; rows outside `keep` are NaN when forward_all is False."""
    n, dtype, vocab = hidden.shape[0], compute_dtype(hidden.dtype), head.weight.shape[0]
    size = chunk_rows(impl, hidden, shard.columns or vocab, budget, stored=False)
    rows_of = engine(impl, hidden, head, target_ids, shard, size, vocab, dtype, anchor=anchor, offset=offset)
    # five, not views of one: an operator's outputs must not share memory
    logp, entropy, maximum, log_sum, offsets = (hidden.new_full((n,), torch.nan, dtype=dtype) for _ in range(5))
    only = None if forward_all or keep is None or keep.numel() == n else keep.long()
    with gemm.surroundings(hidden):
        for rows in chunks(only, n, size):
            stats = rows_of.forward(rows, False)
            logp[rows], entropy[rows], log_sum[rows] = finisher(impl)(stats)
            maximum[rows] = stats[0]
            offsets[rows] = (stats[0] + log_sum[rows]) / LN2 if rows_of.offset is None else rows_of.offset
    return logp, entropy, maximum, log_sum, offsets


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
    width = slice_columns(impl, hidden.dtype, n, vocab, budget)
    rows_of = engine(impl, hidden, head, target_ids, shard, n, width, dtype)
    dx = torch.empty(n if needs.hidden else 0, d_model, dtype=dtype, device=device)
    shape = (vocab, d_model - needs.frozen) if needs.weight else (0,)
    dw = torch.empty(shape, dtype=weight_dtype, device=device)
    db = given(head.bias).new_empty(vocab) if needs.bias else head.weight.new_zeros(0)
    inputs = rows_of.inputs(rows)[:, needs.frozen :] if needs.weight else None
    x = v = None
    with gemm.surroundings(hidden):
        for start in range(0, vocab, width):
            columns = slice(start, min(start + width, vocab))
            dz, v = rows_of.slice_gradient(rows, columns, maximum, log_sum, logp, entropy, g, h)
            if inputs is not None and start == 0:
                inputs, x = None, weighted(inputs, v, g, h, plain=impl in PLAIN)
            if needs.hidden:
                (gemm.add_mm if start else gemm.mm)(dz, rows_of.weight(columns), out=dx)
            if x is not None:
                exact = dw.dtype in (dz.dtype, dtype)
                product = dw[columns] if exact else torch.empty(dz.shape[1], x.shape[1], dtype=dtype, device=device)
                gemm.mm(dz.T, x, out=product)
                if not exact:
                    dw[columns] = product.to(dw.dtype)
            if needs.bias:
                db[columns] = column_sums(dz, v, dtype).to(db.dtype)
    if not needs.hidden:
        return hidden.new_zeros(0), dw, db
    del x, rows_of  # before dX is narrowed: this is where a lean step peaks
    d_hidden = hidden.new_empty(hidden.shape) if isinstance(rows, slice) else hidden.new_zeros(hidden.shape)
    put_rows_(d_hidden, rows, dx, v, shard, plain=impl in PLAIN)
    return d_hidden, dw, db
