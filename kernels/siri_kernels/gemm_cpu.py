"""GEMMs of the torch path on the CPU with bf16 operands: logits in fp32, for which torch has no GEMM, so that slices of
the weight are widened; gradients by the GEMM of bf16, where the CPU has instructions for it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

SLICE = 8 << 20
"""Bytes of a slice in fp32: it stays in the cache until it is used"""

TILE = 32
"""Columns of bf16 in a tile of AMX"""


Function = TypeVar("Function", bound=Callable[..., object])


def asked_once(function: Function) -> Function:
    """torch.compile asks while it traces, and keeps the answer."""
    constant: Any = torch.compiler.assume_constant_result  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return constant(function)


@asked_once
def multiplies_bf16() -> bool:
    """This CPU has instructions for products of bf16 (AVX-512 BF16 or AMX); elsewhere GEMMs of bf16 are slower than
    those of fp32, or not much faster."""
    return has_bf16_instructions()


@cache
def has_bf16_instructions() -> bool:
    cpu: Any = torch.cpu
    asked = (getattr(cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return torch.backends.mkldnn.is_available() and any(ask is not None and ask() for ask in asked)


@contextmanager
def products(precision: str) -> Generator[None, None, None]:
    """To what oneDNN may round operands of fp32 GEMMs, whatever the caller has set: "ieee" = not at all."""
    backend: Any = torch.backends.mkldnn
    matmul = backend.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = precision
    try:
        yield
    finally:
        matmul.fp32_precision = before


def slices(length: int, depth: int) -> list[slice]:
    """Of a [length, depth] matrix, each of SLICE bytes in fp32."""
    step = max(64, SLICE // (4 * max(depth, 1)))
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def logits(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """out [n, V] = x @ W.T + b, in out's dtype, from x and weight in the same or a narrower one."""
    x = x.to(out.dtype)
    parts = [slice(0, weight.shape[0])] if weight.dtype == out.dtype else slices(*weight.shape)
    for columns in parts:
        wide = weight[columns].to(out.dtype)
        if bias is None:
            torch.mm(x, wide.T, out=out[:, columns])
        else:
            torch.addmm(bias[columns].to(out.dtype), x, wide.T, out=out[:, columns])


def mm(a: Tensor, b: Tensor, out: Tensor, *, add: bool) -> Tensor:
    """out [m, n] = a @ b, or out += a @ b, for bf16 operands and an fp32 result: the GEMM adds up in fp32, and what it
    gives is rounded to bf16 once."""
    for rows in slices(*out.shape):
        product = torch.mm(a[rows], b)
        if add:
            out[rows].add_(product)
        else:
            out[rows].copy_(product)
    return out
