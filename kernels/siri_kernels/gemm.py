"""The GEMMs around the row kernels: half-precision operands, fp32 accumulation and fp32 results; fp32 operands never in
TF32."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def exact_fp32(like: Tensor):
    """TF32 off for the GEMMs inside: a 10-bit mantissa is not an fp32 log-prob."""
    if like.device.type != "cuda" or like.dtype != torch.float32:
        yield
        return
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def native(a: Tensor, out: Tensor) -> bool:
    """The operands' own GEMM gives `out`'s dtype."""
    return a.dtype == out.dtype


def mm(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """out = a @ b, out in the operands' dtype or fp32."""
    if native(a, out):
        return torch.mm(a, b, out=out)
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=out.dtype, out=out)
    return torch.mm(a.float(), b.float(), out=out)  # CPU tensors (the interpreter): no mixed GEMM there


def add_mm(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """out += a @ b, out in the operands' dtype or fp32."""
    if native(a, out):
        return out.addmm_(a, b)
    if a.device.type == "cuda":
        return torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    return out.addmm_(a.float(), b.float())
