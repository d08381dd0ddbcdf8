"""The small kernels around the anchored GEMM: the offsets before it; afterwards the row sums, and the logit
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
from siri_kernels.rows.kernels import FLOOR, INTERPRETED, UNFUSED, block_size, expm1, narrow, row_stride, tanh

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = 1.4426950408889634
LOWEST_ANCHOR = -40.0
LOWEST = tl.constexpr(LOWEST_ANCHOR)
LARGEST = tl.constexpr(2.0**100)  # a larger sum is redone: its products could leave the range of fp32
HIGHEST_GAP = tl.constexpr(64.0)  # and so is a row measured from so far (log2) above it that parts of it fell to 0
ROWS, DEPTH = (64, 64) if INTERPRETED else (4, 512)
SUM_ROWS, SUM_TILES = (64, 16) if INTERPRETED else (32, 32)
GRADIENT_BLOCK = 4096


@triton.jit(do_not_specialize=["TARGET_IDS", "SCALE", "ANCHOR", "B2", "n", "V", "vocab_start"])
def offsets_kernel(
    X, W, TARGET_IDS, SCALE, BIAS, ANCHOR, B2, n, V, D, x_stride, w_stride, scale, softcap, vocab_start,
    PER_ROW: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_ANCHOR: tl.constexpr, SOFTCAP: tl.constexpr, BM: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """B2 = the scaled logit of each row's target, 0 where it lies in another shard or is -inf, minus the anchor, in
    units of log2: one dot product per row. It says where to measure from; the target's logit itself comes from the
    GEMM, with the roundings of all others."""
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
        w = tl.load(W + y[:, None] * w_stride + k[None, :], mask=inside, other=0.0).to(tl.float32)
        acc = tl.fma(x, w, acc)
    z = tl.sum(acc, 1)
    if HAS_BIAS:
        z += tl.load(BIAS + y, mask=in_shard, other=0.0).to(tl.float32)
    if SOFTCAP:
        z = softcap * tanh(z / softcap)
    z = z * scale
    if PER_ROW:
        z = z * tl.load(SCALE + rows, mask=valid, other=1.0)
    z = tl.where(in_shard & (z != float("-inf")), z, 0.0)
    if HAS_ANCHOR:
        anchor = tl.load(ANCHOR + rows, mask=valid, other=0.0).to(tl.float32)
        anchor = tl.where(anchor > LOWEST, anchor, LOWEST) * (anchor == anchor).to(tl.float32)
        z = tl.fma(tl.where(anchor < 0, anchor, 0.0), -1.4426950408889634, z)
    tl.store(B2 + rows, z, mask=valid)


SUMS_ARGUMENTS = (
    *("PARTIALS", "B2", "TARGET", "TARGET_IDS", "STATS", "GAP", "ROWS", "COUNT"),
    *("n", "V", "tiles", "vocab_start"),
)


@triton.jit(do_not_specialize=SUMS_ARGUMENTS)
def sums_kernel(
    PARTIALS, B2, TARGET, TARGET_IDS, STATS, GAP, ROWS, COUNT, n, V, tiles, vocab_start, BM: tl.constexpr,
    BT: tl.constexpr,
):  # fmt: skip
    """STATS [4, n] = offset m, s_off, u_off and z_y in nats; GAP = b - m; TARGET, z_y - b before, becomes z_y (in
    units of log2); ROWS[:COUNT], with a COUNT of 0 before: where the sums left their range, in no certain order.

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
    relative = tl.load(TARGET + rows, mask=valid, other=0.0)
    relative = tl.where(relative <= FLOOR, float("-inf"), relative)
    gap = -relative
    target = tl.load(B2 + rows, mask=valid, other=0.0) + relative
    tl.store(TARGET + rows, target, mask=valid)
    above = (gap + tl.log2(total)) * LN2
    target = target * LN2
    offset = target + tl.where(above > 0, above, 0.0)
    gap = tl.fma(target - offset, 1 / LN2, gap)  # by what is stored: no rounding of large logits enters
    factor = tl.exp2(gap)
    # comparisons with NaN are false
    fine = (total < LARGEST) & (tl.abs(weighted) < float("inf")) & (gap < HIGHEST_GAP) & (gap > -100)
    y = tl.load(TARGET_IDS + rows, mask=valid, other=0).to(tl.int64) - vocab_start
    out = STATS + rows
    tl.store(out, offset, mask=valid)
    tl.store(out + n, total * factor, mask=valid)
    tl.store(out + 2 * n, factor * (tl.fma(total, gap, weighted) * LN2), mask=valid)
    tl.store(out + 3 * n, tl.where((y >= 0) & (y < V), target, 0.0), mask=valid)
    tl.store(GAP + rows, gap * LN2, mask=valid)
    redo = tl.where(fine | (rows >= n), 0, 1)
    slots = tl.atomic_add(COUNT, tl.sum(redo)) + tl.cumsum(redo, 0) - redo
    tl.store(ROWS + slots, rows, mask=redo != 0)


@triton.jit(do_not_specialize=SUMS_ARGUMENTS)
def online_sums_kernel(
    PARTIALS, B2, TARGET, TARGET_IDS, STATS, GAP, ROWS, COUNT, n, V, tiles, vocab_start, BM: tl.constexpr,
    BT: tl.constexpr,
):  # fmt: skip
    """The same for the rows that are redone, from tiles with maxima of their own, with z_y in TARGET; B2 becomes the
    row's maximum there."""
    slot = tl.program_id(0) * BM + tl.arange(0, BM)
    valid = slot < tl.load(COUNT)
    if tl.program_id(0) * BM < tl.load(COUNT):
        rows = tl.load(ROWS + slot, mask=valid, other=0)
        y = tl.load(TARGET_IDS + rows, mask=valid, other=0).to(tl.int64) - vocab_start
        in_shard = (y >= 0) & (y < V)
        target = tl.load(TARGET + rows, mask=valid, other=0.0)
        target = tl.where(target <= FLOOR, float("-inf"), target)
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
            weighted += tl.sum(tl.fma(s, d, tl.load(at + plane, mask=inside, other=0.0)) * factor, 0)
        out = STATS + rows
        tl.store(out, maximum * LN2, mask=valid)
        tl.store(out + n, total, mask=valid)
        tl.store(out + 2 * n, weighted * LN2, mask=valid)
        tl.store(out + 3 * n, tl.where(in_shard, target * LN2, 0.0), mask=valid)
        tl.store(B2 + rows, maximum, mask=valid)
        tl.store(GAP + rows, tl.zeros((BM,), tl.float32), mask=valid)


GRADIENT_ARGUMENTS = (
    *("TARGET_IDS", "SCALE", "GAP", "MAXIMUM", "LOG_SUM", "LOGP", "ENTROPY", "G", "H", "FACTOR"),
    "vocab_start",
)


@triton.jit(do_not_specialize=GRADIENT_ARGUMENTS)
def gradient_kernel(
    E, TARGET_IDS, SCALE, GAP, MAXIMUM, LOG_SUM, LOGP, ENTROPY, G, H, FACTOR, e_stride, V, scale, softcap, vocab_start,
    PER_ROW: tl.constexpr, SOFTCAP: tl.constexpr, WITH_H: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dL/dlogits = FACTOR * E, row by row: the target's column, the factor, and with an entropy coefficient the whole
    row, E (g + h (log p + entropy)), of an E stored without its softcap slope. E = p exp(LOG_SUM - GAP)."""
    row = tl.program_id(0).to(tl.int64)
    if PER_ROW:
        scale = tl.load(SCALE + row)
    log_sum = tl.load(LOG_SUM + row)
    base = tl.load(GAP + row) - log_sum
    logp = tl.load(LOGP + row)
    lse = tl.load(MAXIMUM + row) + log_sum
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
        target = tl.fma(h, tl.where(p == 0, 0.0, p * (logp + entropy)), target)
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
            slope = tl.fma(h, log_e + base + entropy, g)
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


def _head(like: Tensor, logits: Logits) -> dict:
    """What the kernels of a head take, by name; `like` stands in for what is not there."""
    return {
        "SCALE": like if logits.scale_N is None else logits.scale_N,
        "scale": logits.scale,
        "softcap": logits.softcap or 1.0,
        "vocab_start": logits.vocab_start,
        "PER_ROW": logits.scale_N is not None,
        "SOFTCAP": logits.softcap is not None,
    }


def offsets(
    x: Tensor, weight: Tensor, target_ids: Tensor, logits: Logits, anchor: Tensor | None, out: Tensor
) -> Tensor:
    """out [n] fp32: each target's scaled logit, 0 in rows whose target another shard holds, minus the anchor, a
    log-prob in nats (NaN = 0), in units of log2."""
    n, d_model = x.shape
    if n:
        offsets_kernel[(triton.cdiv(n, ROWS),)](
            X=x, W=weight, TARGET_IDS=target_ids, BIAS=out if logits.bias is None else logits.bias,
            ANCHOR=out if anchor is None else anchor, B2=out, n=n, V=weight.shape[0], D=d_model,
            x_stride=row_stride(x), w_stride=weight.stride(0), **_head(out, logits), HAS_BIAS=logits.bias is not None,
            HAS_ANCHOR=anchor is not None, BM=ROWS, BK=DEPTH, **UNFUSED,
        )  # fmt: skip
    return out


def sums(
    partials: Tensor, tiles: int, b2: Tensor, target: Tensor, target_ids: Tensor, vocab: int, vocab_start: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Row statistics [4, n] and gap [n] from a GEMM's partial sums; which rows must be redone, rows [n] int32 of which
    only the first count [1] mean anything. target [n] becomes the targets' logits."""
    n = b2.shape[0]
    stats, gap = partials.new_empty(4, n), partials.new_empty(n)
    rows, count = (torch.empty(n, dtype=torch.int32, device=b2.device), b2.new_zeros(1, dtype=torch.int32))
    if n:
        sums_kernel[(triton.cdiv(n, SUM_ROWS),)](
            PARTIALS=partials, B2=b2, TARGET=target, TARGET_IDS=target_ids, STATS=stats, GAP=gap, ROWS=rows,
            COUNT=count, n=n, V=vocab, tiles=tiles, vocab_start=vocab_start, BM=SUM_ROWS, BT=SUM_TILES, **UNFUSED,
        )  # fmt: skip
    return stats, gap, rows, count


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
    """Overwrite stats and gap in the rows rows[:count], and write their maxima to b2."""
    n = b2.shape[0]
    online_sums_kernel[(triton.cdiv(n, SUM_ROWS),)](
        PARTIALS=partials, B2=b2, TARGET=target, TARGET_IDS=target_ids, STATS=stats, GAP=gap, ROWS=rows, COUNT=count,
        n=n, V=vocab, tiles=tiles, vocab_start=vocab_start, BM=SUM_ROWS, BT=SUM_TILES, **UNFUSED,
    )  # fmt: skip


def gradient(
    e: Tensor,
    target_ids: Tensor,
    logits: Logits,
    gap: Tensor,
    maximum: Tensor,
    log_sum: Tensor,
    logp: Tensor,
    entropy: Tensor,
    g: Tensor,
    h: Tensor | None,
) -> Tensor:
    """Turn E [n, V] into E' in place; returns the row factor [n] with dL/dlogits = factor * E'. `logits` as of the
    GEMM; its scale counts in powers of e here."""
    n, vocab = e.shape
    factor = torch.empty(n, dtype=torch.float32, device=e.device)
    head = _head(factor, logits)
    head["scale"] /= LOG2E
    if n:
        gradient_kernel[(n,)](
            E=e, TARGET_IDS=target_ids, GAP=gap, MAXIMUM=maximum, LOG_SUM=log_sum, LOGP=logp, ENTROPY=entropy, G=g,
            H=g if h is None else h, FACTOR=factor, e_stride=e.stride(0), V=vocab, **head, WITH_H=h is not None,
            BLOCK=block_size(vocab, GRADIENT_BLOCK), num_warps=8, **UNFUSED,
        )  # fmt: skip
    return factor
