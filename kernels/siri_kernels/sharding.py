"""Vocabulary shards (tensor parallelism): every rank holds rows [vocab_start, vocab_start + V) of the lm_head and all
of hidden.

Row statistics are exchanged in one all-reduce (SUM) of a zero-padded slot per rank and combined in rank order, so that
every rank gets the same bits and no extreme logit can overflow on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def locate(target_ids: Tensor, start: int, vocab: int) -> tuple[Tensor, Tensor]:
    """(which targets lie in [start, start + vocab), their local column [n, 1], 0 for the others)."""
    y = target_ids.long() - start
    here = (y >= 0) & (y < vocab)
    return here, torch.where(here, y, 0)[:, None]


def group_name(group: ProcessGroup | None) -> str | None:
    """The name under which a process group travels through an operator's schema."""
    return None if group is None else group.group_name


def plan_columns(group: ProcessGroup | None, vocab_start: int, vocab: int, vocab_size: int | None) -> int:
    """Columns that the chunk plan counts with. All ranks have to plan the same chunks, or they meet in different
    collectives, so this is what every rank knows without asking: its own V when all shards are alike, else an equal
    share of the whole vocabulary."""
    if group is None:
        return vocab
    import torch.distributed as dist

    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if vocab_size is not None:
        return -(-vocab_size // size)
    if vocab_start != rank * vocab:
        raise ValueError(
            f"rank {rank}'s shard of {vocab} tokens starts at {vocab_start}, so shards differ in size; pass "
            "vocab_size, the size of the whole vocabulary, on every rank: they must plan the same chunks"
        )
    return vocab


def resolve_group(name: str | None) -> ProcessGroup | None:
    if name is None:
        return None
    from torch.distributed import distributed_c10d

    resolve: Any = vars(distributed_c10d)["_resolve_process_group"]  # as torch's functional collectives do
    return resolve(name)


def all_reduce(x: Tensor, group: ProcessGroup | None) -> None:
    """Sum over the group, in place."""
    import torch.distributed as dist

    dist.all_reduce(x, group=group)  # pyright: ignore[reportUnknownMemberType]


@dataclass(frozen=True)
class Shard:
    """Where this rank's vocabulary starts; group None = the only shard."""

    start: int = 0
    group: ProcessGroup | None = None
    columns: int = 0
    """what `plan_columns` gave; 0 = those of the weight at hand"""

    @property
    def whole(self) -> bool:
        return self.group is None

    def localize(self, target_ids: Tensor, vocab: int) -> tuple[Tensor | None, Tensor]:
        """`locate` in this shard; the mask is None when the shard is the whole vocabulary."""
        return (None, target_ids.long()[:, None]) if self.whole else locate(target_ids, self.start, vocab)

    def combine(self, local: Tensor) -> Tensor:
        """Row statistics [4, n] (maximum, s_off, u_off, z_y, 0 where another shard owns y) of this shard -> of all."""
        if self.whole:
            return local
        import torch.distributed as dist

        slots = local.new_zeros(dist.get_world_size(self.group), *local.shape)
        slots[dist.get_rank(self.group)] = local
        all_reduce(slots, self.group)
        maximum, s_off, u_off, target_z = slots.unbind(1)
        top = maximum.amax(0)
        shift = maximum - top
        factor = shift.exp()
        u = torch.where(factor == 0, 0.0, s_off * shift) + u_off
        return torch.stack([top, (s_off * factor).sum(0), (u * factor).sum(0), target_z.sum(0)])

    def all_reduce_(self, x: Tensor) -> Tensor:
        """Sum over the shards, in place."""
        if not self.whole:
            all_reduce(x, self.group)
        return x
