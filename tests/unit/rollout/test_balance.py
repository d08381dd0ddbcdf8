"""Servers of unlike speed share what is in flight."""

import asyncio
import time

import pytest

from tests.support.sky import STOP, Sky, check_whole


@pytest.mark.parametrize("late", [None, 0, 1], ids=["both at once", "the slow one late", "the fast one late"])
def test_a_slow_server_hands_over(servers, tmp_path, monkeypatch, late):
    """Whichever of the two was ready first, and took all the responses."""
    monkeypatch.setattr("siri.rollout.balance.BALANCE_S", 0.5)
    monkeypatch.setattr("siri.rollout.balance.KNOWN_S", 0.2)
    sky = Sky(servers, tmp_path)
    for server in servers:
        server.sampler = lambda body: ([5] * body["max_tokens"], [-1.0] * body["max_tokens"], "length")
    servers[0].token_s, servers[1].token_s = 2.0, 0.05
    admit = sky.flight.engine.admit

    async def admit_in_order(session, server):
        if late is not None and server.url == servers[late].url:
            await asyncio.sleep(1.0)
        return await admit(session, server)

    monkeypatch.setattr(sky.flight.engine, "admit", admit_in_order)
    sky.sync(0)
    drafts = sky.add(8, cap=60)
    began = time.monotonic()
    sky.wait(drafts)
    check_whole(drafts)
    assert time.monotonic() - began < 90, "alone the slow one would take 120 s"
    assert any(draft.requests > 1 for draft in drafts)
    sky.rollout.close()


@pytest.mark.parametrize("last", [5, STOP])
def test_a_response_whose_last_token_came_is_not_handed_on(servers, tmp_path, monkeypatch, last):
    """However slow its server is to say that it was the last: another one would sample it again."""
    sky = Sky(servers, tmp_path)
    flight, stream, whole, advised = sky.flight, sky.flight.engine.stream, [], []

    async def silent(session, server, job, temperature, extend):
        if whole:
            return await stream(session, server, job, temperature, extend)
        (draft,) = [draft for draft, _ in flight.running.values() if draft.job(()).prompt_ids == job.prompt_ids]
        whole.append(draft)
        extend([5] * (job.max_tokens - 1) + [last], [-1.0] * job.max_tokens)
        while len(advised) < 2:  # to hand on all that runs, and what became of it is seen
            await asyncio.sleep(0.01)
        return "stop" if last == STOP else "length"

    def all_are_slow(running, servers, share):
        if not whole or flight._waiting or len(advised) == 2:
            return None
        advised.append(len(running))
        return set(servers), len(running), "much slower"

    monkeypatch.setattr(flight.engine, "stream", silent)
    monkeypatch.setattr(flight._balance, "compare", all_are_slow)
    sky.sync(0)
    drafts = sky.add(4)
    sky.wait(drafts)
    check_whole(drafts)
    assert all(advised) and whole[0].requests == 1 and whole[0].truncated == (last != STOP)
    sky.rollout.close()
