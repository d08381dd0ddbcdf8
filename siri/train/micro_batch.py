"""Samples laid end to end: the padding-free batch of one micro-step."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from siri.model.attention import PackedLayout
from siri.train.samples import Sample


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Sequences laid end to end, [N] tokens, and what the loss needs of their R response tokens and S sequences.

    Where the head is cut over several ranks (`split_head`), the loss needs that of the tokens of all of them."""

    input_ids_N: torch.Tensor
    layout: PackedLayout
    rows_R: torch.Tensor
    """Rows of the pack whose hidden state predicts a response token."""
    target_ids_R: torch.Tensor
    rollout_logp_R: torch.Tensor
    mask_R: torch.Tensor
    keep_K: torch.Tensor
    """Rows among the R that may have a gradient, known on the host."""
    keep_lengths_S: torch.Tensor
    """How many of them are each sequence's, on the host: a sequence-level loss is cut between sequences."""
    cu_seqlens: torch.Tensor
    """[S + 1] int32, over the R response tokens."""
    advantages_S: torch.Tensor
    shares: tuple[int, ...]
    """How many of the R are each rank's; one share where the head is whole."""

    @classmethod
    def of(
        cls,
        samples: Sequence[Sample],
        *,
        entropy_bonus: bool,
        device: torch.device,
        backend: str = "sdpa",
        together: Sequence[Sequence[Sample]] = (),
    ) -> "MicroBatch":
        """Lay the samples end to end, for an attention backend. together: the samples of each rank that shares the
        head, these among them."""
        lengths = [len(sample) for sample in samples]
        answers = torch.tensor([len(sample.response_ids) for sample in samples])
        starts = torch.tensor(lengths).cumsum(0) - answers
        offsets_R = torch.arange(int(answers.sum())) - torch.repeat_interleave(answers.cumsum(0) - answers, answers)
        ranks = together or (samples,)
        everybody = [sample for of_rank in ranks for sample in of_rank]
        responses = torch.tensor([len(sample.response_ids) for sample in everybody])
        counted_S = torch.tensor([sample.counted for sample in everybody])
        alive_S = counted_S & torch.tensor([entropy_bonus or sample.advantage != 0 for sample in everybody])
        tensors = {
            "input_ids_N": _joined(
                (ids for sample in samples for ids in (sample.prompt_ids, sample.response_ids)), np.int64
            ),
            "rows_R": torch.repeat_interleave(starts, answers) + offsets_R - 1,
            "target_ids_R": _joined((sample.response_ids for sample in everybody), np.int64),
            "rollout_logp_R": _joined((sample.rollout_logp for sample in everybody), np.float32),
            "mask_R": torch.repeat_interleave(counted_S, responses),
            "keep_K": torch.repeat_interleave(alive_S, responses).nonzero()[:, 0],
            "cu_seqlens": torch.cat([torch.zeros(1, dtype=torch.int64), responses.cumsum(0)]).to(torch.int32),
            "advantages_S": torch.tensor([sample.advantage for sample in everybody], dtype=torch.float32),
        }
        return cls(
            layout=PackedLayout.of(lengths, device, backend),
            keep_lengths_S=responses * alive_S,
            shares=tuple(sum(len(sample.response_ids) for sample in of_rank) for of_rank in ranks),
            **{name: tensor.to(device) for name, tensor in tensors.items()},
        )


class Scores(NamedTuple):
    """What a pass without a gradient says of the R response tokens of a micro-batch."""

    logp_R: torch.Tensor
    offset_R: torch.Tensor | None
    """Whence its kernel measured: the loss's own pass starts there, and unchanged weights have a ratio of exactly 1.
    None with a cut head, whose passes agree without."""


def _joined(lists: Iterable[Any], dtype: type) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([np.asarray(values, dtype) for values in lists]))
