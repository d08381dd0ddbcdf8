"""A low-rank adapter on the LM head as columns more of its GEMM."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from siri_kernels.validation import is_pair, tensor

ROW_BYTES = 16
"""What rows of half precision are a multiple of, for TMA and for the tensor cores of cuBLAS."""


def with_adapter(hidden: Tensor, weight: Tensor, low_rank: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, int]:
    """[x, u] and [W, B], so that one GEMM makes x W^T + u B^T, and how many of their columns need no weight gradient.

    In half precision columns of zeros follow, up to a multiple of 16 bytes, so that no rank r keeps the rows from the
    kernels that want them aligned. W is copied: the sum is one GEMM instead of two and an addition of [N, V].
    """
    if low_rank is None:
        return hidden, weight, 0
    if not is_pair(low_rank):
        raise ValueError(f"low_rank must be a pair (u [N, r], B [V, r]), got {type(low_rank).__name__}")
    u, b = low_rank
    tensor("low_rank[0]", u, like=hidden, kinds="float")
    rank = u.shape[-1] if u.dim() else 0
    tensor("low_rank[0]", u, like=hidden, shape=(hidden.shape[0], rank), kinds="float")
    tensor("low_rank[1]", b, like=hidden, shape=(weight.shape[0], rank), kinds="float")
    frozen = 0 if weight.requires_grad else weight.shape[1]
    u, b = u.to(hidden.dtype), b.to(weight.dtype)
    padding = -(weight.shape[1] + rank) % (ROW_BYTES // 2) if hidden.element_size() == 2 else 0
    if padding:
        u, b = F.pad(u, (0, padding)), F.pad(b, (0, padding))
    return torch.cat([hidden, u], 1), torch.cat([weight, b], 1), frozen
