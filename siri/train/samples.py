"""Graded groups of responses become samples to train on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from siri.advantages import batch_normalised, drpo_advantages, group_advantages, kept_responses, zero_variance
from siri.config import Config
from siri.rollout import Numbers, Tokens
from siri.train.groups import Group


@dataclass(frozen=True, slots=True)
class Sample:
    """One response, ready to train on."""

    prompt_ids: list[int]
    response_ids: Tokens
    rollout_logp: Numbers
    advantage: float
    counted: bool = True
    """False keeps the response out of the loss (overlong = mask, or it could not be graded in time)."""

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)

    def as_json(self) -> dict[str, Any]:
        """Its fields as JSON holds them."""
        lists = {name: np.asarray(getattr(self, name)).tolist() for name in ("response_ids", "rollout_logp")}
        return {"prompt_ids": self.prompt_ids, **lists, "advantage": self.advantage, "counted": self.counted}

    def teaches(self, entropy_bonus: bool) -> bool:
        """Whether it may have a gradient."""
        return self.counted and (entropy_bonus or self.advantage != 0)


def advantages_of(config: Config, groups: Sequence[Group]) -> list[list[float]]:
    """The advantage of each response of each group, by the method of the configuration."""
    if config.advantages == "drpo":
        return [_drpo(config, group) for group in groups]
    norm = "none" if config.advantages == "dler" else config.advantage_norm
    rewards = [torch.tensor(group.rewards, dtype=torch.float64) for group in groups]
    taking = [_taking(config, group) for group in groups]
    if len({len(group.rewards) for group in groups}) == 1:
        advantages = list(group_advantages(torch.stack(rewards), norm=norm, graded_PG=torch.stack(taking)))
    else:  # a second round has sampled some prompts more often
        pairs = zip(rewards, taking, strict=True)
        advantages = [
            group_advantages(values_G[None], norm=norm, graded_PG=takes[None])[0] for values_G, takes in pairs
        ]
    if config.advantages == "dler":
        told_apart = [
            takes & (not bool(zero_variance(values_G[takes][None])[0]))
            for values_G, takes in zip(rewards, taking, strict=True)
        ]
        advantages_R, told_apart_R = torch.cat(advantages), torch.cat(told_apart)
        lengths_R = torch.tensor([len(answer.token_ids) for group in groups for answer in group.completions])
        advantages_R[told_apart_R] = batch_normalised(advantages_R[told_apart_R], lengths_R[told_apart_R])
        advantages = advantages_R.split([len(values_G) for values_G in rewards])
    return [values_G.tolist() for values_G in advantages]


def _taking(config: Config, group: Group) -> torch.Tensor:
    """[G] bool: the responses that are compared with one another: the graded ones, and of those what a filter keeps."""
    places = [place for place, graded in enumerate(group.graded) if graded]
    if config.filter_keep:
        lengths = [len(group.completions[place].token_ids) for place in places]
        rewards = [group.rewards[place] for place in places]
        places = [places[i] for i in kept_responses(lengths, rewards, config.filter_keep, config.filter_by)]
    taking_G = torch.zeros(len(group.completions), dtype=torch.bool)
    taking_G[places] = True
    return taking_G


def _drpo(config: Config, group: Group) -> list[float]:
    """DRPO's advantages of a group; what is out of the loss is out of its weights."""
    advantages = [0.0] * len(group.completions)
    places = [place for place, counts in enumerate(counted(config, group)) if counts]
    if places:
        answers = [group.completions[place] for place in places]
        weights_G = drpo_advantages(
            torch.tensor([group.scores[place] >= 1 for place in places]),
            torch.tensor([len(answer.token_ids) for answer in answers]),
            torch.tensor([sum(answer.logp) / max(1, len(answer.logp)) for answer in answers], dtype=torch.float64),
            longest=config.length_schedule().longest,
            brevity=config.drpo_lambda,
            tau=config.drpo_tau,
        )
        # times G of the whole group, by which seq_mean divides
        for place, weight in zip(places, weights_G.tolist(), strict=True):
            advantages[place] = weight * len(group.completions) / len(places)
    return advantages


def counted(config: Config, group: Group) -> list[bool]:
    """Which responses of a group are in the loss."""
    pairs = zip(group.completions, group.graded, strict=True)
    return [graded and not (answer.truncated and config.overlong == "mask") for answer, graded in pairs]


def make_samples(config: Config, groups: Sequence[Group]) -> list[list[Sample]]:
    """Mini-batches of samples with their advantages; whole groups, in the order in which they were sampled. They are
    as few as `mini_batch_prompts` allows, and of like size: the sizes differ by one prompt at most."""
    trained = [group for group in groups if group.trained]
    if not trained:
        return []
    every = advantages_of(config, trained)
    batches = []
    count = math.ceil(len(trained) / config.mini_batch_prompts)
    least, larger = divmod(len(trained), count)
    ends = [(number + 1) * least + min(number + 1, larger) for number in range(count)]
    for start, end in pairwise([0, *ends]):
        mini_batch = slice(start, end)
        batches.append(
            [
                Sample(
                    group.prompt_ids,
                    completion.token_ids,
                    completion.logp,
                    advantage,
                    counted=counts,
                )
                for group, advantages in zip(trained[mini_batch], every[mini_batch], strict=True)
                for completion, advantage, counts in zip(
                    group.completions, advantages, counted(config, group), strict=True
                )
            ]
        )
    return batches


def loss_denominator(samples: Sequence[Sample], aggregation: str) -> float:
    """Divisor of an optimizer step: its counted response tokens (token_mean), or its sequences."""
    if aggregation == "token_mean":
        return max(1, sum(len(sample.response_ids) for sample in samples if sample.counted))
    return len(samples)
