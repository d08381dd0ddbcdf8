"""Which implementation runs: the one place that decides."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from siri_kernels.gemm_cpu import asked_once
from siri_kernels.sharding import group_name
from siri_kernels.validation import IMPLS, one_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

AUTO_ARCHS = (90,)
"""Compute capabilities on which "auto" takes the anchored GEMM. On sm_80 its pointer kernel has no reason to beat
cuBLAS and a row kernel, and on sm_100 nothing has been predicted for it, let alone measured."""
MIN_VOCAB = 1024
"""Below, launches should take longer than products; nobody has measured where."""
LONG_ROW = 4096
"""Columns from which on a CPU makes logits by slices of the vocabulary: below, a row and its softmax fit into the cache
anyway."""
SLICED_DTYPES = (torch.float32, torch.bfloat16)
_warned: set[str] = set()


def select(
    impl: str,
    like: Tensor,
    weight: Tensor | None = None,
    *,
    temperature: float | Tensor = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_dtype: str = "fp32",
    group: ProcessGroup | None = None,
) -> str:
    """The implementation that runs for `impl`: "reference", "torch", "sliced" ("torch" by slices of the vocabulary,
    which heads of LONG_ROW columns take on a CPU), "fallback" (cuBLAS and the Triton row kernels) or "anchored" (the
    anchored-exp GEMM).

    like: hidden [N, D] with its weight [V, D] and what else makes logits, or logits [N, V] alone, for which there is no
    GEMM. "auto" is torch on the CPU and in fp64; anchored on AUTO_ARCHS for bf16, D a multiple of 8 (TMA wants rows of
    16 bytes) and V from MIN_VOCAB on; else the fallback. It never depends on N, so that all passes of a step agree.
    "triton" is "auto" without torch: it raises where that would take torch, and takes the fallback in the interpreter.
    "anchored" takes the fallback, too, for other dtypes than bf16: E could leave the range of fp16, and fp32 is not
    made for tensor cores.

    The first time that the anchored GEMM would run on a GPU with a head of some kind, `self_check` tries it there,
    which compiles and synchronises. If it fails, "auto" warns and takes the fallback as long as the process lives;
    "anchored" raises a ValueError.
    """
    one_of("impl", impl, IMPLS)
    if impl == "reference":
        return impl
    on_gpu = like.device.type == "cuda" and like.dtype != torch.float64
    if impl == "torch" or (impl == "auto" and not on_gpu):
        long = weight is not None and weight.shape[0] >= LONG_ROW and group is None
        return "sliced" if long and like.device.type == "cpu" and like.dtype in SLICED_DTYPES else "torch"
    if like.dtype == torch.float64:
        raise ValueError(f"impl={impl!r} computes in fp32; use impl='torch' for fp64")
    if not on_gpu and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"impl={impl!r} needs CUDA tensors, got {like.device}; use impl='torch' or 'auto'")
    if impl == "fallback" or weight is None or like.dtype != torch.bfloat16:
        return "fallback"
    if not on_gpu:
        return "anchored" if impl == "anchored" else "fallback"
    head = (isinstance(temperature, Tensor), bias is not None, softcap is not None, logit_dtype == "bf16")
    return on_gpu_of(impl, like.device.index, int(like.shape[1]), int(weight.shape[0]), head, group_name(group))


@asked_once
def on_gpu_of(
    impl: str, index: int, d_model: int, vocab: int, head: tuple[bool, bool, bool, bool], group: str | None
) -> str:
    """ "anchored" or "fallback" for impl "anchored", "auto" or "triton"."""
    from siri_kernels import self_check
    from siri_kernels.rows.anchored.tiles import capability

    device = torch.device("cuda", index)
    # a shard's size differs between ranks, and they all must choose the same
    if impl != "anchored" and not suits(capability(device), d_model, vocab if group is None else None):
        return "fallback"
    fault = self_check.fault(device, d_model, vocab, head, group)
    if fault is None:
        return "anchored"
    where = f"{device} ({torch.cuda.get_device_name(device)})"
    if impl == "anchored":
        raise ValueError(f"impl='anchored' does not work on {where}: {fault}; use impl='auto' or 'fallback'")
    line = f"siri_kernels: the anchored GEMM does not work on {where}, impl={impl!r} takes the fallback: {fault}"
    if line not in _warned:
        _warned.add(line)
        warnings.warn(line, RuntimeWarning, stacklevel=4)
    return "fallback"


def suits(arch: int, d_model: int, vocab: int | None) -> bool:
    """Whether "auto" wants the anchored GEMM; vocab None = any."""
    return arch in AUTO_ARCHS and d_model % 8 == 0 and (vocab is None or vocab >= MIN_VOCAB)
