"""Graded groups of responses become samples to train on."""

from collections.abc import Sequence
from dataclasses import dataclass

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
    """False keeps the response out of the loss (overlong = mask)."""

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


def make_samples(config: Config, groups: Sequence[Group]) -> list[list[Sample]]:
    """Mini-batches of samples with their advantages; whole groups, in the order in which they were sampled."""
    trained = [group for group in groups if group.trained]
    if not trained:
        return []
    rewards_PG = torch.tensor([group.rewards for group in trained], dtype=torch.float64)
    advantages_PG = group_advantages(rewards_PG, norm=config.advantage_norm)
    batches = []
    for start in range(0, len(trained), config.mini_batch_prompts):
        own = slice(start, start + config.mini_batch_prompts)
        batches.append(
            [
                Sample(
                    group.prompt_ids,
                    completion.token_ids,
                    completion.logp,
                    advantage,
                    counted=not (completion.truncated and config.overlong == "mask"),
                )
                for group, advantages in zip(trained[own], advantages_PG[own].tolist(), strict=True)
                for completion, advantage in zip(group.completions, advantages, strict=True)
            ]
        )
    return batches
