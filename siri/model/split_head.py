"""The lm_head cut by vocabulary rows over the ranks that share a model (tensor parallelism of the head).

The ranks of one model gather the hidden states of all their response tokens, and each computes the logits of its rows
of the vocabulary; `siri_kernels` joins the row statistics with one SUM all-reduce a chunk, and sums the gradient of the
hidden states. An untied head is never gathered: each rank holds, steps and saves its rows alone. A tied one is gathered
for the embedding, with the rest of the root, and each rank takes its rows of that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from siri.errors import InputError
from siri.runtime.ranks import Ranks


@dataclass(frozen=True)
class HeadCut:
    """This rank's part of the head."""

    place: int
    """Among the ranks that share a model."""
    size: int
    """How many they are."""
    first: int
    """Rank of the first of them, in the trainer's numbering."""
    group: Any
    """Their process group."""

    @classmethod
    def of(cls, ranks: Ranks) -> "HeadCut | None":
        """None where there is nothing to cut: on a lone rank, or with each model on a rank of its own."""
        if not ranks.sharded or ranks.mesh.shape[-1] == 1:
            return None
        last = ranks.mesh.ndim - 1
        place, size = ranks.mesh.get_local_rank(last), ranks.mesh.shape[-1]
        return cls(place, size, ranks.rank - place, ranks.mesh.get_group(last))

    def rows(self, vocab: int) -> slice:
        """This rank's rows of a vocabulary, as torch.chunk and FSDP2 cut it: rounded up, fewer on the last ranks."""
        each = -(-vocab // self.size)
        return slice(min(vocab, self.place * each), min(vocab, (self.place + 1) * each))

    def weight(self, model: Any) -> tuple[torch.Tensor, torch.Tensor | None, int]:
        """This rank's rows of weight and bias, differentiable, and the first row's number; inside `run_inside`."""
        weight, bias = model.lm_head.weight, model.lm_head.bias
        rows = self.rows(weight.shape[0])
        if not _tied(model):
            from torch.distributed.tensor import Partial, Shard

            # each replica of the model has the gradient of its own tokens only, until `finish`
            weight = weight.to_local(grad_placements=[*[Partial()] * (weight.device_mesh.ndim - 1), Shard(0)])
        else:
            weight = weight[rows]
        return weight, None if bias is None else bias[rows], rows.start

    def finish(self, model: Any, ranks: Ranks) -> None:
        """After the last backward of a step: an untied head's gradient becomes the mean over all ranks, as FSDP2 does
        for its own parameters."""
        weight = model.lm_head.weight
        if not _tied(model) and weight.requires_grad:
            weight.grad = (weight.grad / ranks.size).redistribute(placements=weight.placements)


def cut_head(model: Any, ranks: Ranks) -> set[torch.nn.Parameter]:
    """Cut an untied lm_head over the ranks, before FSDP2 shards the rest; returns the parameters it has to leave alone.

    The parameter keeps its name and becomes a DTensor like FSDP2's own, so that optimizer, checkpoints and the weight
    sync treat it as any other. InputError when there are more ranks than parts of the vocabulary.
    """
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    head = model.lm_head
    cut = HeadCut.of(ranks)
    if cut is None:
        return set()
    check_parts(model, cut.size)
    if _tied(model):
        return set()
    placements = [*[Replicate()] * (ranks.mesh.ndim - 1), Shard(0)]
    # every rank has the same values, or none yet (meta device): nothing is sent
    rows = distribute_tensor(head.weight.detach(), ranks.mesh, placements, src_data_rank=None)
    head.weight = torch.nn.Parameter(rows)
    return {head.weight}


def check_parts(model: Any, parts: int) -> None:
    """InputError when the vocabulary has too few rows to be cut into so many parts."""
    vocab = model.lm_head.weight.shape[0]
    if -(-vocab // parts) * (parts - 1) >= vocab:
        raise InputError(f"vocab_parallel: {vocab} rows of vocabulary leave some of {parts} ranks without any")


def _tied(model: Any) -> bool:
    return model.lm_head.weight is model.get_input_embeddings().weight


def gather_rows(hidden_RD: torch.Tensor, shares: Sequence[int], cut: HeadCut) -> torch.Tensor:
    """The hidden states of all ranks that share a model, in order; differentiable. shares: how many rows each has."""
    return _GatherRows.apply(hidden_RD, tuple(shares), cut)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_RD: torch.Tensor, shares: tuple[int, ...], cut: HeadCut) -> torch.Tensor:
        start = sum(shares[: cut.place])
        ctx.local_rows = slice(start, start + shares[cut.place])
        padded = hidden_RD.new_zeros(max(shares), hidden_RD.shape[1])
        padded[: len(hidden_RD)] = hidden_RD
        parts = [torch.empty_like(padded) for _ in shares]
        dist.all_gather(parts, padded, group=cut.group)
        return torch.cat([part[:share] for part, share in zip(parts, shares, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad_RD: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        # the head has summed it over the group already
        return grad_RD[ctx.local_rows].contiguous(), None, None
