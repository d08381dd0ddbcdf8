"""Graded groups of responses become samples to train on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from siri.advantages import group_advantages
from siri.config import Config
from siri.train.collect import Group


@dataclass(frozen=True, slots=True)
class Sample:
    """One response, ready to train on."""

    prompt_ids: list[int]
    response_ids: list[int]
    rollout_logp: list[float]
    advantage: float
    counted: bool = True
    """False keeps the response out of the loss (overlong = mask, or it could not be graded in time)."""

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)

    def teaches(self, entropy_bonus: bool) -> bool:
        """Whether it may have a gradient."""
        return self.counted and (entropy_bonus or self.advantage != 0)


def make_samples(config: Config, groups: Sequence[Group]) -> list[list[Sample]]:
    """Mini-batches of samples with their advantages; whole groups, in the order in which they were sampled. They are
    as few as `mini_batch_prompts` allows, and of like size: the sizes differ by one prompt at most."""
    trained = [group for group in groups if group.trained]
    if not trained:
        return []
    rewards_PG = torch.tensor([group.rewards for group in trained], dtype=torch.float64)
    graded_PG = torch.tensor([group.graded for group in trained])
    advantages_PG = group_advantages(rewards_PG, norm=config.advantage_norm, graded_PG=graded_PG)
    batches = []
    count = math.ceil(len(trained) / config.mini_batch_prompts)
    least, larger = divmod(len(trained), count)
    ends = [(number + 1) * least + min(number + 1, larger) for number in range(count)]
    for start, end in pairwise([0, *ends]):
        own = slice(start, end)
        batches.append(
            [
                Sample(
                    group.prompt_ids,
                    completion.token_ids,
                    completion.logp,
                    advantage,
                    counted=graded and not (completion.truncated and config.overlong == "mask"),
                )
                for group, advantages in zip(trained[own], advantages_PG[own].tolist(), strict=True)
                for completion, advantage, graded in zip(group.completions, advantages, group.graded, strict=True)
            ]
        )
    return batches
