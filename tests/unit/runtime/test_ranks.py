"""Ranks that wait for one another: how long, for whom, and when no more."""

import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from siri.errors import InputError
from siri.model import fsdp
from siri.rollout import Completion, Request
from siri.rollout.order import ExpectedLengths
from siri.rollout.vllm import Ran, VllmRollout
from siri.runtime.ranks import PATIENCE, Ranks, join_ranks, leave_ranks
from siri.runtime.signals import Interrupted, Stop
from tests.runs.test_distributed import join, spawn
from tests.support.tiny import tiny_policy


class Endless:
    """An engine whose responses take for ever, on a rank that may get a signal in the middle of it."""

    notes: list[str] = []  # noqa: RUF012
    dtype, cache_tokens, most = torch.float32, 4096, 8

    def __init__(self, signalled: bool) -> None:
        self.signalled, self.left = signalled, False

    def ask(self, jobs, *, temperature, limit, progress=None, check=lambda: None, done=lambda *_: None):
        began = time.monotonic()
        try:
            while time.monotonic() - began < 120:
                if self.signalled and time.monotonic() - began > 1:
                    self.signalled = False
                    os.kill(os.getpid(), signal.SIGTERM)
                check()
                time.sleep(0.01)
        finally:
            self.left = True
        return Ran([Completion([1], [-1.0], False) for _ in jobs], 1.0, 1.0)


def worker(rank: int, world: int, port: int, results) -> None:
    join(rank, world, port)
    os.environ["LOCAL_WORLD_SIZE"] = "1"
    ranks, _ = join_ranks(torch.device("cpu"))  # two nodes of one rank each
    result = {}
    for dimension in (0, 1):
        backend = ranks.mesh.get_group(dimension)._get_backend(torch.device("cpu"))
        result[ranks.mesh.mesh_dim_names[dimension]] = (backend.options._timeout, backend.size())
    with Stop() as stop:
        engine = Endless(signalled=rank == 1)
        rollout = VllmRollout(tiny_policy(), engine, temperature=1.0, lengths=ExpectedLengths(), ranks=ranks, stop=stop)
        began = time.monotonic()
        try:
            stop.heed(
                lambda: rollout.generate([Request([1, 2], 4)], temperature=1.0, seed=0), ranks=ranks, at_once=False
            )
        except Interrupted:
            result |= {"seconds": time.monotonic() - began, "left": engine.left, "signals": len(stop.received)}
    time.sleep(rank)
    polls, all_there = 0, ranks.arrive()
    while not all_there():
        polls += 1
        time.sleep(0.01)
    results[rank] = result | {"polls": polls, "gathered": ranks.gather(rank)}
    leave_ranks()


@pytest.fixture(scope="module")
def two_nodes():
    return spawn(worker, 2)


def test_groups_of_nodes_are_as_patient_as_that_of_all(two_nodes):
    for rank in (0, 1):
        assert two_nodes[rank]["replicate"] == (PATIENCE, 2) and two_nodes[rank]["shard"] == (PATIENCE, 1)


def test_a_signal_to_one_rank_ends_a_vllm_rollout_on_all_within_seconds(two_nodes):
    """Slurm and torchrun signal all ranks, but a single one may be told as well."""
    assert [two_nodes[rank]["signals"] for rank in (0, 1)] == [0, 1]
    assert all(two_nodes[rank]["left"] and two_nodes[rank]["seconds"] < 30 for rank in (0, 1)), two_nodes


def test_a_rank_that_waits_for_another_may_look_at_other_things(two_nodes):
    assert two_nodes[0]["polls"] > 10, "it has waited a second for the other one, which came late"
    assert [two_nodes[rank]["gathered"] for rank in (0, 1)] == [[0, 1]] * 2 and Ranks().arrive()()


class HostMemory(TorchDispatchMode):
    """Tensors that are made on the host without values."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if "empty" in str(function) and result.device.type == "cpu":
            self.made.append(tuple(result.shape))
        return result


def test_a_rank_that_is_sent_weights_uploads_none(monkeypatch):
    """30 GB of uninitialised host memory for a 7B model, on every rank but the first."""
    taken = []
    monkeypatch.setattr(
        "torch.distributed.tensor.distribute_tensor", lambda whole, mesh, placements: taken.append(whole) or whole
    )
    target = SimpleNamespace(
        to_local=None, shape=(64, 8), dtype=torch.float32, device=torch.device("meta"), device_mesh=None,
        placements=None, copy_=lambda source: None,
    )  # fmt: skip
    with HostMemory() as host:
        fsdp.fill(target, None)
        fsdp.fill(target, torch.zeros(64, 8))
    assert [(tensor.device.type, tuple(tensor.shape)) for tensor in taken] == [("meta", (64, 8))] * 2
    assert not host.made


def test_an_error_that_leaves_a_collective_behind_is_followed_by_none():
    class Hanging(Ranks):
        def gather(self, value):
            raise AssertionError("a collective that never ends")

    def fails():
        error = InputError("the NCCL transfer did not end")
        error.stuck = True
        raise error

    with pytest.raises(InputError, match="did not end") as caught:
        Hanging(0, 2).together(fails)
    assert not caught.value.everybody
