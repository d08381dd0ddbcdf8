"""Which rows of a batch have gradients, and whether they are few enough to be taken together: what the host can tell
before an operator runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec

import torch
from torch import Tensor

from siri_kernels.chunked import chunk_rows, host_ints
from siri_kernels.loss.spec import LossSettings
from siri_kernels.loss.tokens import gradient_rows, prepare
from siri_kernels.reference import sequence_ids
from siri_kernels.rows.sliced import operand_dtype

Arguments = ParamSpec("Arguments")


def by_sequence(
    loss: LossSettings,
    n: int,
    size: int,
    advantages: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor,
    keep: Tensor | None,
    keep_lengths: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, bool]:
    """keep and keep_lengths for chunks of at most `size` rows that end between sequences, and whether there are such
    chunks: only what is on the host can say so, and nothing in a graph that torch.compile makes for every batch."""
    if (n if keep is None else keep.numel()) <= size:
        return keep, None, True
    if torch.compiler.is_compiling():
        return keep, None, False
    if cu_seqlens.device.type == "cpu" and (keep is None or keep_lengths is None):
        keep = rows_by_value(loss, n, advantages, mask, cu_seqlens) if keep is None else keep.sort().values
        keep_lengths = sequence_ids(cu_seqlens, n)[keep].bincount(minlength=cu_seqlens.numel() - 1)
    fits = keep_lengths is not None and max(host_ints(keep_lengths), default=0) <= size
    return keep, keep_lengths if fits else None, fits


def in_one_chunk(impl: str, hidden: Tensor, columns: int, budget: int, keep: Tensor | None) -> bool:
    """Whether all rows with gradients are one chunk of a path whose E lasts until the backward, as far as the host can
    tell."""
    if keep is None and hidden.device.type == "cpu":  # they will be looked up
        return False
    if impl == "sliced" and operand_dtype(hidden.dtype) != hidden.dtype:  # E is wider than x
        return False
    kept = hidden.shape[0] if keep is None else keep.numel()
    return 0 < kept <= chunk_rows(impl, hidden, columns, budget)


def outside_graphs(function: Callable[Arguments, Tensor]) -> Callable[Arguments, Tensor]:
    """torch.compile leaves a graph to run it."""
    disable: Any = torch.compiler.disable  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return disable(function)


@outside_graphs
def rows_by_value(
    loss: LossSettings, n: int, advantages: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None
) -> Tensor:
    """The rows that may have a gradient, on the host; their number depends on values that no graph knows."""
    options: dict[str, Any] = {"old_logp": None, "rollout_logp": None, "denominator": None, "dtype": torch.float32}
    return gradient_rows(loss, prepare(loss, n, advantages, mask=mask, cu_seqlens=cu_seqlens, **options))
