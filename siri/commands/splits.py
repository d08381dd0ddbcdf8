"""Which GPUs should sample and which should train: each split of N of them priced by a simulation.

Servers decode by a roofline: a token of all responses that a server runs takes TOKEN_S, and as long as its memory needs
to give the weights and their keys and values once. Responses are given out as the trainer does it, by step first, then
the longest first, to the server with the fewest; a batch may begin once the weights of `staleness` steps before are up,
and is trained on once its last response is there and the update before is over. Lengths are drawn as
`siri.planning.hours` assumes them, or around the means of a run's prompts. NOTHING IS MEASURED: read the ratios.
"""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from siri.errors import InputError
from siri.planning.hours import MEDIAN_SHARE, PROMPT_TOKENS, SIGMA, Rates, step_hours
from siri.planning.memory_plan import MemoryPlan
from siri.rollout.order import longest_first, sequences_in_flight
from siri.store.jsonl import read_jsonl

BETWEEN = 0.6
"""Assumed share of the variance of log lengths that lies between prompts, the rest between responses to one."""
TOKEN_S = 4e-3
"""Assumed seconds of a decoding step beside what is read: launches, scheduler, sampling."""
READ_SHARE = 0.75
"""Assumed share of the memory's bandwidth that a decoding step attains."""
SERVER_MEMORY = 0.9
"""Of a GPU that only samples, as vLLM takes it."""
SYNC_S = 5.0
"""Assumed seconds of a weight sync."""
WARM, STEPS = 2, 4
"""Steps that are left out at the beginning of a simulation, until as many batches are in flight as may be, and those
that count; as many batches are drawn, over and over, so that every split has the same."""
MOMENTS = 200
"""Responses that end within this part of a mean one end together."""
MOST_PLACES = 256
"""Responses at once on a server, as vLLM has it by default."""


@dataclass(frozen=True)
class Engines:
    """Engines that sample, all alike."""

    count: int
    cache_tokens: int
    token_bytes: int
    """Keys and values of a token."""
    weight_bytes: float
    bandwidth: float
    overhead_s: float = TOKEN_S
    read_share: float = READ_SHARE

    def places(self, mean: float) -> int:
        """Responses at once on each."""
        return sequences_in_flight(self.cache_tokens, PROMPT_TOKENS, mean, MOST_PLACES)

    def token_s(self, context: float) -> float:
        """Seconds for a token of each of the running responses, whose contexts have `context` tokens together."""
        return self.overhead_s + (self.weight_bytes + context * self.token_bytes) / (self.read_share * self.bandwidth)

    def seconds(self, tokens: float, running: int, context: float) -> float:
        """Seconds in which each of the running responses grows by so many tokens, and their contexts with them."""
        return tokens * self.token_s(context + running * tokens / 2)

    def tokens(self, seconds: float, running: int, context: float) -> float:
        """The tokens by which each grows in so many seconds: `seconds` the other way round."""
        first, more = self.token_s(context), running * self.token_bytes / (self.read_share * self.bandwidth)
        return 2 * seconds / (first + (first**2 + 2 * more * seconds) ** 0.5)


@dataclass(frozen=True)
class Priced:
    """A way of using the GPUs."""

    way: str
    """colocated, in turn, or overlapped."""
    staleness: int
    servers: int
    """GPUs that only sample; 0 = all do both."""
    trainers: int
    step_s: float
    trainer_waits: float
    """Share of its time,"""
    servers_idle: float
    """and share of the places on servers that stand empty."""


def draw_lengths(
    cap: int, shape: tuple[int, int], random: np.random.Generator, means: Sequence[float] = ()
) -> np.ndarray:
    """Lengths [prompts, group] of a batch, tokens, cut at the cap. means: of prompts of a run, to be drawn from."""
    prompts, _ = shape
    within = SIGMA * (1 - BETWEEN) ** 0.5
    if len(means):
        centre = np.log(random.choice(np.asarray(means, float), prompts)) - within**2 / 2
    else:
        centre = np.log(MEDIAN_SHARE * cap) + SIGMA * BETWEEN**0.5 * random.standard_normal(prompts)
    return np.clip(np.exp(centre[:, None] + within * random.standard_normal(shape)), 1, cap).astype(int)


def simulate(engines: Engines, batches: Sequence[np.ndarray], train_s: float, lag: int) -> tuple[float, float, float]:
    """(seconds of a step, share for which the trainer waits, share of the places that stand empty) of engines and a
    trainer that work on these batches, lengths [prompts, group] each, one after the other. lag: `staleness`. The first
    WARM + lag of them do not count, nor the last `lag`, behind which nothing is sampled."""
    places = engines.places(float(np.mean([batch.mean() for batch in batches])))
    moment = engines.token_s(0.0) * float(np.mean([batch.mean() for batch in batches])) / MOMENTS
    waiting: deque[tuple[int, int]] = deque()  # lengths in the order in which they are given out
    running: list[list[float]] = [[] for _ in range(engines.count)]  # for each server a heap of ends, in its own tokens
    done_tokens = [0.0] * engines.count
    owners: list[dict[float, list[tuple[int, int]]]] = [{} for _ in range(engines.count)]  # step and length by end
    context = [0.0] * engines.count
    left = [batch.size for batch in batches]
    ready: list[float] = [np.inf] * len(batches)
    released, trained_until, now = 0, [0.0], 0.0  # trained_until[n]: when the weights after n steps are up
    busy = room = waits = 0.0
    marks: dict[int, tuple[float, float, float, float]] = {}

    def start() -> None:
        while waiting:
            server = min(range(engines.count), key=lambda each: len(running[each]))
            if len(running[server]) >= places:
                return
            step, length = waiting.popleft()
            end = done_tokens[server] + length
            heapq.heappush(running[server], end)
            owners[server].setdefault(end, []).append((step, length))
            context[server] += PROMPT_TOKENS

    while len(trained_until) <= len(batches):
        step = len(trained_until) - 1  # the one that trains next
        while released < len(batches) and released - lag <= step and trained_until[max(0, released - lag)] <= now:
            flat = batches[released].flatten()
            expected = np.repeat(batches[released].mean(1), batches[released].shape[1])
            waiting += [(released, int(flat[place])) for place in longest_first(expected.tolist())]
            released += 1
        start()
        ends = [
            engines.seconds(running[s][0] - done_tokens[s], len(running[s]), context[s])
            for s in range(engines.count)
            if running[s]
        ]
        until = max(min(ends, default=np.inf), moment)
        if released < len(batches) and released - lag < len(trained_until):
            until = min(until, max(0.0, trained_until[max(0, released - lag)] - now) or np.inf)
        if not any(running) and not np.isfinite(until):
            until = 0.0
        for s in range(engines.count):
            if running[s]:
                made = engines.tokens(until, len(running[s]), context[s])
                done_tokens[s] += made
                context[s] += made * len(running[s])
                busy += until * len(running[s])
        room += until * places * engines.count
        now += until
        for s in range(engines.count):
            while running[s] and running[s][0] <= done_tokens[s] + 1e-6:
                end = heapq.heappop(running[s])
                owner, length = owners[s][end].pop()
                # it has overrun its end by what was left of the moment
                context[s] -= PROMPT_TOKENS + length + done_tokens[s] - end
                left[owner] -= 1
                if not left[owner]:
                    ready[owner] = now
        while step < len(batches) and np.isfinite(ready[step]):
            begin = max(ready[step], trained_until[-1])
            waits += begin - trained_until[-1]
            trained_until.append(begin + train_s + SYNC_S)
            step += 1
            marks[step] = (trained_until[-1], waits, busy, room)
    counted = WARM + lag, len(batches) - lag
    (first, waited, used, had), (last, waited_too, used_too, had_too) = (marks[step] for step in counted)
    spent = last - first
    return (
        spent / (counted[1] - counted[0]),
        (waited_too - waited) / spent,
        max(0.0, 1 - (used_too - used) / max(1e-9, had_too - had)),
    )


def splits(
    model_config: Any,
    plan: MemoryPlan,
    rates: Rates,
    caps: Sequence[int],
    lags: Sequence[int],
    means: Sequence[float] = (),
) -> list[Priced]:
    """All ways of using the plan's GPUs, the fastest first: mean seconds of a step over these caps. Servers take whole
    GPUs, at least one, and leave the trainer one at least. lags: values of `staleness` to try, of 1 or more."""
    config, gpus = plan.config, plan.machine.gpus
    shape = (config.prompts_per_step, config.group_size)
    weight_bytes = 2.0 * plan.parameters
    batches = []
    for number, cap in enumerate(caps):
        random = np.random.default_rng(number)
        batches.append([draw_lengths(cap, shape, random, means) for _ in range(STEPS)])

    def priced(way: str, servers: int, lag: int) -> Priced:
        trainers, engines = gpus - servers, servers or gpus
        room = SERVER_MEMORY * plan.machine.memory - weight_bytes
        cache = int(max(1.0, room) / plan.cache_token) if servers else max(1, plan.phases[0].cache_tokens)
        group = Engines(engines, cache, plan.cache_token, weight_bytes, rates.bandwidth)
        parts = []
        for cap, drawn in zip(caps, batches, strict=True):
            train_s = step_hours(model_config, plan, rates, cap).train_s * gpus / trainers
            work = [drawn[step % STEPS] for step in range(WARM + STEPS + 2 * lag)]
            parts.append(simulate(group, work, train_s, lag))
        seconds, waits, idle = np.mean(parts, axis=0).tolist()
        return Priced(way, lag, servers, trainers, seconds, waits, idle)

    counts = _counts(gpus)
    tried = [priced("colocated", 0, 0)]
    tried += [priced("in turn", servers, 0) for servers in counts]
    tried += [priced("overlapped", servers, lag) for lag in lags for servers in counts]
    return sorted(tried, key=lambda each: each.step_s)


def _counts(gpus: int) -> list[int]:
    """How many servers are tried: all that differ by an eighth of the GPUs, or by one of few."""
    step = max(1, gpus // 8)
    return list(range(step, gpus, step))


def prompt_means(run: Path) -> list[float]:
    """Mean lengths of the responses to the prompts of a run (lengths.jsonl); InputError where it has none."""
    means: dict[str, float] = {}
    path = run / "lengths.jsonl"
    for row in read_jsonl(path) if path.exists() else ():
        means |= {key: float(value) for key, value in row.items()}
    if not means:
        raise InputError(f"{run}: keeps no lengths of its prompts (lengths.jsonl); give a run that sampled with vLLM")
    return list(means.values())


def print_splits(priced: Sequence[Priced], caps: Sequence[int], source: str) -> None:
    """Print which GPUs should sample and which train, the best of each way and those beside the best."""
    from rich.console import Console
    from rich.table import Table

    best = priced[0]
    shown = {id(next(each for each in priced if each.way == way)) for way in ("colocated", "in turn", "overlapped")}
    shown |= {id(each) for each in priced[:4]}
    table = Table()
    for heading in ("GPUs", "staleness", "servers", "trainers", "seconds a step", "trainer waits", "servers idle"):
        first = heading == "GPUs"
        table.add_column(heading, justify="left" if first else "right", no_wrap=first, min_width=10 if first else None)
    for each in priced:
        if id(each) in shown:
            counts = (str(each.staleness), str(each.servers or "all"), str(each.trainers or "all"))
            shares = (f"{each.trainer_waits:.0%}", f"{each.servers_idle:.0%}")
            table.add_row(each.way, *counts, f"{each.step_s:.0f}", *shares, style="bold" if each is best else "")
    console = Console(highlight=False)
    console.print(table)
    how = {
        "colocated": "all GPUs sample and train in turn",
        "in turn": f"{best.servers} servers, {best.trainers} trainers, in turn",
        "overlapped": f"{best.servers} servers and {best.trainers} trainers with --staleness {best.staleness}",
    }[best.way]
    console.print(  # it wraps where the terminal ends
        f"best split: {how}; a simulation over caps of {', '.join(f'{cap:,}' for cap in caps)} tokens with {source}: "
        f"{TOKEN_S * 1e3:g} ms and {READ_SHARE:.0%} of the memory's bandwidth for a decoding step, {SYNC_S:g} s for a "
        "sync, training as above; nothing of it is measured",
        markup=False,
    )
