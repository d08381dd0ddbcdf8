"""The small kernels around the anchored GEMM: the target's logit before it; afterwards the row sums, and the logit
gradient's target column and row factors."""

# What @triton.jit makes of a function no type checker knows: a launch takes other arguments, a constexpr is a number.
# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from siri_kernels.rows.anchored.gemm import Logits
from siri_kernels.rows.kernels import FLOOR, INTERPRETED, expm1, narrow, tanh

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = 1.4426950408889634
LARGEST = tl.constexpr(2.0**100)  # a larger sum is redone: its products could leave the range of fp32
ROWS, DEPTH = (64, 64) if INTERPRETED else (4, 512)
SUM_ROWS, SUM_TILES = (64, 16) if INTERPRETED else (32, 32)


@triton.jit
def target_logit_kernel(
    X, W, TARGET_IDS, SCALE, BIAS, OUT, n, V, D, x_stride, w_stride, scale, softcap, vocab_start,
    PER_ROW: tl.constexpr, HAS_BIAS: tl.constexpr, ROUND: tl.constexpr, SOFTCAP: tl.constexpr, BM: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """OUT = the scaled logit of each row's target, 0 where it lies in another shard: one dot product per row."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    valid = rows < n
    y = tl.load(TARGET_IDS + rows, mask=valid, other=0).to(tl.int64) - vocab_start
    in_shard = valid & (y >= 0) & (y < V)
    y = tl.where(in_shard, y, 0)
    acc = tl.zeros((BM, BK), tl.float32)
    for start in range(0, D, BK):
        k = start + tl.arange(0, BK)
        inside = in_shard[:, None] & (k < D)[None, :]
        x = tl.load(X + rows.to(tl.int64)[:, None] * x_stride + k[None, :], mask=inside, other=0.0).to(tl.float32)
        acc += x * tl.load(W + y[:, None] * w_stride + k[None, :], mask=inside, other=0.0).to(tl.float32)
    z = tl.sum(acc, 1)
    if HAS_BIAS:
        z += tl.load(BIAS + y, mask=in_shard, other=0.0).to(tl.float32)
    if ROUND:
        z = narrow(z, tl.bfloat16).to(tl.float32)
    if SOFTCAP:
        z = softcap * tanh(z / softcap)
    z = z * scale
    if PER_ROW:
        z = z * tl.load(SCALE + rows, mask=valid, other=1.0)
    tl.store(OUT + rows, tl.where(in_shard, z, 0.0), mask=valid)


@triton.jit(do_not_specialize=["tiles"])  # a single tile must not be a constant, which has no type to widen
def sums_kernel(
    PARTIALS, B2, TARGET, TARGET_IDS, STATS, GAP, REDO, n, V, tiles, vocab_start, BM: tl.constexpr, BT: tl.constexpr
):
    """STATS [4, n] = offset m, s_off, u_off and z_y in nats; GAP = b - m; REDO = 1 where the sums left their range.

    m is the target's logit while s_off <= 1, so that s_off is just what log1p takes, and above it by about log s_off
    for less likely targets, whose entropy would cancel otherwise.
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    valid = rows < n
    total = tl.zeros((BM,), tl.float32)
    weighted = tl.zeros((BM,), tl.float32)
    plane = tiles.to(tl.int64) * n
    for start in range(0, tiles, BT):
        t = start + tl.arange(0, BT)
        inside = (t < tiles)[:, None] & valid[None, :]
        at = PARTIALS + t.to(tl.int64)[:, None] * n + rows[None, :]
        total += tl.sum(tl.load(at, mask=inside, other=0.0), 0)
        weighted += tl.sum(tl.load(at + plane, mask=inside, other=0.0), 0)
    target = tl.load(TARGET + rows, mask=valid, other=0.0)
    gap = tl.load(B2 + rows, mask=valid, other=0.0) - target
    above = (gap + tl.log2(total)) * LN2
    target = target * LN2
    offset = target + tl.where(above > 0, above, 0.0)
    gap += (target - offset) * (1 / LN2)  # by the difference of what is stored: no rounding of large logits enters
    factor = tl.exp2(gap)
    # comparisons with NaN are false
    fine = (total < LARGEST) & (tl.abs(weighted) < float("inf")) & (tl.abs(gap) < float("inf"))
    y = tl.load(TARGET_IDS + rows, mask=valid, other=0).to(tl.int64) - vocab_start
    out = STATS + rows
    tl.store(out, offset, mask=valid)
    tl.store(out + n, total * factor, mask=valid)
    tl.store(out + 2 * n, factor * ((weighted + total * gap) * LN2), mask=valid)
    tl.store(out + 3 * n, tl.where((y >= 0) & (y < V), target, 0.0), mask=valid)
    tl.store(GAP + rows, gap * LN2, mask=valid)
    tl.store(REDO + rows, tl.where(fine, 0, 1), mask=valid)


@triton.jit(do_not_specialize=["tiles"])
def online_sums_kernel(
    PARTIALS, B2, TARGET, TARGET_IDS, STATS, GAP, ROWS, COUNT, n, V, tiles, vocab_start, BM: tl.constexpr,
    BT: tl.constexpr,
):  # fmt: skip
    """The same for the rows that are redone, from tiles with maxima of their own; B2 becomes the row's maximum."""
    slot = tl.program_id(0) * BM + tl.arange(0, BM)
    valid = slot < tl.load(COUNT)
    if tl.program_id(0) * BM < tl.load(COUNT):
        rows = tl.load(ROWS + slot, mask=valid, other=0)
        y = tl.load(TARGET_IDS + rows, mask=valid, other=0).to(tl.int64) - vocab_start
        in_shard = (y >= 0) & (y < V)
        target = tl.load(TARGET + rows, mask=valid, other=0.0)
        maximum = tl.where(in_shard & (target > FLOOR), target, FLOOR)
        plane = tiles.to(tl.int64) * n
        for start in range(0, tiles, BT):
            t = start + tl.arange(0, BT)
            inside = (t < tiles)[:, None] & valid[None, :]
            at = PARTIALS + t.to(tl.int64)[:, None] * n + slot[None, :] + 2 * plane
            maximum = tl.maximum(maximum, tl.max(tl.load(at, mask=inside, other=-1e30), 0))
        total = tl.zeros((BM,), tl.float32)
        weighted = tl.zeros((BM,), tl.float32)
        for start in range(0, tiles, BT):
            t = start + tl.arange(0, BT)
            inside = (t < tiles)[:, None] & valid[None, :]
            at = PARTIALS + t.to(tl.int64)[:, None] * n + slot[None, :]
            d = tl.load(at + 2 * plane, mask=inside, other=-1e30) - maximum[None, :]
            s = tl.load(at, mask=inside, other=0.0)
            factor = tl.exp2(d)
            total += tl.sum(s * factor, 0)
            weighted += tl.sum((tl.load(at + plane, mask=inside, other=0.0) + s * d) * factor, 0)
        out = STATS + rows
        tl.store(out, maximum * LN2, mask=valid)
        tl.store(out + n, total, mask=valid)
        tl.store(out + 2 * n, weighted * LN2, mask=valid)
        tl.store(out + 3 * n, tl.where(in_shard, target * LN2, 0.0), mask=valid)
        tl.store(B2 + rows, maximum, mask=valid)
        tl.store(GAP + rows, tl.zeros((BM,), tl.float32), mask=valid)


@triton.jit
def gradient_kernel(
    E, TARGET_IDS, SCALE, BASE, LSE, LOGP, ENTROPY, G, H, FACTOR, e_stride, V, scale, softcap, vocab_start,
    PER_ROW: tl.constexpr, SOFTCAP: tl.constexpr, WITH_H: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dL/dlogits = FACTOR * E, row by row: the target's column, the factor, and with an entropy coefficient the whole
    row, E (g + h (log p + entropy)), of an E stored without its softcap slope. E = p exp(-BASE)."""
    row = tl.program_id(0).to(tl.int64)
    if PER_ROW:
        scale = tl.load(SCALE + row)
    base = tl.load(BASE + row)
    logp = tl.load(LOGP + row)
    lse = tl.load(LSE + row)
    g = tl.load(G + row)
    active = g != 0
    target = g * expm1(logp)
    h = 0.0
    entropy = 0.0
    if WITH_H:
        h = tl.load(H + row)
        entropy = tl.load(ENTROPY + row)
        active = active | (h != 0)
        p = tl.exp(logp)
        target += h * tl.where(p == 0, 0.0, p * (logp + entropy))
        limit = V
        factor = -scale * tl.exp(base)
    else:
        # only a row that nobody counts and that is not finite: 0 * inf would reach all of dW
        limit = tl.where(active | (tl.abs(logp) < float("inf")), 0, V)
        factor = -g * scale * tl.exp(base)
        target = target / tl.where(active, g, 1.0)
    if SOFTCAP:
        capped = (logp + lse) / (scale * softcap)
        target = target * (1 - capped * capped)
    e = E + row * e_stride
    for start in range(0, limit, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(e + columns, mask=columns < limit, other=0.0).to(tl.float32)
        if WITH_H:
            empty = x == 0
            log_e = tl.log(tl.where(empty, 1.0, x))
            slope = g + h * (log_e + base + entropy)
            if SOFTCAP:
                t = (log_e + base + lse) / (scale * softcap)
                slope = slope * (1 - t * t)
            x = tl.where(empty | (active == 0), 0.0, x * slope)
        else:
            x = tl.zeros((BLOCK,), tl.float32)
        tl.store(e + columns, narrow(x, E.dtype.element_ty), mask=columns < limit)
    tl.debug_barrier()  # the row is written before its target is
    y = tl.load(TARGET_IDS + row).to(tl.int64) - vocab_start
    in_shard = (y >= 0) & (y < V)
    target = tl.where(active, target * tl.exp(-base), 0.0)
    tl.store(e + tl.where(in_shard, y, 0), narrow(target, E.dtype.element_ty), mask=in_shard)
    tl.store(FACTOR + row, tl.where(active, factor, 0.0))


def _head(like: Tensor, logits: Logits) -> tuple[Tensor, Tensor, tuple, dict]:
    return (
        like if logits.scale_N is None else logits.scale_N,
        like if logits.bias is None else logits.bias,
        (logits.scale, logits.softcap or 1.0, logits.vocab_start),
        {"PER_ROW": logits.scale_N is not None, "SOFTCAP": logits.softcap is not None},
    )


def target_logit(x: Tensor, weight: Tensor, target_ids: Tensor, logits: Logits) -> Tensor:
    """[n] fp32: each target's scaled logit, 0 in rows whose target another shard holds."""
    n, d_model = x.shape
    out = torch.empty(n, dtype=torch.float32, device=x.device)
    scale_N, bias, numbers, flags = _head(out, logits)
    if n:
        target_logit_kernel[(triton.cdiv(n, ROWS),)](
            x, weight, target_ids, scale_N, bias, out, n, weight.shape[0], d_model, x.stride(0), weight.stride(0),
            *numbers, **flags, HAS_BIAS=logits.bias is not None, ROUND=logits.round_bf16, BM=ROWS, BK=DEPTH,
        )  # fmt: skip
    return out


def sums(
    partials: Tensor, tiles: int, b2: Tensor, target: Tensor, target_ids: Tensor, vocab: int, vocab_start: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Row statistics [4, n], gap [n] and redo [n] int32 from a GEMM's partial sums."""
    n = b2.shape[0]
    stats, gap = partials.new_empty(4, n), partials.new_empty(n)
    redo = torch.empty(n, dtype=torch.int32, device=b2.device)
    if n:
        sums_kernel[(triton.cdiv(n, SUM_ROWS),)](
            partials, b2, target, target_ids, stats, gap, redo, n, vocab, tiles, vocab_start, BM=SUM_ROWS, BT=SUM_TILES
        )  # fmt: skip
    return stats, gap, redo


def online_sums(
    partials: Tensor,
    tiles: int,
    b2: Tensor,
    target: Tensor,
    target_ids: Tensor,
    stats: Tensor,
    gap: Tensor,
    rows: Tensor,
    count: Tensor,
    vocab: int,
    vocab_start: int,
) -> None:
    """Overwrite stats, gap and b2 in the rows rows[:count]."""
    n = b2.shape[0]
    online_sums_kernel[(triton.cdiv(n, SUM_ROWS),)](
        partials, b2, target, target_ids, stats, gap, rows, count, n, vocab, tiles, vocab_start, BM=SUM_ROWS,
        BT=SUM_TILES,
    )  # fmt: skip


def gradient(
    e: Tensor,
    target_ids: Tensor,
    logits: Logits,
    base: Tensor,
    lse: Tensor,
    logp: Tensor,
    entropy: Tensor,
    g: Tensor,
    h: Tensor | None,
) -> Tensor:
    """Turn E [n, V] into E' in place; returns the row factor [n] with dL/dlogits = factor * E'. `logits` as of the
    GEMM; its scale counts in powers of e here."""
    n, vocab = e.shape
    factor = torch.empty(n, dtype=torch.float32, device=e.device)
    scale_N, _, (scale, *numbers), flags = _head(factor, logits)
    if n:
        largest = 65536 if INTERPRETED else 4096
        block = max(16, min(largest, triton.next_power_of_2(vocab)))
        gradient_kernel[(n,)](
            e, target_ids, scale_N, base, lse, logp, entropy, g, g if h is None else h, factor, e.stride(0), vocab,
            scale / LOG2E, *numbers, **flags, WITH_H=h is not None, BLOCK=block, num_warps=8,
        )  # fmt: skip
    return factor
