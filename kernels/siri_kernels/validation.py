"""Checks of the arguments: ValueError with one line that names the argument and the way out.

Names, shapes, dtypes and devices are always checked. Values (ids, offsets) are checked on CPU tensors, and on CUDA only
when SIRI_KERNELS_DEBUG=1, because reading them there synchronises.
"""

from __future__ import annotations

import difflib
import math
import os
from typing import TypeVar, cast

import torch
from torch import Tensor

Value = TypeVar("Value")
MEMORY = ("fast", "small", "lean")
LOGIT_DTYPES = ("fp32", "bf16")
IMPLS = ("auto", "triton", "anchored", "fallback", "torch", "reference")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
KINDS = {
    "float": ("fp16, bf16, fp32 or fp64", FLOATS),
    "int": ("int64 or int32", (torch.int64, torch.int32)),
    "bool": ("bool (use mask.bool())", (torch.bool,)),
}


def one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0)
        raise ValueError(f"{name}={value!r} is not one of {', '.join(choices)}; did you mean {near[0]!r}?")


def number(
    name: str, value: object, *, above: float | None = None, least: float | None = None, optional: bool = False
) -> None:
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < math.inf:
        raise ValueError(f"{name} must be a finite number{' or None' if optional else ''}, got {value!r}")
    if above is not None and value <= above:
        raise ValueError(f"{name} must be greater than {above}, got {value}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def given(x: Value | None) -> Value:
    """x, which an earlier check made sure of."""
    assert x is not None
    return x


def is_pair(x: object) -> bool:
    return isinstance(x, tuple) and len(cast("tuple[object, ...]", x)) == 2


def is_float_tensor(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def shape_of(x: object) -> str:
    return f"{list(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__


def tensor(name: str, x: object, *, like: Tensor, shape: tuple[int, ...] | None = None, kinds: str) -> None:
    """Type, device, shape and kind ("float", "int" or "bool") of one argument."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device} and the first argument on {like.device}; move one with .to()")
    words, dtypes = KINDS[kinds]
    if x.dtype not in dtypes:
        raise ValueError(f"{name} must be {words}, got {x.dtype}")
    if shape is not None and tuple(x.shape) != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(x.shape)}")


def check_head(
    hidden: Tensor,
    weight: Tensor,
    target_ids: Tensor,
    *,
    temperature: float | Tensor,
    bias: Tensor | None,
    softcap: float | None,
    logit_dtype: str = "fp32",
) -> None:
    if not is_float_tensor(hidden) or hidden.dtype not in FLOATS or hidden.dim() != 2:
        raise ValueError(f"hidden must be a float tensor [N, D]; flatten batch and time first, got {shape_of(hidden)}")
    if hasattr(weight, "full_tensor"):
        raise ValueError(
            "weight is a sharded DTensor; call the head itself (FusedLMHead), so that FSDP2 gathers it first"
        )
    n, d = hidden.shape
    tensor("weight", weight, like=hidden, kinds="float")
    if weight.dim() != 2 or weight.shape[1] != d or weight.shape[0] == 0:
        raise ValueError(f"weight must have shape [V, D] with D = {d} as in hidden, got {list(weight.shape)}")
    if weight.dtype != hidden.dtype:
        raise ValueError(f"weight is {weight.dtype} and hidden {hidden.dtype}; cast one so that they agree")
    tensor("target_ids", target_ids, like=hidden, shape=(n,), kinds="int")
    if bias is not None:
        tensor("bias", bias, like=hidden, shape=(weight.shape[0],), kinds="float")
    check_temperature(temperature, n, hidden)
    number("softcap", softcap, above=0, optional=True)
    one_of("logit_dtype", logit_dtype, LOGIT_DTYPES)


def check_temperature(temperature: float | Tensor, n: int, like: Tensor) -> None:
    if isinstance(temperature, Tensor):
        tensor("temperature", temperature, like=like, shape=(n,), kinds="float")
    else:
        number("temperature", temperature, above=0)


def check_placement(
    n: int,
    *,
    keep: Tensor | None,
    forward_all: object,
    memory: object,
    main_grad: object,
    weight: Tensor,
    vocab_start: object,
    vocab_size: object,
    group: object,
    keep_lengths: object,
    sequences: int | None,
    like: Tensor,
) -> None:
    if keep is not None:
        tensor("keep", keep, like=like, kinds="int")
        if keep.dim() != 1 or keep.numel() > n:
            raise ValueError(f"keep must be an index [K] of distinct rows, K <= {n}, got shape {list(keep.shape)}")
    if not isinstance(forward_all, bool):
        raise ValueError(f"forward_all must be True or False, got {forward_all!r}")
    check_memory(memory)
    wanted = (weight.shape, torch.float32, weight.device)
    if main_grad is not None and (
        not isinstance(main_grad, Tensor) or (main_grad.shape, main_grad.dtype, main_grad.device) != wanted
    ):
        raise ValueError(f"main_grad must be fp32 {list(weight.shape)} on {weight.device}, got {shape_of(main_grad)}")
    if isinstance(vocab_start, bool) or not isinstance(vocab_start, int) or vocab_start < 0:
        raise ValueError(f"vocab_start must be an int >= 0, got {vocab_start!r}")
    if group is None and (vocab_start or vocab_size is not None):
        name = "vocab_start" if vocab_start else "vocab_size"
        raise ValueError(f"{name} belongs to vocabulary shards: pass the group of the other shards, too")
    if vocab_size is not None:
        end = vocab_start + weight.shape[0]
        if isinstance(vocab_size, bool) or not isinstance(vocab_size, int) or vocab_size < end:
            raise ValueError(f"vocab_size is the whole vocabulary, an int of at least {end} here, got {vocab_size!r}")
    if keep_lengths is not None:
        check_lengths(keep_lengths, n if keep is None else keep.numel(), sequences)


def check_memory(memory: object) -> None:
    if isinstance(memory, str):
        one_of("memory", memory, MEMORY)
    elif isinstance(memory, bool) or not isinstance(memory, int) or memory <= 0:
        raise ValueError(f"memory must be a positive number of bytes or one of {', '.join(MEMORY)}, got {memory}")


def check_lengths(keep_lengths: object, rows: int, sequences: int | None) -> None:
    if (
        not isinstance(keep_lengths, Tensor)
        or keep_lengths.device.type != "cpu"
        or keep_lengths.dtype.is_floating_point
    ):
        raise ValueError(f"keep_lengths must be ints on the host, a CPU tensor [S], got {shape_of(keep_lengths)}")
    if sequences is None or tuple(keep_lengths.shape) != (sequences,):
        raise ValueError(f"keep_lengths must have shape [{sequences or 'S'}], one per sequence of cu_seqlens")
    if not torch.compiler.is_compiling() and int(keep_lengths.sum()) != rows:
        raise ValueError(f"keep_lengths must add up to the {rows} rows that have gradients, not {keep_lengths.sum()}")


def values_are_checked(x: Tensor) -> bool:
    return x.device.type == "cpu" or os.environ.get("SIRI_KERNELS_DEBUG") == "1"


def counted_targets(target_ids: Tensor, mask: Tensor | None, vocab: int | None) -> Tensor:
    """target_ids with 0 for what is no id (-100, as padding is marked) in rows that do not count, so that nothing reads
    it; vocab None where only negative ids can be told."""
    if mask is None:
        return target_ids
    known = target_ids == target_ids.clamp(0, None if vocab is None else vocab - 1)
    return torch.where(mask | known, target_ids, 0)


def check_values(
    target_ids: Tensor,
    vocab: int | None,
    *,
    temperature: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    keep: Tensor | None = None,
    denominator: Tensor | None = None,
) -> None:
    """Values of index tensors; vocab None for a vocabulary shard, whose targets may lie elsewhere."""
    n = target_ids.numel()
    if n and vocab is not None:
        low, high = target_ids.aminmax()
        if low < 0 or high >= vocab:
            raise ValueError(
                f"target_ids must lie in [0, {vocab}), found {int(low)} to {int(high)}; use mask, not ids like -100"
            )
    if temperature is not None and not bool((temperature > 0).all()):
        raise ValueError("temperature must be greater than 0 in every row")
    if cu_seqlens is not None:
        check_offsets(cu_seqlens, n)
    if keep is not None and keep.numel():
        low, high = keep.aminmax()
        if low < 0 or high >= n:
            raise ValueError(f"keep must index rows in [0, {n}), found {int(low)} to {int(high)}")
        if (
            int(torch.zeros(n, dtype=torch.bool, device=keep.device).index_fill_(0, keep.long(), True).sum())
            != keep.numel()
        ):
            raise ValueError("keep names a row twice; every row may appear once")
    if denominator is not None and not bool(denominator > 0):
        raise ValueError(f"denominator must be greater than 0, got {float(denominator)}")


def check_offsets(cu_seqlens: Tensor, n: int) -> None:
    if int(cu_seqlens[0]) != 0 or int(cu_seqlens[-1]) != n:
        raise ValueError(
            f"cu_seqlens must start at 0 and end at N = {n}, found {int(cu_seqlens[0])} and {int(cu_seqlens[-1])}"
        )
    if bool((cu_seqlens.diff() < 0).any()):
        raise ValueError("cu_seqlens must not decrease: it holds the offsets of packed sequences")
