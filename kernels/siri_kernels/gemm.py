"""The GEMMs around the row kernels: half-precision operands, fp32 accumulation and fp32 results; fp32 operands never in
TF32."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from siri_kernels import gemm_cpu

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@contextmanager
def surroundings(like: Tensor):
    """What the caller may have set and what the operators need: the tensors' device is the current one (Triton launches
    there), no autocast (it would sum entropies in bf16), no TF32 in fp32 GEMMs (a 10-bit mantissa is not an fp32
    log-prob), and no half-precision sums where cuBLAS splits a GEMM along its depth."""
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(like.device.type, enabled=False))
        if like.device.type == "cuda":
            stack.enter_context(torch.cuda.device(like.device))
            stack.enter_context(full_precision(like.dtype))
        else:
            stack.enter_context(gemm_cpu.products("ieee"))
        yield


REDUCTIONS = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")


@contextmanager
def full_precision(dtype: torch.dtype):
    """cuBLAS's global settings as the operators need them for inputs of this dtype, put back afterwards."""
    matmul: Any = torch.backends.cuda.matmul
    if dtype == torch.float32:
        before = {"fp32_precision": matmul.fp32_precision}
        inside = {"fp32_precision": "ieee"}
    else:
        # each with whether the depth may be split at all, where torch knows that setting
        before = {name: (getattr(matmul, name), getattr(matmul, f"{name}_split_k", None)) for name in REDUCTIONS}
        before = {name: values if values[1] is not None else values[0] for name, values in before.items()}
        inside = {name: (False, old[1]) if isinstance(old, tuple) else False for name, old in before.items()}
    try:
        for name, value in inside.items():
            setattr(matmul, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(matmul, name, value)


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
    if mixes(a):
        return gemm_cpu.mm(a, b, out, add=False)
    return torch.mm(a.float(), b.float(), out=out)  # the interpreter's tensors: no mixed GEMM on a CPU


def add_mm(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """out += a @ b, out in the operands' dtype or fp32."""
    if native(a, out):
        return out.addmm_(a, b)
    if a.device.type == "cuda":
        return torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    if mixes(a):
        return gemm_cpu.mm(a, b, out, add=True)
    return out.addmm_(a.float(), b.float())


def mixes(a: Tensor) -> bool:
    """Operands of the torch path on a CPU that multiplies bf16, not those of kernels in the interpreter, whose numbers
    must not depend on the CPU."""
    return a.dtype == torch.bfloat16 and not INTERPRETED and gemm_cpu.multiplies_bf16()
