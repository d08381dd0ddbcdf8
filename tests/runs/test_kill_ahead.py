"""kill -9 of a trainer that samples ahead, with stand-in servers that live on; tests/vllm has the same with real
ones."""

import random
import time

import pytest

from tests.support.killed_ahead import OPTIONS, assert_nothing_lost, survive
from tests.support.processes import UNREPORTED, finish, start

pytestmark = pytest.mark.torture
KILLS, TORTURE_KILLS = 3, 50


def test_killed_again_and_again_nothing_is_lost(tmp_path, servers, long, fault):
    seed = time.time_ns() % 10**6
    print(f"seed {seed}")
    assert finish(start(tmp_path / "calm", [*OPTIONS, "--rollout", "local"], module=UNREPORTED)) == 0
    urls = [server.url for server in servers]
    options = [*OPTIONS, "--staleness", "2", "--rollout-servers", *urls, "--rollout-timeout-s", "30"]
    wanted = long(KILLS, TORTURE_KILLS)
    moments: list[str] = []
    storms = begun = 0
    while len(moments) < wanted:
        run = tmp_path / f"stormy_{storms}"
        storms += 1
        assert storms <= wanted, "runs end before they are killed"
        killed, kept = survive(run, options, min(10, wanted - len(moments)), random.Random(seed + storms))
        moments += killed
        begun += sum(bool(tokens) for tokens, done in kept.values() if not done)
        assert_nothing_lost(run, tmp_path / "calm", kept, servers[0].policy)
        assert not any(server.paused for server in servers)
    told = ", ".join(f"{moments.count(kind)} in {kind}" for kind in sorted(set(moments)))
    fault("kill -9, sampling ahead", f"{len(moments)} ({told})", f"prompts once, {begun} prefixes went on")
