"""Fingerprints of many engines: one packed forward pass for all of them, and all servers asked at once."""

import asyncio
import threading
import time

import pytest

from siri.rollout import Request, proof
from siri.rollout.local import LocalRollout
from siri.rollout.proof import ANSWER_TOKENS, fixed_prompts, gaps
from tests.support.fake_server import FakeServer
from tests.support.served import engine
from tests.support.tiny import tiny_policy


def test_answers_of_all_engines_are_scored_in_one_packed_forward(monkeypatch):
    policy = tiny_policy()
    asked = [Request(ids, ANSWER_TOKENS, 1) for ids in fixed_prompts(policy)]
    answers = {}
    for number in range(4):
        sampled = LocalRollout(policy, cache_tokens=10**6).generate(asked, temperature=0.7, seed=number)
        answers[f"engine {number}"] = [
            (request.prompt_ids, group[0], 0.7) for request, group in zip(asked, sampled, strict=True)
        ]
    # an engine of its own mind: its gap must not reach the others
    answers["engine 2"][0][1].logp[3] -= 2.0
    calls, real = [], proof.packed_hidden
    monkeypatch.setattr(proof, "packed_hidden", lambda *arguments: calls.append(arguments) or real(*arguments))
    together = gaps(policy, answers)
    assert len(calls) == 1 and len(calls[0][2].cu_seqlens) == 1 + 8, "two answers of each engine"
    assert list(together) == list(answers)
    for name, of_engine in answers.items():
        (alone,) = gaps(policy, {name: of_engine}).values()
        for field in ("mean", "max", "greedy"):
            assert getattr(together[name], field) == pytest.approx(getattr(alone, field), abs=1e-5), (name, field)
    assert together["engine 2"].max == pytest.approx(2.0, abs=1e-3)
    assert all(together[name].max < 1e-4 for name in answers if name != "engine 2")


def test_servers_are_probed_at_once(monkeypatch, tmp_path):
    """Nobody answers before everybody was asked: one after the other, it would never end."""
    asked, everybody = set(), threading.Event()
    real, patience = FakeServer._complete, time.monotonic() + 60

    async def complete(self, request):
        asked.add(self.port)
        if len(asked) == len(servers):
            everybody.set()
        while not everybody.is_set():
            assert time.monotonic() < patience, f"only {len(asked)} of {len(servers)} servers were asked"
            await asyncio.sleep(0.01)
        return await real(self, request)

    monkeypatch.setattr(FakeServer, "_complete", complete)
    servers = [FakeServer() for _ in range(3)]
    try:
        rollout = engine(servers, tmp_path)
        rollout.sync()
        assert everybody.is_set() and rollout.metrics()["fingerprint_gap_max"] < 1e-3
    finally:
        for server in servers:
            server.stop()
