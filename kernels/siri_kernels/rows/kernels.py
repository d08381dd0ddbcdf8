"""Row kernels on logits: statistics in one read, the gradient in one read and one write, in place if the caller likes.

One program per row, fp32 arithmetic whatever the storage, int64 offsets, sizes known at run time only. The formulas are
those of `rows.torch`. A scalar running maximum per block and per-lane sums: one exponential per logit, one reduction
across warps per block.

What all kernels of this package keep to: another number of rows must not choose another binary, and with it another
order of sums. So nothing that varies with lengths is specialised by its value or its alignment (Triton tells
1 and multiples of 16 apart): numbers of rows and what is counted in them, first rows, and pointers to per-row data,
which start anywhere in a batch. What the model decides (V, D, strides of its matrices) is, so that loads are wide.
"""

# What @triton.jit makes of a function no type checker knows: a launch takes other arguments, a constexpr is a number.
# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
INTERPRET = tl.constexpr(INTERPRETED)
FLOOR = tl.constexpr(-1e30)  # stands in for -inf (a banned token) where 0 * inf would be NaN
WARPS = 8
UNFUSED = {"enable_fp_fusion": False}
"""Launch option of kernels in which every fused multiply-add is written: their bits are not the compiler's choice."""
STATS_BLOCK = 2048  # two sums per lane and column: 4096 spills on sm_100
DLOGITS_BLOCK = 4096


@triton.jit
def log1p(x):
    """log(1 + x) with the relative accuracy of x near 0."""
    series = x * (1 - x * (0.5 - x * (0.3333333333 - x * (0.25 - x * 0.2))))
    return tl.where(tl.abs(x) < 0.01, series, tl.log(1 + x))


@triton.jit
def expm1(x):
    """exp(x) - 1 with the relative accuracy of x near 0."""
    series = x * (1 + x * 0.5 * (1 + x * 0.3333333333 * (1 + x * 0.25 * (1 + x * 0.2))))
    return tl.where(tl.abs(x) < 0.1, series, tl.exp(x) - 1)


@triton.jit
def tanh(x):
    e = tl.exp(-2 * tl.abs(x))
    t = (1 - e) / (1 + e)
    return tl.where(x < 0, -t, t)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """Round to nearest even; the interpreter's own conversion to bf16 truncates."""
    if INTERPRET and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(x != x, 0x7FC0, bits).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)


@triton.jit(do_not_specialize=["TARGET", "SCALE", "OUT", "out_stride", "vocab_start"])
def row_stats_kernel(
    Z, TARGET, SCALE, OUT, out_stride, stride, V, scale, softcap, vocab_start,
    PER_ROW: tl.constexpr, SOFTCAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """OUT[:, row] = max z, sum over j != y of exp(z_j - max), the same weighted with (z_j - max), z_y (0 in another
    shard)."""
    row = tl.program_id(0).to(tl.int64)
    z = Z + row * stride
    if PER_ROW:
        scale = tl.load(SCALE + row)
    y = tl.load(TARGET + row).to(tl.int64) - vocab_start
    maximum = tl.full((), float("-inf"), tl.float32)
    sums = tl.zeros((BLOCK,), tl.float32)
    weighted = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        valid = columns < V
        x = tl.load(z + columns, mask=valid, other=0.0).to(tl.float32)
        if SOFTCAP:
            x = softcap * tanh(x / softcap)
        x = x * scale
        x = tl.where(x < FLOOR, FLOOR, x)  # unlike maximum(), keeps NaN
        new = tl.maximum(maximum, tl.max(tl.where(valid, x, float("-inf"))))
        shift = tl.where(maximum == float("-inf"), 0.0, maximum - new)
        factor = tl.exp(maximum - new)
        d = tl.where(valid, x - new, 0.0)
        e = tl.where(valid & (columns != y), tl.exp(d), 0.0)
        weighted = tl.fma(tl.fma(sums, shift, weighted), factor, e * d)
        sums = tl.fma(sums, factor, e)
        maximum = new
    in_shard = (y >= 0) & (y < V)
    target = tl.load(z + tl.where(in_shard, y, 0)).to(tl.float32)
    if SOFTCAP:
        target = softcap * tanh(target / softcap)
    out = OUT + row
    tl.store(out, maximum)
    tl.store(out + out_stride, tl.sum(sums))
    tl.store(out + 2 * out_stride, tl.sum(weighted))
    tl.store(out + 3 * out_stride, tl.where(in_shard, target * scale, 0.0))


@triton.jit(do_not_specialize=["TARGET", "SCALE", "MAXIMUM", "LOG_SUM", "LOGP", "ENTROPY", "G", "H", "vocab_start"])
def dlogits_kernel(
    Z, DZ, TARGET, SCALE, MAXIMUM, LOG_SUM, LOGP, ENTROPY, G, H, stride, d_stride, V, scale, softcap, vocab_start,
    PER_ROW: tl.constexpr, SOFTCAP: tl.constexpr, WITH_H: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """DZ = dL/dz from g = dL/dlogp and h = dL/dentropy; DZ may lie over Z in the same or a narrower type, row by row
    from the same byte."""
    row = tl.program_id(0).to(tl.int64)
    z = Z + row * stride
    dz = DZ + row * d_stride
    if PER_ROW:
        scale = tl.load(SCALE + row)
    y = tl.load(TARGET + row).to(tl.int64) - vocab_start
    maximum = tl.load(MAXIMUM + row)
    log_sum = tl.load(LOG_SUM + row)
    logp = tl.load(LOGP + row)
    g = tl.load(G + row)
    target = -g * expm1(logp)
    read = tl.where(g != 0, V, 0)  # a row without a gradient is written, not read: 0 * NaN must stay 0
    h = 0.0
    entropy = 0.0
    if WITH_H:
        h = tl.load(H + row)
        entropy = tl.load(ENTROPY + row)
        p = tl.exp(logp)
        target -= h * tl.where(p == 0, 0.0, p * (logp + entropy))
        read = tl.where(h != 0, V, read)
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        valid = columns < V
        x = tl.load(z + columns, mask=columns < read, other=0.0).to(tl.float32)
        slope = scale
        if SOFTCAP:
            t = tanh(x / softcap)
            x = softcap * t
            slope = scale * (1 - t * t)
        x = x * scale
        x = tl.where(x < FLOOR, FLOOR, x)
        log_p = (x - maximum) - log_sum
        d = tl.exp(log_p) * (tl.fma(-h, log_p + entropy, -g) if WITH_H else -g)
        d = tl.where(columns == y, target, d) * slope
        d = tl.where(columns < read, d, 0.0)
        # every lane has read its part of the block before any lane writes over it
        tl.debug_barrier()
        tl.store(dz + columns, narrow(d, DZ.dtype.element_ty), mask=valid)


def block_size(vocab: int, block: int) -> int:
    """Columns per step: always the same on a GPU, where the width of a slice of the vocabulary varies with N."""
    # the interpreter pays per operation, not per element
    return max(16, min(65536, triton.next_power_of_2(vocab))) if INTERPRETED else block


def row_stride(x: Tensor) -> int:
    """Between the rows of x [n, columns]; that of a single row may be any number, which no launch should see."""
    return x.stride(0) if x.shape[0] > 1 else x.shape[1]


def _common(z: Tensor, scale: float | Tensor, softcap: float | None, vocab_start: int, block: int) -> dict:
    """What both kernels take, by name."""
    per_row = isinstance(scale, Tensor)
    return {
        "Z": z,
        "SCALE": scale if per_row else z,
        "stride": row_stride(z),
        "V": z.shape[1],
        "scale": 1.0 if per_row else scale,
        "softcap": softcap or 1.0,
        "vocab_start": vocab_start,
        "PER_ROW": per_row,
        "SOFTCAP": softcap is not None,
        "BLOCK": block_size(z.shape[1], block),
        "num_warps": WARPS,
        **UNFUSED,
    }


def row_stats(
    z: Tensor, target_ids: Tensor, scale: float | Tensor, softcap: float | None, vocab_start: int = 0
) -> Tensor:
    """[4, n] fp32: maximum, s_off, u_off and the target's logit of rows z [n, V] (any strides between rows), times
    `scale` (a number or [n])."""
    n = z.shape[0]
    out = torch.empty(4, n, dtype=torch.float32, device=z.device)
    if n:
        common = _common(z, scale, softcap, vocab_start, STATS_BLOCK)
        row_stats_kernel[(n,)](TARGET=target_ids, OUT=out, out_stride=n, **common)
    return out


def dlogits(
    z: Tensor,
    out: Tensor,
    target_ids: Tensor,
    scale: float | Tensor,
    softcap: float | None,
    vocab_start: int,
    maximum: Tensor,
    log_sum: Tensor,
    logp: Tensor,
    entropy: Tensor,
    g: Tensor,
    h: Tensor | None,
) -> Tensor:
    """dL/dlogits [n, V] into `out`, which may be z itself or a narrower view of the same rows."""
    n = z.shape[0]
    if n:
        common = _common(z, scale, softcap, vocab_start, DLOGITS_BLOCK)
        dlogits_kernel[(n,)](
            DZ=out, TARGET=target_ids, MAXIMUM=maximum, LOG_SUM=log_sum, LOGP=logp, ENTROPY=entropy, G=g,
            H=g if h is None else h, d_stride=out.stride(0), WITH_H=h is not None, **common,
        )  # fmt: skip
    return out


def narrow_view(buffer: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows of an fp32 buffer [n, V] seen as [n, V] of `dtype`, each row starting at the same byte."""
    return buffer if buffer.dtype == dtype else buffer.view(dtype)[:, : buffer.shape[1]]
