"""Attention of packed sequences: causal inside each, none across (no pad token in the batch, no dense mask).

The backends, `siri doctor` says which of them work on a machine:

flash3, flash4, flash2   flash-attn's kernels for packed sequences (packages flash-attn-3, flash-attn-4, flash-attn)
varlen                   torch's own packed attention (torch.nn.attention.varlen), on GPUs
flex                     torch's compiled attention with a block mask that is made from the lengths, on GPUs
sdpa                     torch's dense attention over blocks of sequences of like length, anywhere

Lengths, block masks and gather indices are made on the host, once for each pack; no layer asks the device for anything.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from siri.errors import InputError, first_line
from siri.packing.flops import head_size

NAME = "siri_varlen"
FILL = 0.75
"""Within a block every sequence is at least this share of the longest, so at most a quarter of a block is padding."""
KERNELS = {
    "flash4": "flash-attn 4",
    "flash3": "flash-attn 3",
    "flash2": "flash-attn 2",
    "varlen": "torch's varlen, on the kernels of FlashAttention 2",
    "flex": "torch's flex, compiled",
    "sdpa": "torch's dense attention over blocks of like length",
}
"""What each backend runs on."""
INSTALLED_BY = {
    "flash4": "pip install --pre flash-attn-4",
    "flash3": "built from the hopper folder of flash-attention, since no index has it",
    "flash2": "pip install flash-attn",
}
TILE = 128
"""Rows and columns of a tile of flex's block mask."""


@dataclass(frozen=True)
class PackedLayout:
    """Where each sequence of a pack lies; made on the host from its lengths, so that nothing syncs with the device."""

    cu_seqlens: torch.Tensor
    """[S + 1] int32, starts of the sequences and the total."""
    max_seqlen: int
    """Tokens of the longest sequence."""
    position_ids_N: torch.Tensor
    """[N] int64, restarting at 0 with every sequence."""
    backend: str = "sdpa"
    blocks: tuple[torch.Tensor, ...] = ()
    """sdpa: rows [S, L] int64 of the pack that each block of sequences gathers, shorter ones filled up with their
    first row."""
    place_N: torch.Tensor | None = None
    """sdpa: [N] int64, row of the pack -> its place among the concatenated rows of the blocks."""
    block_mask: Any = None
    """flex: torch's BlockMask."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu", backend: str = "sdpa") -> "PackedLayout":
        """Layout of sequences of the given lengths (tokens), laid end to end in this order, for a backend."""
        sizes = torch.tensor(lengths, dtype=torch.int64)
        ends = sizes.cumsum(0)
        starts = ends - sizes
        position_ids = torch.arange(int(ends[-1])) - torch.repeat_interleave(starts, sizes)
        cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), ends]).to(torch.int32).to(device)
        common = (cu_seqlens, max(lengths), position_ids.to(device), backend)
        if backend == "flex":
            return cls(*common, block_mask=_block_mask(lengths, device))
        if backend != "sdpa":
            return cls(*common)
        blocks, place, placed = [], torch.empty(int(ends[-1]), dtype=torch.int64), 0
        for members in _like_lengths(lengths):
            offsets_L = torch.arange(lengths[members[0]])
            real_SL = offsets_L < sizes[members][:, None]
            rows_SL = torch.where(real_SL, starts[members][:, None] + offsets_L, starts[members][:, None])
            place[rows_SL[real_SL]] = placed + real_SL.flatten().nonzero()[:, 0]
            placed += rows_SL.numel()
            blocks.append(rows_SL.to(device))
        return cls(*common, tuple(blocks), place.to(device))


def _like_lengths(lengths: Sequence[int]) -> list[list[int]]:
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    groups: list[list[int]] = []
    for index in order:
        if groups and lengths[index] >= FILL * lengths[groups[-1][0]]:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def varlen_attention(
    query_NHd: torch.Tensor, key_NKd: torch.Tensor, value_NKd: torch.Tensor, layout: PackedLayout, *, scale: float
) -> torch.Tensor:
    """Causal attention inside each sequence of a pack, by the layout's backend; differentiable.

    query_NHd: [N, heads, head size], key_NKd and value_NKd: [N, key-value heads, head size] (grouped queries allowed).
    Returns [N, heads, head size] in the query's dtype. The flash backends and varlen compute fp32 inputs in bf16,
    because they know no fp32.
    """
    if layout.backend in ("sdpa", "flex"):
        return _TORCH[layout.backend](query_NHd, key_NKd, value_NKd, layout, scale)
    # autocast knows torch's dense attention, but not these
    query, key, value = (x.bfloat16() if x.dtype == torch.float32 else x for x in (query_NHd, key_NKd, value_NKd))
    run = _varlen if layout.backend == "varlen" else _flash
    return run(query, key, value, layout, scale).to(query_NHd.dtype)


def any_shape(device: torch.device) -> AbstractContextManager[Any]:
    """torch's dense attention without cuDNN's, which torch prefers on an H100 and which builds a plan for every new
    shape: a shape with every token that is sampled, and with every pack."""
    if device.type != "cuda":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def _sdpa(query_NHd, key_NKd, value_NKd, layout: PackedLayout, scale: float) -> torch.Tensor:
    """Blocks of like length, right-padded: under a causal mask no real query sees the padding on its right, so the
    numbers are those of one-by-one attention, and memory stays linear in the pack."""
    grouped = query_NHd.shape[1] != key_NKd.shape[1]
    outputs = []
    with any_shape(query_NHd.device):
        for rows_SL in layout.blocks:
            # transposed, because torch wants [sequences, heads, length, head size]
            query, key, value = (
                tensor.index_select(0, rows_SL.flatten()).unflatten(0, rows_SL.shape).transpose(1, 2)
                for tensor in (query_NHd, key_NKd, value_NKd)
            )
            out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
            outputs.append(out.transpose(1, 2).flatten(0, 1))
    assert layout.place_N is not None  # as in every layout of this backend
    return torch.cat(outputs).index_select(0, layout.place_N)


def _flash(query_NHd, key_NKd, value_NKd, layout: PackedLayout, scale: float) -> torch.Tensor:
    """All versions of flash-attn name these arguments alike; some return the log-sum-exp as well."""
    out = _flash_function(layout.backend)(
        query_NHd,
        key_NKd,
        value_NKd,
        cu_seqlens_q=layout.cu_seqlens,
        cu_seqlens_k=layout.cu_seqlens,
        max_seqlen_q=layout.max_seqlen,
        max_seqlen_k=layout.max_seqlen,
        softmax_scale=scale,
        causal=True,
    )
    return out[0] if isinstance(out, tuple) else out


def _flash_function(backend: str) -> Callable[..., Any]:
    if backend == "flash3":
        from flash_attn_interface import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]  # an extra
    elif backend == "flash4":
        from flash_attn.cute import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]  # an extra
    else:
        from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]  # an extra
    return flash_attn_varlen_func


def _varlen(query_NHd, key_NKd, value_NKd, layout: PackedLayout, scale: float) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {}
    share = query_NHd.shape[1] // key_NKd.shape[1]
    if repeats_keys("varlen", share):
        key_NKd, value_NKd = (tensor.repeat_interleave(share, 1) for tensor in (key_NKd, value_NKd))
    elif share > 1:
        options["enable_gqa"] = True
    ends, longest = layout.cu_seqlens, layout.max_seqlen
    # a window that is open to the left and closed to the right is the causal mask
    out = varlen_attn(
        query_NHd, key_NKd, value_NKd, ends, ends, longest, longest, scale=scale, window_size=(-1, 0), **options
    )
    return out[0] if isinstance(out, tuple) else out


def _flex(query_NHd, key_NKd, value_NKd, layout: PackedLayout, scale: float) -> torch.Tensor:
    share = query_NHd.shape[1] // key_NKd.shape[1]
    if repeats_keys("flex", share):
        key_NKd, value_NKd = (tensor.repeat_interleave(share, 1) for tensor in (key_NKd, value_NKd))
    query, key, value = (tensor.transpose(0, 1)[None] for tensor in (query_NHd, key_NKd, value_NKd))
    flex = _compiled_flex() if query.is_cuda else _plain_flex()
    out = flex(query, key, value, block_mask=layout.block_mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1])
    return out[0].transpose(0, 1)


_TORCH = {"sdpa": _sdpa, "flex": _flex}


def repeats_keys(backend: str, share: int) -> bool:
    """Whether a backend is given keys and values anew for every query head, because it does not know groups of `share`
    query heads to a key-value head."""
    if backend == "flex":
        return share & (share - 1) != 0  # it groups queries by powers of two only
    if backend != "varlen" or share == 1:
        return False
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" not in inspect.signature(varlen_attn).parameters  # torch 2.11


def _plain_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(_plain_flex(), dynamic=True)  # packs differ in length


def _block_mask(lengths: Sequence[int], device: torch.device | str) -> Any:
    """flex's BlockMask, from the lengths: torch's own builder would evaluate the mask of all N x N pairs."""
    from torch.nn.attention.flex_attention import BlockMask

    total = sum(lengths)
    owner_N = np.repeat(np.arange(len(lengths)), lengths)
    first = owner_N[::TILE]
    last = owner_N[np.minimum(np.arange(len(first)) * TILE + TILE, total) - 1]
    row, column = np.arange(len(first))[:, None], np.arange(len(first))
    # a tile has a pair iff its last key's sequence reaches its first query's; full iff both lie in one sequence
    some = (column <= row) & (last[None, :] >= first[:, None])
    full = (column < row) & (first[None, :] == last[:, None]) & (row * TILE + TILE <= total)
    owner = torch.from_numpy(owner_N).to(device)

    def attends(_batch, _head, q, k):
        return (owner[q] == owner[k]) & (q >= k)

    def listed(tiles: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        indices = np.argsort(~tiles, axis=1, kind="stable")
        count, order = (
            torch.from_numpy(x.astype(np.int32)).to(device)[None, None].contiguous() for x in (tiles.sum(1), indices)
        )
        return count, order

    return BlockMask.from_kv_blocks(
        *listed(some & ~full), *listed(full), BLOCK_SIZE=TILE, mask_mod=attends, seq_lengths=(total, total)
    )


def candidates(device: torch.device) -> tuple[str, ...]:
    """The backends that `auto` tries on a device, the fastest first."""
    if device.type != "cuda":
        return ("sdpa",)
    major, _ = torch.cuda.get_device_capability(device)
    newest = ("flash4",) if major >= 10 else ("flash3", "flash4") if major == 9 else ()
    return (*newest, "flash2", "varlen", "flex", "sdpa") if major >= 8 else ("sdpa",)


def select_backend(name: str, device: torch.device, model_config: Any = None, checkpointing: str = "none") -> str:
    """The backend for `attention = name` on a device and for the heads of a model.

    auto: the first of `candidates` that passes `fault`. InputError when a named one does not, or cannot be kept by
    selective checkpointing.
    """
    kept = checkpointing == "selective"
    if kept and name == "flex":
        raise InputError("checkpointing selective cannot keep what flex attends; use --checkpointing full")
    heads, groups, size = 4, 2, 64
    if model_config is not None:
        heads, groups = model_config.num_attention_heads, model_config.num_key_value_heads
        size = head_size(model_config)
    if name == "auto":
        order = [backend for backend in candidates(device) if not (kept and backend == "flex")]
        return next(backend for backend in order if not fault(backend, device, heads, groups, size))
    if reason := fault(name, device, heads, groups, size):
        raise InputError(f"attention {name} does not work here ({reason}); use --attention auto, or see siri doctor")
    return name


def notes(backend: str, device: torch.device, model_config: Any) -> tuple[str, ...]:
    """On a GPU a line on the kernels that attend, and on what would be faster there and why it is not taken."""
    if device.type != "cuda":
        return ()
    order = candidates(device)
    before = order[: order.index(backend)] if backend in order else ()
    heads, groups = model_config.num_attention_heads, model_config.num_key_value_heads
    reasons = [
        f"{other} ({reason or 'works here'}; {INSTALLED_BY[other]})"
        for other in before
        if other in INSTALLED_BY
        for reason in [fault(other, device, heads, groups, head_size(model_config))]
    ]
    faster = f"; faster on this GPU would be {', '.join(reasons)}" if reasons else ""
    return (f"attention: {KERNELS[backend]}{faster}",)


@cache
def fault(backend: str, device: torch.device, heads: int = 4, groups: int = 2, size: int = 64) -> str:
    """Why a backend cannot train on a device; "" when it can.

    It is tried, forward and backward, on a small pack against sdpa: versions of flash-attn differ in which GPUs and
    head sizes have a backward, and a package may be installed that cannot be loaded.
    """
    if backend == "sdpa":
        return ""
    if device.type != "cuda":
        return f"it has no backward on {device.type}"
    lengths = [5, 300, 1, 140]
    draw = torch.Generator(device).manual_seed(0)
    tensors = [
        torch.randn(sum(lengths), n, size, device=device, generator=draw).bfloat16() for n in (heads, groups, groups)
    ]
    try:
        got, wanted = (_with_gradients(tensors, PackedLayout.of(lengths, device, kind)) for kind in (backend, "sdpa"))
        worst = max(float((x - y).norm() / y.norm()) for x, y in zip(got, wanted, strict=True))
    except Exception as error:  # what a package raises that does not fit the GPU is its own
        return first_line(error)
    return "" if worst < 0.03 else f"its numbers are off by {worst:.0%}"


def _with_gradients(tensors: Sequence[torch.Tensor], layout: PackedLayout) -> list[torch.Tensor]:
    query, key, value = leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out = varlen_attention(query, key, value, layout, scale=tensors[0].shape[-1] ** -0.5)
    out.backward(tensors[0])
    return [out.detach().float(), *(leaf.grad.float() for leaf in leaves if leaf.grad is not None)]


def register() -> str:
    """Make the implementation known to transformers; returns the name for `attn_implementation`.

    With `layout=PackedLayout` in a model call (batch of one) it is packed attention; without, torch's dense attention,
    which sampling with a key-value cache uses.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def forward(module, query, key, value, attention_mask, *, scaling=None, layout=None, **kwargs):
        if layout is None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        if kwargs.get("sliding_window") is not None:
            raise InputError("packed attention has no sliding window; set use_sliding_window false in config.json")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        query_NHd, key_NKd, value_NKd = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        return varlen_attention(query_NHd, key_NKd, value_NKd, layout, scale=scale)[None], None

    AttentionInterface.register(NAME, forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
