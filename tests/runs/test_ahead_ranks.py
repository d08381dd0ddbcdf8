"""Several training ranks that sample ahead on stand-in servers: each has its share of every step, and what is lost or
stopped on the way, on whichever rank, costs nothing."""

import asyncio
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support.fake_server import FakeServer
from tests.support.killed_ahead import OPTIONS, STEPS, assert_nothing_lost, held, rows
from tests.support.processes import UNREPORTED, finish, kill, start

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the processes of a run in /proc")
WORKER = "tests.support.ahead_worker"
PROMPTS, GROUP = 4, 4
"""Of a step of OPTIONS."""
PATIENCE_S = 240.0
HANGS_S = 120.0
"""How long a response is held back; the servers are told lost after no less."""


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """A process on its own, in turn: the prompts and caps that all others have to have."""
    folder = tmp_path_factory.mktemp("calm") / "run"
    assert finish(start(folder, [*OPTIONS, "--rollout", "local"], module=UNREPORTED)) == 0
    return folder


def ahead(servers, staleness: int) -> list[str]:
    urls = [server.url for server in servers]
    return [*OPTIONS, "--staleness", str(staleness), "--rollout-servers", *urls, "--rollout-timeout-s", f"{HANGS_S:g}"]


def noted(folder: Path, rank: int) -> list[dict]:
    path = folder / f"rank-{rank}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def until(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def saved(run: Path) -> int:
    """Steps of the newest checkpoint."""
    return max((int(path.name[5:]) for path in (run / "checkpoints").glob("step_??????")), default=0)


@pytest.mark.parametrize(("staleness", "lost"), [(1, False), (2, True)], ids=["1", "2, a server is lost"])
def test_each_rank_has_its_share_of_every_step(tmp_path, calm, servers, staleness, lost):
    run = tmp_path / "run"
    process = start(run, ahead(servers, staleness), ranks=2, module=WORKER)
    if lost:
        until(lambda: len(rows(run)) >= 2 and servers[0].running)
        servers[0].stop()
    assert finish(process) == 0
    assert_nothing_lost(run, calm, {}, servers[1].policy)
    assert all(row["responses"] == PROMPTS * GROUP and row["staleness_max"] <= staleness for row in rows(run))
    assert any(row["stale_tokens_share"] > 0 for row in rows(run)), "nothing was sampled ahead"
    shares = [[row for row in noted(tmp_path, rank) if "step" in row] for rank in (0, 1)]
    assert [row["step"] for row in shares[0]] == [row["step"] for row in shares[1]] == list(range(STEPS))
    for first, second in zip(*shares, strict=True):
        assert len(first["places"]) == len(second["places"]) == PROMPTS // 2
        assert sorted(first["places"] + second["places"]) == list(range(PROMPTS))
    assert len({row[0]["process"] for row in shares}) == 2
    begun = [body["seed"] for server in servers for body in server.asked if body.get("stream")]
    assert len(set(begun)) >= STEPS * PROMPTS * GROUP
    used = [row["rollout_servers_used"] for row in rows(run)]
    if lost:
        assert used[0] == 2 and used[-1] == 1
    else:
        assert set(used) == {2}
        again = len(begun) - len(set(begun))
        assert again == 0, "no two responses, of whichever rank, share their random numbers"


def test_another_number_of_ranks_goes_on_after_a_kill(tmp_path, calm, servers):
    """kill -9 of all ranks, twice; what those before have begun is dealt anew to as many as there are."""
    run, kept, unfinished = tmp_path / "run", {}, 0
    for server in servers:
        server.token_s = 0.05  # so that responses are under way when a checkpoint is written, on a busy machine too
    for ranks, steps in ((2, 2), (3, 4)):
        process = start(run, ahead(servers, 2), ranks=ranks, module=UNREPORTED)
        until(lambda process=process, steps=steps: len(rows(run)) >= steps or process.poll() is not None)
        until(lambda process=process, steps=steps: saved(run) >= steps - 1 or process.poll() is not None)
        kill(process)
        assert len(rows(run)) >= steps, "it ended by itself"
        kept |= held(run)
        unfinished += sum(bool(tokens) and not done for tokens, done in held(run).values())
    assert unfinished, "no response was under way in either"
    assert finish(start(run, ahead(servers, 2), module=UNREPORTED)) == 0
    assert_nothing_lost(run, calm, kept, servers[0].policy)


@pytest.mark.parametrize("which", ["waits", "samples"])
def test_a_signal_to_a_single_rank_is_all_ranks(tmp_path, calm, servers, which):
    """One response is held back, so that its rank samples while the other one has all of its own and waits: both leave
    within seconds, whichever of them the signal reaches, and what is there goes on afterwards."""
    run, holding = tmp_path / "run", threading.Event()

    def slow(server: FakeServer) -> None:
        real = server._stream

        async def stream(request, body, fault):
            if not holding.is_set():
                holding.set()
                await asyncio.sleep(HANGS_S)
            return await real(request, body, fault)

        server._stream = stream

    for server in servers:
        slow(server)

    def ready() -> dict[int, int]:
        """Of the ranks that have their share of the first step: their processes."""
        return {rank: row["process"] for rank in (0, 1) for row in noted(tmp_path, rank) if row.get("ready")}

    process = start(run, ahead(servers, 1), ranks=2, module=WORKER)
    try:
        until(lambda: ready() or process.poll() is not None)
        assert process.poll() is None and len(ready()) == 1
        ((waiting, pid),) = ready().items()
        if which == "samples":
            pid = noted(tmp_path, 1 - waiting)[0]["process"]
        began = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        until(lambda: held(run))
        assert time.monotonic() - began < HANGS_S / 2, "they have waited for the response"
        finish(process, timeout=PATIENCE_S)
    finally:
        if process.poll() is None:
            kill(process)
    kept = held(run)
    share = [tokens for (step, _, _), (tokens, done) in kept.items() if step == 0 and done]
    assert len(share) >= PROMPTS * GROUP // 2 and any(not done for _, done in kept.values())
    assert finish(start(run, ahead(servers, 1), ranks=2, module=UNREPORTED)) == 0
    assert_nothing_lost(run, calm, kept, servers[0].policy)
