"""Attention of packed sequences: causal inside each, none across (no pad token in the batch, no dense mask).

Sequences of like length are gathered into small dense blocks, right-padded, and go through torch's causal attention
together. Under a causal mask no real query sees the padding on its right, so the numbers are those of one-by-one
attention, and memory stays linear in the pack.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

NAME = "siri_varlen"
FILL = 0.75
"""Within a block every sequence is at least this share of the longest, so at most a quarter of a block is padding."""


@dataclass(frozen=True)
class Block:
    """Sequences of like length inside a pack: rows_SL gathers them, real_SL says which entries are tokens."""

    rows_SL: torch.Tensor
    real_SL: torch.Tensor | None
    """None when all sequences of the block are equally long."""


@dataclass(frozen=True)
class PackedLayout:
    """Where each sequence of a pack lies; made on the host from its lengths, so that nothing syncs with the device."""

    cu_seqlens: torch.Tensor
    """[S + 1] int32, starts of the sequences and the total."""
    position_ids_N: torch.Tensor
    """[N] int64, restarting at 0 with every sequence."""
    blocks: tuple[Block, ...]
    order_N: torch.Tensor
    """[N] int64: row of the pack -> its place in the concatenated blocks."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> "PackedLayout":
        """Layout of sequences of the given lengths (tokens), laid end to end in this order."""
        sizes = torch.tensor(lengths, dtype=torch.int64)
        ends = sizes.cumsum(0)
        starts = ends - sizes
        total = int(ends[-1])
        position_ids = torch.arange(total) - torch.repeat_interleave(starts, sizes)
        blocks, placed = [], []
        for members in _like_lengths(lengths):
            longest = lengths[members[0]]
            offsets_L = torch.arange(longest)
            real_SL = offsets_L < sizes[members][:, None]
            rows_SL = torch.where(real_SL, starts[members][:, None] + offsets_L, starts[members][:, None])
            placed.append(rows_SL[real_SL])
            blocks.append(Block(rows_SL.to(device), None if real_SL.all() else real_SL.to(device)))
        order = torch.empty(total, dtype=torch.int64)
        order[torch.cat(placed)] = torch.arange(total)
        cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), ends]).to(torch.int32)
        return cls(cu_seqlens.to(device), position_ids.to(device), tuple(blocks), order.to(device))


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
    """Causal attention inside each sequence of a pack; differentiable.

    query_NHd: [N, heads, head size], key_NKd and value_NKd: [N, key-value heads, head size] (grouped queries allowed).
    Returns [N, heads, head size].
    """
    grouped = query_NHd.shape[1] != key_NKd.shape[1]
    outputs = []
    for block in layout.blocks:
        # transposed, because torch wants [sequences, heads, length, head size]
        query, key, value = (tensor[block.rows_SL].transpose(1, 2) for tensor in (query_NHd, key_NKd, value_NKd))
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
        out = out.transpose(1, 2)
        outputs.append(out.flatten(0, 1) if block.real_SL is None else out[block.real_SL])
    return torch.cat(outputs)[layout.order_N]


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
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        packed = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        return varlen_attention(*packed, layout, scale=scale)[None], None

    AttentionInterface.register(NAME, forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
