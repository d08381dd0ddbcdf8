"""One rollout batch: prompts to graded groups of responses, and groups to training samples."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from siri.advantages import zero_variance
from siri.config import Config
from siri.data.prompts import PromptSet
from siri.data.sampler import Sampler
from siri.model.policy import Policy
from siri.rewards.pool import Grader, RewardBatch
from siri.rewards.shaping import shape_rewards
from siri.rollout import Completion, Request, Rollout
from siri.rollout.order import spread
from siri.runtime.ranks import ALONE, Arrays, Ranks
from siri.runtime.signals import Stop
from siri.runtime.stopwatch import Stopwatch
from siri.train.thinking import ThinkingCheck


@dataclass(frozen=True, slots=True)
class Group:
    """The G responses to one prompt."""

    prompt_ids: list[int]
    completions: list[Completion]
    scores: list[float]
    """What the reward function said of each response, and the cap where it cut one (`siri.rewards.shaping`)."""
    rewards: list[float]
    """Scores after penalties and rewards for length: what the advantages are made of."""
    timeouts: int = 0
    errors: int = 0
    undecided: int = 0
    """Answers whose grading timed out, failed, or came to no decision within bounds; all score 0."""
    trained: bool = True
    """False for a group that dynamic sampling dropped."""
    timed_out: tuple[int, ...] = ()
    """Which responses could not be graded in time, by their place: they count for nothing in the update."""

    @property
    def graded(self) -> list[bool]:
        """For each response, whether its scores say something of it."""
        return [place not in self.timed_out for place in range(len(self.completions))]

    def graded_scores(self) -> list[float]:
        return [score for score, graded in zip(self.scores, self.graded, strict=True) if graded]


def derive_seed(seed: int, *path: int) -> int:
    """An independent seed for each use (step, round, ...), so that no generator's state has to be saved."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True)
class Collector:
    """Samples and grades the groups of a step. Every rank has one and makes the same calls."""

    config: Config
    policy: Policy
    engine: Rollout
    grader: Grader
    prompts: PromptSet
    sampler: Sampler
    watch: Stopwatch
    ranks: Ranks = ALONE
    stop: Stop = field(default_factory=Stop)
    thinking: ThinkingCheck | None = None
    """Sees this rank's responses."""

    def collect(self, step: int, cap: int) -> list[Group]:
        """`prompts_per_step` groups under the cap of the step: each rank samples its share, all get all.

        With dynamic sampling, groups whose responses are all right or all wrong (by score, before any length penalty)
        are replaced by new prompts until enough are there or `dynamic_sampling_rounds` is reached; the dropped ones are
        returned too, marked as not trained. Raises Interrupted when `stop` asks for it.
        """
        config, groups = self.config, []
        for round_number in range(config.dynamic_sampling_rounds if config.dynamic_sampling else 1):
            wanted = config.prompts_per_step - sum(group.trained for group in groups)
            if not wanted:
                break
            seed = derive_seed(config.seed, 0, step, round_number, *self.ranks.seed_path)
            groups += self._round(self.sampler.take(wanted), cap, seed)
        return groups

    def _round(self, indices: Sequence[int], cap: int, seed: int) -> list[Group]:
        """The groups of these prompts, in this order."""
        config, prompts, ranks = self.config, self.prompts, self.ranks
        dealt = deal(self.engine, [prompts.ids[index] for index in indices], cap, ranks)
        mine = [indices[place] for place in dealt[ranks.rank]]
        requests = [Request(prompts.ids[index], cap, config.group_size) for index in mine]
        gold = [prompts.answers[index] for index in mine for _ in range(config.group_size)]

        def sample() -> tuple[list[list[Completion]], RewardBatch]:
            answered = self.engine.generate(requests, temperature=config.temperature, seed=seed)
            flat = [answer for answers in answered for answer in answers]
            texts = [self.policy.decode(answer.token_ids) for answer in flat]
            if self.thinking:
                self.thinking.see(texts, flat)
            with self.watch("reward"):
                return answered, self.grader.score(texts, gold)

        at_once = ranks.size == 1 or self.engine.independent
        answered, graded = self.stop.heed(sample, ranks=ranks, at_once=at_once)
        groups = _groups(config, requests, answered, graded, cap)
        if ranks.size > 1:
            everybody = [group for arrays in ranks.gather_arrays(to_arrays(groups)) for group in from_arrays(arrays)]
            places = [place for share in dealt for place in share]
            groups = [everybody[places.index(place)] for place in range(len(everybody))]  # as the sampler drew them
        return groups


def deal(engine: Rollout, prompts: Sequence[Sequence[int]], cap: int, ranks: Ranks) -> list[list[int]]:
    """Which prompts, by their place, each rank samples: consecutive ones, unless the engine has expectations of their
    length that tell the ranks' work apart."""
    if ranks.size > 1 and (expected := engine.expected(prompts, cap)) is not None:
        return spread(expected, ranks.size)
    return [list(range(len(prompts)))[replace(ranks, rank=rank).share(len(prompts))] for rank in range(ranks.size)]


def _groups(
    config: Config, requests: Sequence[Request], answered: Sequence[list[Completion]], graded: RewardBatch, cap: int
) -> list[Group]:
    groups = []
    for number, (request, completions) in enumerate(zip(requests, answered, strict=True)):
        of_prompt = slice(number * config.group_size, (number + 1) * config.group_size)
        lengths = [len(completion.token_ids) for completion in completions]
        truncated = [completion.truncated for completion in completions]
        timed_out = tuple(place for place in range(len(completions)) if of_prompt.start + place in graded.timed_out)
        # what was not graded must not lengthen or lower what the others are compared with
        known = [place for place in range(len(completions)) if place not in timed_out]
        scores, rewards = [0.0] * len(completions), [0.0] * len(completions)
        if known:
            shaped = shape_rewards(
                config,
                [graded.rewards[of_prompt.start + place] for place in known],
                [lengths[place] for place in known],
                [truncated[place] for place in known],
                cap,
            )
            for place, score, reward in zip(known, *shaped, strict=True):
                scores[place], rewards[place] = score, reward
        trained = not config.dynamic_sampling or len({scores[place] for place in known}) > 1
        faults = (graded.timeouts, graded.errors, graded.undecided) if number == 0 else (0, 0, 0)
        groups.append(Group(request.prompt_ids, completions, scores, rewards, *faults, trained, timed_out))
    return groups


def to_arrays(groups: Sequence[Group]) -> Arrays:
    """Groups as flat arrays, to travel between ranks: ids and lengths int32, log-probs fp32, scores fp64."""
    answers = [completion for group in groups for completion in group.completions]

    def flat(lists: Iterable[Sequence[Any]], dtype: type) -> np.ndarray:
        return np.fromiter((item for items in lists for item in items), dtype)

    return {
        "prompt_lengths": np.array([len(group.prompt_ids) for group in groups], np.int32),
        "prompt_ids": flat((group.prompt_ids for group in groups), np.int32),
        "responses": np.array([len(group.completions) for group in groups], np.int32),
        "response_lengths": np.array([len(answer.token_ids) for answer in answers], np.int32),
        "response_ids": flat((answer.token_ids for answer in answers), np.int32),
        "logp": flat((answer.logp for answer in answers), np.float32),
        "truncated": np.array([answer.truncated for answer in answers], bool),
        "scores": flat((group.scores for group in groups), np.float64),
        "rewards": flat((group.rewards for group in groups), np.float64),
        "faults": np.array([(group.timeouts, group.errors, group.undecided) for group in groups], np.int32).reshape(
            -1, 3
        ),
        "trained": np.array([group.trained for group in groups], bool),
        "graded": flat((group.graded for group in groups), bool),
    }


def from_arrays(arrays: Arrays) -> list[Group]:
    """The groups that `to_arrays` was given."""

    def cut(name: str, lengths: np.ndarray) -> list[list[Any]]:
        return [piece.tolist() for piece in np.split(arrays[name], np.cumsum(lengths)[:-1])] if len(lengths) else []

    lengths, responses = arrays["response_lengths"], arrays["responses"]
    columns = zip(cut("response_ids", lengths), cut("logp", lengths), arrays["truncated"].tolist(), strict=True)
    answers = iter([Completion(*fields) for fields in columns])
    return [
        Group(
            prompt_ids,
            list(islice(answers, len(scores))),
            scores,
            rewards,
            timeouts,
            errors,
            undecided,
            trained,
            tuple(place for place, known in enumerate(graded) if not known),
        )
        for prompt_ids, scores, rewards, (timeouts, errors, undecided), trained, graded in zip(
            cut("prompt_ids", arrays["prompt_lengths"]),
            cut("scores", responses),
            cut("rewards", responses),
            arrays["faults"].tolist(),
            arrays["trained"].tolist(),
            cut("graded", responses),
            strict=True,
        )
    ]


def rollout_metrics(groups: Sequence[Group]) -> dict[str, Any]:
    """What a rollout batch looked like; every sampled response counts, dropped groups included."""
    completions = [completion for group in groups for completion in group.completions]
    right = [score >= 1 for group in groups for score in group.scores]
    lengths = np.array([len(completion.token_ids) for completion in completions])
    scores_PG = torch.tensor([group.scores for group in groups])
    return {
        "reward_mean": float(np.mean([reward for group in groups for reward in group.rewards])),
        "accuracy": float(np.mean(right)),
        "response_tokens": int(lengths.sum()),
        "response_tokens_mean": float(lengths.mean()),
        "response_tokens_max": int(lengths.max()),
        "tokens_right_mean": float(lengths[right].mean()) if any(right) else math.nan,
        "tokens_wrong_mean": float(lengths[np.logical_not(right)].mean()) if not all(right) else math.nan,
        "truncation_rate": float(np.mean([completion.truncated for completion in completions])),
        "zero_variance_groups": float(zero_variance(scores_PG).double().mean()),
        "responses": len(completions),
        "groups_dropped": sum(not group.trained for group in groups),
        "reward_timeouts": sum(group.timeouts for group in groups),
        "reward_errors": sum(group.errors for group in groups),
        "reward_undecided": sum(group.undecided for group in groups),
    }
