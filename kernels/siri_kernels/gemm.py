"""The GEMMs around the row kernels: half-precision operands, fp32 accumulation and fp32 results; fp32 operands never in
TF32."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor


@contextmanager
def surroundings(like: Tensor):
    """What the caller may have set and what the operators need: the tensors' device is the current one (Triton launches
    there), no autocast (it would sum entropies in bf16), and no TF32 in fp32 GEMMs (a 10-bit mantissa is not an fp32
    log-prob)."""
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(like.device.type, enabled=False))
        if like.device.type == "cuda":
            stack.enter_context(torch.cuda.device(like.device))
            if like.dtype == torch.float32:
                matmul = torch.backends.cuda.matmul
                stack.callback(setattr, matmul, "fp32_precision", matmul.fp32_precision)
                matmul.fp32_precision = "ieee"
        yield


@cache
def multiprocessors(device: torch.device) -> int:
    properties = cast(Any, torch.cuda.get_device_properties(device))  # pyright: ignore[reportUnknownMemberType]
    return properties.multi_processor_count


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
