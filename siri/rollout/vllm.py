"""Rollouts from vLLM: what both modes share. Responses are started longest first, as many at once as the cache holds
under the step's cap; after every sync each engine proves that it samples from the trainer's weights.

vLLM's own interface is not here: `siri.rollout.colocated` has that of the mode in the training processes,
`siri.rollout.served` (under `siri.rollout.fleet`) that of servers.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch

from siri.errors import InputError, first_line
from siri.model.adapters import MergeCheck, merged_parameters
from siri.model.policy import Policy
from siri.rollout import Completion, Done, Progress, Request
from siri.rollout.order import ExpectedLengths, longest_first, sequences_in_flight
from siri.rollout.proof import ANSWER_TOKENS, TOLERANCE, Answer, Gap, fixed_prompts, gaps
from siri.runtime.ranks import ALONE, Ranks
from siri.runtime.signals import Interrupted, Stop

T = TypeVar("T")

SUPPORTED = ">=0.32,<0.34"
"""Versions of vLLM, the same as in the [vllm] extra. Tested: 0.32 (on a CPU); 0.33's interface was read, not run."""
MOST_SEQUENCES = 1024
"""No engine samples more at once: the gain of a larger batch is gone long before."""


@dataclass(frozen=True, slots=True)
class Job:
    """One response to sample."""

    prompt_ids: list[int]
    max_tokens: int
    seed: int
    stop_ids: tuple[int, ...]
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of jobs."""

    completions: list[Completion]
    """In the order of the jobs."""
    busy_s: float
    """Sum over the responses of the seconds for which each was being sampled."""
    wall_s: float


@dataclass(frozen=True)
class VllmOptions:
    """What the engines need of a Config, or of `siri eval`'s options."""

    model: str
    """Folder or hub name; the engine takes the architecture from it, weights come from the trainer."""
    tied: bool
    """Whether the trainer's head is its embedding, whatever the model's config.json says."""
    context: int
    """Longest prompt and response together, tokens."""
    sequences: int
    """Most responses at once in one engine."""
    memory: float
    servers: tuple[str, ...]
    insecure: bool
    """Whether servers on other nodes may let in whoever reaches them."""
    sync: str
    sync_dir: Path | None
    timeout_s: float
    sync_timeout_s: float


class Backend(Protocol):
    """One way of having vLLM: in this process, or behind URLs."""

    notes: list[str]
    """Lines for the user."""
    dtype: torch.dtype
    """Of the weights in the engine, and so of those sent to it."""
    cache_tokens: int
    """Keys and values that this rank's share of the engines holds."""
    most: int
    """Most responses that the engines run at once for this rank."""

    def ask(
        self,
        jobs: Sequence[Job],
        *,
        temperature: float,
        limit: int,
        progress: Progress | None = None,
        check: Callable[[], None] = lambda: None,
        done: Done | None = None,
    ) -> Ran:
        """check: called often; what it raises ends the work, of which nothing goes on in the engine. done: by the place
        of the job."""
        ...

    def probe(self, jobs: Sequence[Job], temperature: float) -> list[tuple[str, list[Completion]]]: ...
    def offer(self, weights: Iterator[tuple[str, torch.Tensor]], version: str) -> None:
        """What of a sync can be done while responses are still sampled; it may go through the weights."""

    def load(self, weights: Iterator[tuple[str, torch.Tensor]], version: str) -> None: ...
    def fly(self, temperature: float, stop_ids: tuple[int, ...], places: Callable[[int, int], int]) -> Any:
        """A `siri.rollout.flight.Flight`, from engines that can sample while the trainer trains; else None."""

    def pause(self) -> None:
        """End what is in flight, for all ranks."""

    def resume(self) -> None:
        """Go on after a pause."""

    def sleep(self) -> None: ...
    def wake(self) -> None: ...
    def metrics(self) -> dict[str, float]: ...
    def close(self) -> None: ...


class VllmRollout:
    """Implements `siri.rollout.Rollout`. On several ranks every method is called on all of them; what fails on one is
    everybody's InputError."""

    independent = False

    def __init__(
        self,
        policy: Policy,
        backend: Backend,
        *,
        temperature: float,
        lengths: ExpectedLengths,
        tolerance: float | str = "auto",
        ranks: Ranks = ALONE,
        stop: Stop | None = None,
    ) -> None:
        """temperature: of the fingerprint's sampled half; the run's, so that what is proved is what is trained. stop:
        ends a rollout on all ranks within seconds of a signal on any."""
        self.policy, self.backend, self.ranks, self.lengths = policy, backend, ranks, lengths
        self.temperature, self.stop = temperature, Stop() if stop is None else stop
        self.tolerance = TOLERANCE[backend.dtype] if tolerance == "auto" else float(tolerance)
        self.stop_ids = tuple(sorted(policy.stop_ids))
        self.notes = backend.notes
        self.syncs = 0
        self.run = ranks.broadcast(secrets.token_hex(4))  # servers may hold what another run has sent
        self.last: dict[str, float] = {}
        self.flight: Any = None
        """The `siri.rollout.flight.Flight` of responses that are sampled while the trainer trains, if there is one."""

    def fly(self) -> Any:
        if self.flight is None:
            self.flight = self.backend.fly(self.temperature, self.stop_ids, self.places)
        return self.flight

    def note_lengths(self, prompts: Sequence[Sequence[int]], means: Sequence[float]) -> None:
        for row in self.ranks.gather(self.lengths.row(prompts, means)):
            self.lengths.record(row, write=self.ranks.main)

    def places(self, prompt_tokens: int, cap: int) -> int:
        """Responses at once, for prompts of up to so many tokens under a cap."""
        planned = self.lengths.mean(cap) if self.lengths.means else cap
        return sequences_in_flight(self.backend.cache_tokens, prompt_tokens, planned, self.backend.most)

    def generate(
        self,
        requests: Sequence[Request],
        *,
        temperature: float,
        seed: int,
        progress: Progress | None = None,
        done: Done | None = None,
    ) -> list[list[Completion]]:
        """See `Rollout.generate`. Each response has its own seed, so order and company do not change what it is drawn
        from, though a batch of another shape may round otherwise."""
        jobs, owners = [], []
        for number, request in enumerate(requests):
            for sample in range(request.n):
                response_seed = int(np.random.SeedSequence([seed, number, sample]).generate_state(1, np.uint32)[0])
                jobs.append(Job(request.prompt_ids, request.max_tokens, response_seed, self.stop_ids, request.top_p))
                owners.append(number)
        expected = [self.lengths(request.prompt_ids, request.max_tokens) for request in requests]
        order = longest_first([expected[owner] for owner in owners])
        limit = self._limit(jobs)
        told = None if done is None else lambda place, completion: done(owners[order[place]], completion)
        options = {"temperature": temperature, "limit": limit, "progress": progress, "done": told}
        ran = self._asked([jobs[i] for i in order], **options)
        answers: list[list[Completion]] = [[] for _ in requests]
        placed = dict(zip(order, ran.completions, strict=True))
        self._together(lambda: [self._check(jobs[index], completion) for index, completion in placed.items()])
        for index, owner in enumerate(owners):
            answers[owner].append(placed[index])
        self._record(requests, answers, ran, min(limit, len(jobs)))
        return answers

    def _asked(self, jobs: Sequence[Job], **options: Any) -> Ran:
        """The jobs' responses; Interrupted on all ranks where any of them was told to stop."""

        def work() -> Ran | None:
            try:
                return self.backend.ask(jobs, **options, check=lambda: self.stop.check(self.ranks))
            except Interrupted:
                return None

        ran = self._together(work)
        if any(self.ranks.gather(ran is None)):
            raise Interrupted
        return cast(Ran, ran)

    def sync(self) -> None:
        """Send the trainer's weights, clear the engines' caches, and let every engine prove that it has taken them."""
        self.syncs += 1
        name = f"sync-{self.syncs}-{self.run}"
        self._send(name)
        greedy = [Job(ids, ANSWER_TOKENS, 0, ()) for ids in fixed_prompts(self.policy)]
        sampled = [Job(job.prompt_ids, ANSWER_TOKENS, 1 + number, ()) for number, job in enumerate(greedy)]
        rounds = ((greedy, 0.0), (sampled, self.temperature))
        probes = self._together(
            lambda: [(jobs, t, who, answers) for jobs, t in rounds for who, answers in self.backend.probe(jobs, t)]
        )
        by_engine: dict[str, list[Answer]] = {}
        for part in self.ranks.gather(probes):
            for jobs, temperature, who, answers in part:
                pairs = zip(jobs, answers, strict=True)
                by_engine.setdefault(who, []).extend(
                    (job.prompt_ids, completion, temperature) for job, completion in pairs
                )
        seen_by = gaps(self.policy, by_engine)  # the same on every rank
        for who, seen in seen_by.items():
            if not seen.within(self.tolerance):
                raise InputError(
                    f"after weight {name} {who} does not sample from the trainer's weights: log-probs differ by "
                    f"{seen.mean:.2g} in the mean and {seen.max:.2g} at most (allowed: a mean of {self.tolerance:g}); "
                    "its weights are stale or damaged, or it computes another model"
                )
        self.last |= {
            "fingerprint_gap_mean": _largest(seen_by, "mean"),
            "fingerprint_gap_max": _largest(seen_by, "max"),
        }

    def expected(self, prompts: Sequence[Sequence[int]], cap: int) -> list[float] | None:
        return [self.lengths(prompt, cap) for prompt in prompts]

    def sleep(self) -> None:
        self.backend.sleep()

    def wake(self) -> None:
        self.backend.wake()

    def metrics(self) -> dict[str, float]:
        return self.last | self.backend.metrics()

    def close(self) -> None:
        if self.flight is not None:
            self.flight.close()
        self.backend.close()

    def _limit(self, jobs: Sequence[Job]) -> int:
        """Responses at once: planned from the cap while lengths are unknown, and from their mean when they are known;
        should the cache run out all the same, vLLM puts a response back and computes it again."""
        if not jobs:
            return 1
        return self.places(max(len(job.prompt_ids) for job in jobs), max(job.max_tokens for job in jobs))

    def _send(self, name: str) -> None:
        """Hand the weights over. What is in flight is broken off meanwhile, and stays so until it is released."""
        stream = weights(self.policy, self.backend.dtype)
        self._together(lambda: self._through(stream, name, self.backend.offer))
        if self.flight is None:
            self._together(lambda: self._through(stream, name, self.backend.load))
            return
        self._together(self.flight.hold)  # everywhere, before the servers are paused for all
        try:
            self._together(self.backend.pause)
            self._together(self.flight.settle)
            self._together(lambda: self._through(stream, name, self.backend.load))
        except InputError as error:
            if not error.stuck:
                with suppress(InputError):  # a server that cannot; the others go on
                    self._together(self.backend.resume)
            raise
        self._together(self.backend.resume)

    def _through(
        self,
        stream: Iterator[tuple[str, torch.Tensor]],
        name: str,
        take: Callable[[Iterator[tuple[str, torch.Tensor]], str], None],
    ) -> None:
        try:
            take(stream, name)
        except Exception as error:
            with suppress(ValueError):  # a thread that cannot be stopped is going through them still
                for _ in stream:  # the other ranks are gathering tensors and need this one
                    pass
            if isinstance(error, InputError):
                raise
            raise InputError(f"weight {name} failed: {first_line(error)}") from error

    def _together(self, function: Callable[[], T]) -> T:
        """What the function returns on this rank; an InputError on any rank is raised on all."""
        return self.ranks.together(function)

    def _check(self, job: Job, completion: Completion) -> None:
        """A response that the loss could not use is an error here, not a bias later."""
        tokens, ended = completion.token_ids, bool(completion.token_ids) and completion.token_ids[-1] in job.stop_ids
        if (
            not tokens
            or len(tokens) != len(completion.logp)
            or len(tokens) > job.max_tokens
            or completion.truncated == ended
            or (completion.truncated and len(tokens) < job.max_tokens)
            or any(token in job.stop_ids for token in tokens[:-1])
            or not all(-1e30 < logp <= 1e-4 for logp in completion.logp)
        ):
            raise InputError(
                f"vLLM gave a response that cannot be: {len(tokens)} tokens under a cap of {job.max_tokens}, "
                f"{len(completion.logp)} log-probs, {'cut' if completion.truncated else 'ended'} at token "
                f"{tokens[-1:]}; a setting of the server must override what was asked for"
            )

    def _record(
        self, requests: Sequence[Request], answers: Sequence[Sequence[Completion]], ran: Ran, slots: int
    ) -> None:
        means = [float(np.mean([len(completion.token_ids) for completion in group])) for group in answers]
        row = self.lengths.row([request.prompt_ids for request in requests], means)
        parts = self.ranks.gather((row, ran.busy_s, ran.wall_s, slots))
        rows, busy, walls, places = zip(*parts, strict=True)
        for row in rows:
            self.lengths.record(row, write=self.ranks.main)
        room = max(walls) * sum(places)  # everybody waits for the slowest engine
        self.last["rollout_idle_time_share"] = 1 - sum(busy) / room if room else 0.0
        self.last["rollout_in_flight"] = sum(places)


def weights(policy: Policy, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """The trainer's parameters by their names in model folders, one whole tensor at a time, an adapter merged in (a
    collective where the model is sharded, so every rank has to go through all of it). A tied lm_head is not among
    them."""
    for name, tensor in MergeCheck(policy.model).passing(merged_parameters(policy.model)):
        yield name, tensor.to(dtype)


def _largest(gaps: dict[str, Gap], field: str) -> float:
    return max((getattr(gap, field) for gap in gaps.values()), default=0.0)


def installed() -> str | None:
    """Version of the vLLM that is installed, under whatever name its build has; None without one."""
    builds = packages_distributions().get("vllm")
    return version(builds[0]) if builds else None


def check_version(release: str | None, where: str = "here") -> None:
    """InputError unless `release` is a version of vLLM that this version of SIRI works with."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion

    if release is None:
        raise InputError(
            f"rollout = vllm needs vLLM {SUPPORTED}, which is not installed {where}; "
            "pip install -e ./kernels -e '.[vllm]', or use --rollout local"
        )
    try:
        known = SpecifierSet(SUPPORTED).contains(release.split("+")[0], prereleases=True)
    except InvalidVersion:
        known = False
    if not known:
        raise InputError(
            f"vLLM {release} {where} is not among the versions that work with this SIRI ({SUPPORTED}); "
            "pip install -e ./kernels -e '.[vllm]'"
        )
