"""Rows times a factor each, narrowed and put in their places: what surrounds the gradient GEMMs, in one read and one
write."""

# What @triton.jit makes of a function no type checker knows: a launch takes other arguments, a constexpr is a number.
# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from siri_kernels.rows.kernels import INTERPRETED, UNFUSED, narrow, row_stride
from siri_kernels.rows.protocol import Selection

ROWS, COLUMNS = (64, 2048) if INTERPRETED else (8, 512)
BLOCK = 65536 if INTERPRETED else 4096


@triton.jit(do_not_specialize=["FACTOR", "UPSTREAM", "ROWS", "n", "first_row"])
def scale_rows_kernel(
    X, OUT, FACTOR, UPSTREAM, ROWS, n, D, x_stride, out_stride, first_row, INDEXED: tl.constexpr,
    HAS_UPSTREAM: tl.constexpr, CLEAR: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """OUT[first_row + i], or OUT[ROWS[i]], = FACTOR[i] * X[i] (times a number on the device); CLEAR: 0 where the factor
    is 0, whatever X holds."""
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    valid = i < n
    row = first_row + i.to(tl.int64)
    if INDEXED:
        row = tl.load(ROWS + i, mask=valid, other=0).to(tl.int64)
    factor = tl.load(FACTOR + i, mask=valid, other=0.0)
    if HAS_UPSTREAM:
        factor = factor * tl.load(UPSTREAM).to(tl.float32)
    columns = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = valid[:, None] & (columns < D)[None, :]
    x = tl.load(X + i.to(tl.int64)[:, None] * x_stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    product = x * factor[:, None]
    if CLEAR:
        product = tl.where(factor[:, None] == 0, 0.0, product)
    tl.store(OUT + row[:, None] * out_stride + columns[None, :], narrow(product, OUT.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["UPSTREAM"])
def scale_kernel(X, OUT, UPSTREAM, size, BLOCK: tl.constexpr):
    """OUT = X times a number on the device, in OUT's type."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(X + i, mask=i < size, other=0.0).to(tl.float32) * tl.load(UPSTREAM).to(tl.float32)
    tl.store(OUT + i, narrow(x, OUT.dtype.element_ty), mask=i < size)


def scale_rows(
    x: Tensor,
    factor: Tensor,
    out: Tensor,
    rows: Selection = slice(0, None),
    *,
    upstream: Tensor | None = None,
    clear: bool = False,
) -> Tensor:
    """out[rows] = diag(factor) x, times `upstream` [] if given, in out's dtype; clear: 0 where the factor is, even
    where x is NaN. Returns out.

    x [n, D] fp32, bf16 or fp16 with unit column stride, factor [n] fp32, out [N, D] contiguous."""
    n, d_model = x.shape
    x = x if x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)  # an odd D, or leading columns
    indexed = isinstance(rows, Tensor)
    if n:
        scale_rows_kernel[(triton.cdiv(n, ROWS), triton.cdiv(d_model, COLUMNS))](
            X=x, OUT=out, FACTOR=factor, UPSTREAM=factor if upstream is None else upstream,
            ROWS=rows if indexed else factor, n=n, D=d_model, x_stride=row_stride(x), out_stride=out.stride(0),
            first_row=0 if indexed else rows.start, INDEXED=indexed,
            HAS_UPSTREAM=upstream is not None, CLEAR=clear, BM=ROWS, BD=COLUMNS, num_warps=4, **UNFUSED,
        )  # fmt: skip
    return out


def scaled(x: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """x times `upstream` [] in `dtype`; x contiguous, of any shape."""
    out = torch.empty_like(x, dtype=dtype)
    if x.numel():
        scale_kernel[(triton.cdiv(x.numel(), BLOCK),)](
            X=x, OUT=out, UPSTREAM=upstream, size=x.numel(), BLOCK=BLOCK, num_warps=8, **UNFUSED
        )
    return out
