"""One rollout batch: prompts to graded groups of responses, and groups to training samples."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from siri.config import Config
from siri.data.prompts import PromptSet
from siri.data.sampler import Sampler
from siri.model.policy import Policy
from siri.rewards.pool import Grader, RewardBatch
from siri.rewards.shaping import shape_rewards
from siri.rollout import Completion, Progress, Request, Rollout
from siri.rollout.order import spread
from siri.runtime.ranks import ALONE, Ranks
from siri.runtime.signals import Stop
from siri.runtime.stopwatch import Stopwatch
from siri.train.as_they_end import AsTheyEnd
from siri.train.dynamics import Dynamics
from siri.train.groups import Group, from_arrays, scores_and_lengths, to_arrays
from siri.train.laser import LaserTargets
from siri.train.rounds import Sampled, cut_outliers, hard_requests, joined
from siri.train.thinking import ThinkingCheck
from siri.train.view import Stage, unseen


def derive_seed(seed: int, *path: int) -> int:
    """An independent seed for each use (step, round, ...), so that no generator's state has to be saved."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True, slots=True)
class Drawn:
    """A prompt of a rollout batch."""

    ids: list[int]
    answer: str
    """The gold answer."""
    asked: int = 0
    """Tokens that it asks for, where prompts do; 0 = none."""


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
    dynamics: Dynamics | None = None
    """Counts this rank's words."""
    laser: LaserTargets | None = None
    """Laser-D's targets, which see every step."""
    stage: Stage = unseen
    """Shows how far this rank's share is."""

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
            again = derive_seed(config.seed, 2, step, round_number, *self.ranks.seed_path)
            groups += self._round(self.sampler.take(wanted), step, cap, (seed, again))
        if self.laser:
            self.laser.see(scores_and_lengths(groups))
        return groups

    def rollout(self, responses: int) -> AbstractContextManager[Progress]:
        """Shows the rollout of this rank's responses; what it gives is told how many more are finished."""
        return self.stage("rollout" + " of rank 0" * (self.ranks.size > 1), responses)

    def method_metrics(self, step: int, groups: Sequence[Group]) -> dict[str, Any]:
        """What the methods of this run did to the groups of a step; empty for plain GRPO."""
        config, metrics = self.config, dict[str, Any]()
        if config.outlier_cut:
            pairs = [pair for group in groups for pair in zip(group.uncut, group.completions, strict=False)]
            metrics["responses_cut"] = sum(tokens > len(completion.token_ids) for tokens, completion in pairs)
        if config.hard_responses:
            metrics["responses_again"] = sum(len(group.completions) - config.group_size for group in groups)
        if config.penalty_on:
            metrics["penalised"] = int(config.penalised(step))
        return metrics | (self.laser.metrics() if self.laser else {})

    def _round(self, indices: Sequence[int], step: int, cap: int, seeds: tuple[int, int]) -> list[Group]:
        """The groups of these prompts, in this order. seeds: of the first round, and of the second one for hard
        prompts."""
        config, ranks = self.config, self.ranks
        drawn = self.drawn(indices)
        dealt = deal(self.engine, [prompt.ids for prompt in drawn], cap, ranks)
        mine = [drawn[place] for place in dealt[ranks.rank]]
        requests = [Request(prompt.ids, cap, config.group_size) for prompt in mine]
        gold = [prompt.answer for prompt in mine]
        texts: dict[int, str] = {}

        def sample() -> Sampled:
            texts.clear()
            sampled = self._sampled(requests, gold, seeds[0], texts)
            if config.hard_responses:
                more = hard_requests(config, requests, sampled)
                sampled = joined(sampled, self._sampled(more, gold, seeds[1], texts))
            if config.outlier_cut:
                sampled = cut_outliers(config, sampled, gold, partial(self.grade, texts))
            return sampled

        at_once = ranks.size == 1 or self.engine.independent
        sampled = self.stop.heed(sample, ranks=ranks, at_once=at_once)
        return self.gathered(self.groups(mine, sampled, texts, step, cap), dealt)

    def drawn(self, indices: Sequence[int]) -> list[Drawn]:
        """The prompts of these indices."""
        prompts = self.prompts
        asked = prompts.asked or [0] * len(prompts.ids)
        return [Drawn(prompts.ids[index], prompts.answers[index], asked[index]) for index in indices]

    def groups(
        self, mine: Sequence[Drawn], sampled: Sampled, texts: dict[int, str], step: int, cap: int
    ) -> list[Group]:
        """The groups of this rank's prompts. texts: see `grade`."""
        config = self.config
        targets = [self._targets(prompt) for prompt in mine]
        groups = _groups(config, [prompt.ids for prompt in mine], sampled, cap, config.penalised(step), targets)
        if config.keep_responses:
            groups = [
                replace(
                    group,
                    texts=tuple(texts[id(completion)] for completion in group.completions),
                    answer=prompt.answer,
                )
                for group, prompt in zip(groups, mine, strict=True)
            ]
        if self.dynamics is not None:
            groups = [replace(group, wording=self.dynamics.of(group.completions)) for group in groups]
        return groups

    def gathered(self, groups: Sequence[Group], dealt: Sequence[Sequence[int]]) -> list[Group]:
        """The groups of all ranks, as the sampler drew them. dealt: the places of each rank's prompts."""
        if self.ranks.size == 1:
            return list(groups)
        everybody = [group for arrays in self.ranks.gather_arrays(to_arrays(groups)) for group in from_arrays(arrays)]
        places = [place for share in dealt for place in share]
        return [everybody[places.index(place)] for place in range(len(everybody))]

    def _sampled(self, requests: Sequence[Request], gold: Sequence[str], seed: int, texts: dict[int, str]) -> Sampled:
        """Sample and grade; requests for no response get none. texts: see `grade`."""
        asking = [(request, answer) for request, answer in zip(requests, gold, strict=True) if request.n]
        with AsTheyEnd(self.policy, self.grader, [answer for _, answer in asking]) as ended:
            answered: list[list[Completion]] = []
            if asking or not self.engine.independent:  # the other ranks may ask
                requested, temperature = [request for request, _ in asking], self.config.temperature
                with self.rollout(sum(request.n for request in requested)) as progress:
                    how = {"seed": seed, "progress": progress, "done": ended}
                    answered = self.engine.generate(requested, temperature=temperature, **how)
            with self.watch("reward"), self.stage("grading"):
                said, graded = ended.finish(answered)
        flat = [completion for group in answered for completion in group]
        texts.update((id(completion), text) for completion, text in zip(flat, said, strict=True))
        if self.thinking:
            self.thinking.see(said, flat)
        come = iter(answered)
        return Sampled([next(come) if request.n else [] for request in requests], graded)

    def grade(self, texts: dict[int, str], completions: Sequence[Completion], gold: Sequence[str]) -> RewardBatch:
        """Decode and grade. texts: what each completion says, by its identity, is left there."""
        said = [self.policy.decode(completion.token_ids) for completion in completions]
        texts.update((id(completion), text) for completion, text in zip(completions, said, strict=True))
        with self.watch("reward"), self.stage("grading"):
            return self.grader.score(said, gold)

    def _targets(self, prompt: Drawn) -> Sequence[float]:
        """The lengths that the reward of a prompt compares with (`shape_rewards`)."""
        if prompt.asked:
            return (prompt.asked,)
        return self.laser.targets if self.laser else (self.config.laser_target,)


def deal(engine: Rollout, prompts: Sequence[Sequence[int]], cap: int, ranks: Ranks) -> list[list[int]]:
    """Which prompts, by their place, each rank samples: consecutive ones, unless the engine has expectations of their
    length that tell the ranks' work apart."""
    if ranks.size > 1 and (expected := engine.expected(prompts, cap)) is not None:
        return spread(expected, ranks.size)
    return [list(range(len(prompts)))[replace(ranks, rank=rank).share(len(prompts))] for rank in range(ranks.size)]


def _groups(
    config: Config,
    prompts: Sequence[list[int]],
    sampled: Sampled,
    cap: int,
    penalised: bool,
    targets: Sequence[Sequence[float]],
) -> list[Group]:
    groups, graded, starts = [], sampled.graded, sampled.starts()
    for number, (prompt_ids, completions) in enumerate(zip(prompts, sampled.answers, strict=True)):
        start = starts[number]
        lengths = [len(completion.token_ids) for completion in completions]
        truncated = [completion.truncated for completion in completions]
        timed_out = tuple(place for place in range(len(completions)) if start + place in graded.timed_out)
        # what was not graded must not lengthen or lower what the others are compared with
        known = [place for place in range(len(completions)) if place not in timed_out]
        scores, rewards = [0.0] * len(completions), [0.0] * len(completions)
        if known:
            shaped = shape_rewards(
                config,
                [graded.rewards[start + place] for place in known],
                [lengths[place] for place in known],
                [truncated[place] for place in known],
                cap,
                penalised=penalised,
                targets=targets[number],
            )
            for place, score, reward in zip(known, *shaped, strict=True):
                scores[place], rewards[place] = score, reward
        trained = not config.dynamic_sampling or len({scores[place] for place in known}) > 1
        faults = (graded.timeouts, graded.errors, graded.undecided) if number == 0 else (0, 0, 0)
        uncut = sampled.uncut[number] if sampled.uncut and list(sampled.uncut[number]) != lengths else ()
        which = {"timed_out": timed_out, "uncut": uncut}
        groups.append(Group(prompt_ids, completions, scores, rewards, *faults, trained, **which))
    return groups
