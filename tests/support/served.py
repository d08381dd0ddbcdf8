"""Rollouts served by the stand-in servers of `fake_server`."""

from dataclasses import replace

from siri.rollout import Request
from siri.rollout.fleet import ServedEngine
from siri.rollout.order import ExpectedLengths
from siri.rollout.vllm import VllmOptions, VllmRollout
from tests.support.tiny import tiny_policy


def options(servers, folder, **changes) -> VllmOptions:
    base = VllmOptions(
        model="tiny",
        tied=False,
        context=128,
        sequences=8,
        memory=0.5,
        servers=tuple(server.url for server in servers),
        insecure=False,
        sync="auto",
        sync_dir=folder / "weights",
        timeout_s=60.0,  # only what hangs takes that long, on the busiest machine
        sync_timeout_s=60.0,
    )
    return replace(base, **changes)


def engine(servers, folder, policy=None, **changes) -> VllmRollout:
    policy = policy or tiny_policy()
    backend = ServedEngine(options(servers, folder, **changes), policy)
    return VllmRollout(policy, backend, temperature=0.8, lengths=ExpectedLengths())


def requests(count: int = 6, n: int = 4) -> list[Request]:
    return [Request([5 + i, 6, 7], 12 + i, n) for i in range(count)]


def tokens(answers) -> list[list[list[int]]]:
    return [[completion.token_ids for completion in group] for group in answers]


def again(rollout):
    return rollout.generate(requests(), temperature=0.8, seed=3)
