"""Sampling ahead of training (`staleness` = k): the batches of up to k steps to come are on their way while one trains.

Step t trains on exactly the prompts that the sampler drew for it, under its own cap, and waits for the last of their
responses: nothing overtakes, so that short responses are not fed first. The rollouts of step t begin once the weights
after t - k steps are up. On servers they run on while the weights change; the embedded engine samples each batch whole,
with the weights of its beginning, and is deterministic. docs/async.md has the promises.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import numpy as np

from siri.config import Config
from siri.errors import InputError
from siri.rollout import Request
from siri.rollout.draft import Draft
from siri.runtime.ranks import Arrays
from siri.runtime.signals import Interrupted
from siri.store.checkpoint import PENDING
from siri.train.auto import AnySchedule
from siri.train.batches import Answer, Batch, from_arrays, merged, read, to_arrays
from siri.train.collect import Collector, deal, derive_seed
from siri.train.grading import Grading
from siri.train.groups import Group, scores_and_lengths
from siri.train.rounds import cut_outliers

T = TypeVar("T")
POLL_S = 0.05
OF_RANKS: dict[str, Callable[[Sequence[float]], float]] = {
    "rollout_servers_used": min,
    "rollout_retries": sum,
    "rollout_in_flight": sum,
    "rollout_idle_time_share": fmean,
}
"""What the figures of the ranks' flights make together."""


class Ahead:
    """The batches in flight. Every rank has one and makes the same calls."""

    def __init__(self, config: Config, collector: Collector, schedule: AnySchedule, *, done: int) -> None:
        """done: steps that are trained."""
        self.config, self.collector, self.schedule = config, collector, schedule
        self.ranks, self.engine = collector.ranks, collector.engine
        self.grading = Grading(collector.policy, collector.grader)
        self.batches: dict[int, Batch] = {}
        """By step, the earliest first."""
        self.next = done
        """The step whose prompts are drawn next."""
        self.version = done
        """After how many steps the engine's weights were made."""
        self._position = collector.sampler.state()
        self.flight: Any = None
        """Of an engine that samples while the trainer trains."""
        self.waited_s = 0.0
        """How long the newest step waited for its responses."""
        self.begun = self.learnt = 0.0
        """When its update began, seconds since 1970, and when the engine had the weights that came of it."""
        self._goes: dict[Draft, tuple[Batch, Answer, str]] = {}

    # --- the loop ---

    def covers(self, step: int) -> bool:
        """Whether the batch of a step comes from here: all do, or what was drawn before `staleness` became 0."""
        return bool(self.config.staleness) or step in self.batches

    @property
    def position(self) -> dict[str, int]:
        """Where the sampler stood once the prompts of the newest trained step were drawn."""
        ahead = self.config.staleness or self.batches
        return self._position if ahead else self.collector.sampler.state()

    @property
    def flies(self) -> bool:
        """Whether responses are sampled all the time."""
        return self.flight is not None

    def begin(self) -> None:
        """Before the engine's first sync: servers sample while the trainer trains."""
        self.flight = self.engine.fly() if self.config.staleness else None
        if self.flight is not None:
            self.grading.begin()
            self.flight.done = self._done
            for batch in self.batches.values():
                self._send(batch)

    def advance(self, version: int) -> None:
        """The engine has proved that it holds the weights after `version` steps."""
        self.version, self.learnt = version, time.time()
        if self.flight is not None:
            self.ranks.together(lambda: self.flight.release(version))
            self._draw(version)

    def collect(self, step: int) -> list[Group]:
        """The groups of a step, all of whose responses are graded; Interrupted when a signal cut that short."""
        began = time.monotonic()
        self._draw(step)
        batch = self.batches[step]
        if self.flight is None:
            for each in self.batches.values():
                self._complete(each)
        else:
            self._all(lambda: self._wait(batch))
        self.waited_s, self.begun = time.monotonic() - began, time.time()
        groups = self._groups(batch)
        means = [float(np.mean(group.sampled_lengths)) for group in groups]
        self.engine.note_lengths([group.prompt_ids for group in groups], means)
        groups = self.collector.gathered(groups, batch.dealt)
        if self.collector.laser:
            self.collector.laser.see(scores_and_lengths(groups))
        return groups

    def trained(self, step: int) -> dict[str, Any]:
        """A step was trained: its batch leaves. Returns figures for its row."""
        if step not in self.batches:
            return {}
        batch = self.batches.pop(step)
        self._position = batch.sampler
        return self._figures(batch) | self.figures()

    def figures(self) -> dict[str, float]:
        """What waits for what, now: for the row of the step that was just trained."""
        waiting = [answer for batch in self.batches.values() for answer in batch.everything()]
        ready = [all(answer.graded for answer in batch.everything()) for batch in self.batches.values()]
        mine = (
            sum(not answer.draft.done for answer in waiting),
            ready,
            {} if self.flight is None else self.flight.figures(),
        )
        unfinished, readies, flights = zip(*self.ranks.gather(mine), strict=True)
        figures = {
            "rollout_wait_s": self.waited_s,
            "batches_in_flight": len(self.batches),
            "batches_ready": sum(all(of_ranks) for of_ranks in zip(*readies, strict=True)),
            "responses_unfinished": sum(unfinished),
        }
        for name in flights[0]:
            values = [each[name] for each in flights if name in each]
            figures[name] = OF_RANKS[name](values)
        return figures

    def close(self) -> None:
        """Grade no more. The engine's own end leaves the servers."""
        self.grading.close()

    # --- checkpoints ---

    def arrays(self) -> Arrays | None:
        """What a checkpoint holds of the batches in flight, on rank 0; None without any. Every rank calls it."""
        batches = list(self.batches.values())
        if not self.ranks.broadcast(len(batches)):
            return None

        def copied() -> list[Batch]:
            with self.grading.changed:  # a grade is kept whole or not at all
                return [batch.copy() for batch in batches]

        copies = copied() if self.flight is None else self.flight.look(copied)
        parts = self.ranks.gather_arrays(to_arrays(copies))
        return merged(parts) if self.ranks.main else None

    def restore(self, source: Path | None, state: Mapping[str, Any]) -> list[str]:
        """Go on with the batches in flight of a checkpoint, if it has any. state: of the checkpoint. Returns lines for
        the user; InputError where they are none."""
        if source is None:
            return []
        path, before = source / PENDING, state.get("staleness", 0)
        sampler, held = self.collector.sampler, dict[str, np.ndarray]()
        vocabulary = self.collector.policy.model.config.vocab_size
        if not self.ranks.on_main(
            lambda: path.exists() and bool(held.update(read(path, vocabulary=vocabulary)) or held)
        ):
            return []
        batches = from_arrays(self.ranks.broadcast_arrays(held if self.ranks.main else None))
        if [batch.step for batch in batches] != list(range(self.next, self.next + len(batches))):
            raise InputError(f"{path}: its rollouts are not those of the steps to come; choose an older checkpoint")
        others = 0
        for batch in batches:
            indices = sampler.take(self.config.prompts_per_step)
            if len(batch.prompts) != len(indices):
                raise InputError(f"{path}: a batch of {len(batch.prompts)} prompts in a run of {len(indices)} a step")
            fresh = dict(zip(batch.prompts, self.collector.drawn(indices), strict=True))
            same = {place: prompt for place, prompt in fresh.items() if prompt.ids == batch.prompts[place].ids}
            batch.prompts |= same  # with all that a reward may want to know of them
            others += len(same) < len(fresh)
            batch.sampler = sampler.state()
            self._deal(batch)
            for answer in batch.everything():
                answer.draft.close(self.collector.policy.stop_ids)
            self.batches[batch.step] = batch
        self.next += len(batches)
        return self._told(batches, before, others)

    def _told(self, batches: Sequence[Batch], before: int, others: int) -> list[str]:
        drafts = [answer.draft for batch in batches for answer in batch.everything()]
        finished, begun = sum(draft.done for draft in drafts), [len(draft.tokens) for draft in drafts if not draft.done]
        counts = self.ranks.gather((len(drafts), finished, sum(map(bool, begun)), sum(begun)))
        total, finished, begun, tokens = (sum(of_ranks) for of_ranks in zip(*counts, strict=True))
        now = self.config.staleness
        notes = [
            f"rollouts of {len(batches)} steps were in flight: {finished} of {total} responses are finished, {begun} "
            f"go on after the {tokens:,} tokens that they have"
        ]
        if before != now:
            notes.append(
                f"staleness was {before} and is {now}: what is in flight is trained as it was drawn, and step "
                f"{self.next} is the first that is sampled as staleness {now} has it"
            )
        if others:
            notes.append(f"the data has changed: the prompts of {others} steps in flight stay those that were drawn")
        return notes

    # --- drawing and sampling ---

    def _draw(self, version: int) -> None:
        """Draw the batches of all steps that may be sampled with the weights after `version` steps."""
        until = min(version + self.config.staleness, self.config.steps - 1)
        while self.next <= until:
            step, config = self.next, self.config
            drawn = self.collector.drawn(self.collector.sampler.take(config.prompts_per_step))
            cap = self.schedule.cap(step)
            answers = [[Answer(Draft(prompt.ids, cap, ())) for _ in range(config.group_size)] for prompt in drawn]
            where = self.collector.sampler.state()
            batch = Batch(step, cap, where, dict(enumerate(drawn)), dict(enumerate(answers)), began=time.time())
            self._deal(batch)
            self.batches[step] = batch
            self.next = step + 1
            if self.flight is not None:
                self.ranks.together(lambda batch=batch: self._send(batch))

    def _deal(self, batch: Batch) -> None:
        """Keep this rank's prompts of a batch that holds all of them, and give each response its seed."""
        prompts = [prompt.ids for prompt in batch.prompts.values()]
        batch.dealt = deal(self.engine, prompts, batch.cap, self.ranks)
        mine = batch.dealt[self.ranks.rank]
        if self.ranks.rank != next(rank for rank, places in enumerate(batch.dealt) if places):
            batch.faults = [0, 0, 0]  # those of a checkpoint are counted once
        batch.prompts = {place: batch.prompts[place] for place in mine}
        batch.answers = {place: batch.answers[place] for place in mine}
        seed = derive_seed(self.config.seed, 0, batch.step, 0)
        for place, answers in batch.answers.items():
            for number, answer in enumerate(answers):
                answer.draft.seed = (seed, place, number)

    def _send(self, batch: Batch) -> None:
        """Hand what is left of a batch to the servers, and to the graders."""
        drafts, order = [], []
        prompts = [prompt.ids for prompt in batch.prompts.values()]
        expected = self.engine.expected(prompts, batch.cap) or [batch.cap] * len(prompts)
        for (place, answers), length in zip(batch.answers.items(), expected, strict=True):
            gold = batch.prompts[place].answer
            for answer in answers:
                if answer.graded:
                    continue
                if answer.draft.done:
                    self.grading.give(batch, answer, gold)
                    continue
                self._goes[answer.draft] = (batch, answer, gold)
                drafts.append(answer.draft)
                order.append((batch.step, len(answer.draft.tokens) - length))
        self.flight.add(drafts, order)

    def _done(self, draft: Draft) -> None:
        """In the flight's thread: a response is done."""
        self.grading.give(*self._goes.pop(draft))

    def _wait(self, batch: Batch) -> None:
        """Until all responses are graded, also those of the other ranks: in a collective a rank that is done with its
        own would not hear of a signal before the last response."""
        everything, seen = batch.everything(), 0
        with self.collector.rollout(len(everything)) as finished:
            try:
                while (graded := sum(bool(answer.graded) for answer in everything)) < len(everything):
                    finished(graded - seen)
                    seen = graded
                    self._look()
            finally:
                all_there = self.ranks.arrive()
        while not all_there():
            self._look()

    def _look(self) -> None:
        """Wait for a moment. Raises what ends the rollout."""
        self.flight.check()
        if self.grading.failure is not None:
            raise self.grading.failure
        self.collector.stop.check(self.ranks)
        with self.grading.changed:
            self.grading.changed.wait(POLL_S)

    def _complete(self, batch: Batch) -> None:
        """Sample what is left of a batch with an engine that answers as a whole, and grade it. All of it or nothing: a
        signal in the middle leaves it as it was."""
        if batch.complete:
            return
        config, everything = self.config, batch.everything()
        left = [answer for answer in everything if not answer.draft.done]
        if any(answer.draft.tokens for answer in everything):
            jobs = [answer.draft.job(()) for answer in left]
            requests = [Request(job.prompt_ids, job.max_tokens) for job in jobs]
        else:  # the responses to a prompt share it
            requests = [Request(prompt.ids, batch.cap, config.group_size) for prompt in batch.prompts.values()]
        seed = derive_seed(config.seed, 0, batch.step, 0, *self.ranks.seed_path)
        how = {"temperature": config.temperature, "seed": seed}
        with self.collector.rollout(sum(request.n for request in requests)) as progress:
            answered = self._all(lambda: self.engine.generate(requests, **how, progress=progress))
        completions = [completion for group in answered for completion in group]
        for answer, completion in zip(left, completions, strict=True):
            answer.draft.fill(completion, self.version)
        ungraded = [
            (answer, batch.prompts[place].answer)
            for place, answers in batch.answers.items()
            for answer in answers
            if not answer.graded
        ]
        answers, gold = [answer for answer, _ in ungraded], [gold for _, gold in ungraded]
        with self.collector.watch("reward"):
            graded = self._all(lambda: self.grading.score(answers, gold))
        self.grading.keep(batch, answers, *graded)
        batch.complete = True

    def _groups(self, batch: Batch) -> list[Group]:
        """This rank's groups of a batch that is graded."""
        collector, sampled, answers = self.collector, batch.sampled(), batch.everything()
        flat = [completion for group in sampled.answers for completion in group]
        # a checkpoint keeps grades and no texts
        said = [answer.text or collector.policy.decode(answer.draft.tokens.tolist()) for answer in answers]
        texts = {id(completion): text for completion, text in zip(flat, said, strict=True)}
        if collector.thinking:
            collector.thinking.see(said, flat)
        if self.config.outlier_cut:
            gold = [prompt.answer for prompt in batch.prompts.values()]
            sampled = self._all(lambda: cut_outliers(self.config, sampled, gold, partial(collector.grade, texts)))
        groups = collector.groups(list(batch.prompts.values()), sampled, texts, batch.step, batch.cap)
        oldest = [tuple(answer.draft.spans[0][0] for answer in answers) for answers in batch.answers.values()]
        return [replace(group, weights=weights) for group, weights in zip(groups, oldest, strict=True)]

    def _figures(self, batch: Batch) -> dict[str, float]:
        """How old the weights were that sampled a batch, and when that was."""
        stale = batch.staleness()
        steps, tokens = stale[:, 0], stale[:, 1]
        mine = (tokens.sum(), (steps * tokens).sum(), steps.max(initial=0), tokens[steps > 0].sum())
        parts = self.ranks.gather((*map(int, mine), batch.began, batch.ended))
        total, weighed, most, old, began, ended = zip(*parts, strict=True)
        return {
            "staleness_mean": sum(weighed) / max(1, sum(total)),
            "staleness_max": max(most),
            "stale_tokens_share": sum(old) / max(1, sum(total)),
            "rollout_began_time": min(began),
            "rollout_ended_time": max(ended),
            "train_began_time": self.begun,
            "train_ended_time": self.learnt,
        }

    def _all(self, function: Callable[[], T]) -> T:
        """What the function returns; Interrupted, and an InputError, are everybody's."""
        stop, ranks = self.collector.stop, self.ranks
        if ranks.size == 1 or self.engine.independent:
            return stop.heed(function, ranks=ranks)

        def work() -> tuple[Any, bool]:
            try:
                return function(), False
            except Interrupted:
                return None, True

        value, cut = ranks.together(work)
        if any(ranks.gather(cut)):
            raise Interrupted
        return value
