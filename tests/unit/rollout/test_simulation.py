"""Dispatch and fleet under a seeded clock and network: whatever servers and network do, each response is counted once
and comes from the weights of the last sync, or one line says why there is none. A schedule is its seed: one that fails
is added to `SEEDS`."""

import asyncio
import random
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from siri.errors import InputError
from siri.runtime.ranks import Ranks
from tests.support.simulated_servers import (
    TIMEOUT_S,
    Network,
    SimulatedFleet,
    SimulatedServer,
    clock_of,
    jobs,
    response,
)
from tests.support.virtual_time import VirtualLoop

pytestmark = pytest.mark.torture
SEEDS: list[int] = [351, 795004020, 981468182]
"""Schedules that have failed."""
QUICK_S, LONG_S = 8, 240
"""Seconds for drawn schedules in the suite, and in make torture."""
HOURS = 12 * 3600.0
ODD = ("busy", "cut", "html", "short", "abort")
LINES = (
    r"no rollout server is left \(.*\); start them again and use --resume",
    r"a rollout failed 4 times, the last time with: .*",
    r"weight sync-\d reached no rollout server: .*",
)
"""What may end a run under faults."""


@dataclass
class Told:
    """What came of a schedule."""

    seed: int
    steps: int = 0
    responses: int = 0
    retries: int = 0
    line: str = ""
    trace: list[str] = field(default_factory=list)


async def mischief(draw: random.Random, servers: list[SimulatedServer], network: Network, said: list[str]) -> None:
    """Faults for ever, at the pace of this seed."""
    loop, pace = asyncio.get_running_loop(), draw.choice([2.0, 10.0, 30.0, 60.0, 300.0])
    kinds = draw.sample(["crash", "restart", "silence", "cut", "odd", "gone"], draw.randint(1, 3))
    while True:
        await asyncio.sleep(draw.expovariate(1 / pace))
        server, kind = draw.choice(servers), draw.choice(kinds)
        said.append(f"{loop.time():.2f} {server.url} {kind}")
        if kind == "crash" and server.up:
            server.end()
            loop.call_later(draw.uniform(0.1, 150.0), lambda gone=server: gone.up or gone.start())
        elif kind == "restart" and server.up:
            server.end()
            server.start()
        elif kind == "silence":
            server.silent_until = loop.time() + draw.choice([2.0, 20.0, 100.0])
        elif kind == "cut":
            network.cut_until[server.url] = loop.time() + draw.choice([2.0, 20.0, 100.0])
        elif kind == "odd":
            server.oddities.append(draw.choice(ODD))
        elif kind == "gone" and draw.random() < 0.05:
            server.end()


def schedule(seed: int, folder: Path) -> Told:
    """Syncs and rollouts of one or two ranks over up to three servers that fail as the seed says; AssertionError where
    a promise is broken."""
    draw, told = random.Random(seed), Told(seed)
    loop = VirtualLoop(HOURS)
    servers = [
        SimulatedServer(f"http://s{number}", random.Random(draw.random())) for number in range(draw.randint(1, 3))
    ]
    network = Network(servers, random.Random(draw.random()))
    size, calm = draw.randint(1, 2), draw.random() < 0.1
    with clock_of(loop):
        try:
            fleets = [SimulatedFleet(loop, network, folder, Ranks(rank, size)) for rank in range(size)]
            if not calm:
                loop.create_task(mischief(draw, servers, network, told.trace))
            for step in range(draw.randint(1, 4)):
                rollout(loop, draw, fleets, f"sync-{step}", told)
        except InputError as error:
            told.line = str(error)
            assert not calm and any(re.fullmatch(line, told.line) for line in LINES), told
        finally:
            loop.end()
    if calm:
        assert told.retries == 0 and not any(fleet.lost for fleet in fleets), told
    return told


def give(fleet: SimulatedFleet, weight: float, version: str) -> None:
    """A sync."""
    fleet.offer(iter([("weight", torch.tensor([weight]))]), version)
    fleet.load(iter(()), version)


def rollout(loop: VirtualLoop, draw: random.Random, fleets: list[SimulatedFleet], version: str, told: Told) -> None:
    """A sync, and a batch for each rank at once."""
    for fleet in fleets:
        give(fleet, float(told.steps), version)
    batches = [jobs(draw, draw.randint(1, 12)) for _ in fleets]
    counted = [0] * len(fleets)

    def count(rank: int) -> None:
        counted[rank] += 1

    async def all_ranks():
        asked = []
        for rank, (fleet, batch) in enumerate(zip(fleets, batches, strict=True)):
            limit = draw.randint(1, 12)
            asked.append(fleet.ask(batch, temperature=1.0, limit=limit, progress=lambda _, rank=rank: count(rank)))
        return await asyncio.gather(*asked)

    for rank, (batch, ran) in enumerate(zip(batches, loop.run(all_ranks()), strict=True)):
        wanted = [response(job.seed, job.max_tokens, version) for job in batch]
        assert [completion.token_ids for completion in ran.completions] == wanted, (
            f"seed {told.seed}, {version}, rank {rank}: {told}"
        )
        assert counted[rank] == len(batch), f"seed {told.seed}, {version}, rank {rank}: progress {counted[rank]}"
        assert ran.busy_s >= 0 and 0 <= ran.wall_s < HOURS
        told.responses += len(batch)
        told.retries += fleets[rank].retries.total()
    told.steps += 1


def drawn(tmp_path: Path, seconds: float, play) -> tuple[list[Told], float]:
    """Schedules of new seeds until the time is over."""
    seed = begin = time.time_ns() % 10**9
    began, told = time.monotonic(), []
    while time.monotonic() - began < seconds:
        try:
            told.append(play(seed, tmp_path / "weights"))
        except Exception as error:
            raise AssertionError(f"add {seed} to SEEDS: {error}") from error
        seed += 1
    assert seed > begin
    return told, time.monotonic() - began


@pytest.mark.parametrize("seed", [*range(200), *SEEDS])
def test_known_schedules(seed, tmp_path):
    first = schedule(seed, tmp_path / "weights")
    if seed % 20 == 0:
        assert schedule(seed, tmp_path / "weights") == first, "a seed is one schedule"


def test_each_response_is_counted_once_and_under_the_right_version(tmp_path, long, fault):
    told, seconds = drawn(tmp_path, long(QUICK_S, LONG_S), schedule)
    ended = sum(bool(outcome.line) for outcome in told)
    responses, retries = sum(outcome.responses for outcome in told), sum(outcome.retries for outcome in told)
    assert ended < len(told) and retries
    fault(
        "servers and network fail, simulated",
        f"{len(told):,} schedules ({60 * len(told) / seconds:,.0f} a minute)",
        f"{responses:,} responses, {retries:,} done again, each once, of the right weights; {ended:,} ended by a line",
    )


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", ["silence", "cut", "gone"])
def test_a_server_that_hangs_is_told_within_its_patience(kind, count, tmp_path):
    """By the rank that has responses there; and so is that none is left."""
    for seed in range(30):
        draw = random.Random(seed)
        loop = VirtualLoop(HOURS)
        servers = [SimulatedServer(f"http://s{number}", random.Random(seed + number)) for number in range(count)]
        network = Network(servers, random.Random(seed))
        at = draw.uniform(0.5, 5.0)
        with clock_of(loop):
            fleet = SimulatedFleet(loop, network, tmp_path / "weights", Ranks())
            give(fleet, 0.0, "sync")
            at += loop.time()

            def hang(server=servers[0], network=network, kind=kind):
                if kind == "silence":
                    server.silent_until = float(HOURS)
                elif kind == "cut":
                    network.cut_until[server.url] = float(HOURS)
                    server.silent_until = float(HOURS)
                else:
                    server.end()

            loop.call_at(at, hang)
            batch = jobs(draw, 24)
            batch = [type(job)(job.prompt_ids, 12, job.seed, ()) for job in batch]
            line, ran = "", None
            try:
                ran = fleet.ask(batch, temperature=1.0, limit=24)
            except InputError as error:
                line = str(error)
            over = loop.time()
            loop.end()
        told = [(when, why) for when, url, why in fleet.lost if url == servers[0].url]
        assert told and told[0][0] - at <= TIMEOUT_S + 15, f"seed {seed}: {told}, hung at {at}"
        if count == 1:
            assert re.fullmatch(LINES[0], line) and over - at <= 2 * TIMEOUT_S + 20, f"seed {seed}: {line}, {over - at}"
        else:
            assert ran is not None, line
            assert [completion.token_ids for completion in ran.completions] == [
                response(job.seed, 12, "sync") for job in batch
            ]


@pytest.mark.parametrize("blind", [0, 1, 2])
def test_a_folder_that_a_server_does_not_see_is_told_at_the_sync(blind, tmp_path):
    loop = VirtualLoop(HOURS)
    servers = [SimulatedServer(f"http://s{number}", random.Random(number)) for number in range(3)]
    servers[blind].sees_folder = False
    with clock_of(loop):
        fleet = SimulatedFleet(loop, Network(servers, random.Random(0)), tmp_path / "weights", Ranks())
        with pytest.raises(InputError, match=rf"server http://s{blind} does not see .*--rollout-sync-dir"):
            give(fleet, 0.0, "sync")
        assert loop.time() < 10
        loop.end()
