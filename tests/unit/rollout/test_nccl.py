"""The group over which weights travel by NCCL: made anew when its members are not the same processes any more."""

import asyncio
from types import SimpleNamespace

import pytest
import torch

from siri.errors import InputError
from siri.rollout.dispatch import ServerLost
from siri.rollout.nccl import NcclTransfer
from siri.rollout.vllm import weights
from siri.rollout.worker import SyncWorker
from siri.runtime.ranks import ALONE
from tests.support.tiny import tiny_policy


class Fleet:
    """Servers whose processes are named; what happens to them is noted."""

    ranks, dtype = ALONE, torch.float32
    options = SimpleNamespace(sync_timeout_s=20.0)

    def __init__(self) -> None:
        self.servers = [SimpleNamespace(url=f"http://n:{place}", fault="", workers=1) for place in range(2)]
        self.processes = {server.url: f"first {server.url}" for server in self.servers}
        self.transfer = NcclTransfer(self, tiny_policy())
        self.groups: list[list[str]] = []
        self.transfer._connect = self.connect

    def connect(self, up):
        self.groups.append([self.processes[url] for url in up])
        self.transfer.source = SimpleNamespace(stream=iter(()))
        return SimpleNamespace(send_weights=lambda: list(self.transfer.source.stream))

    async def rpc(self, session, server, method, *arguments, timeout):
        if server.url not in self.processes:
            raise ServerLost("no connection")
        return [self.processes[server.url]] if method == "siri_process" else [{"sums": {}, "fused": {}}]

    async def settle(self, *_):
        pass

    def lose(self, server, reason):
        server.fault = reason
        self.transfer.forget()

    def do(self, work):
        return asyncio.run(work(None))

    def sync(self):
        self.transfer.send(weights(self.transfer.policy, torch.float32), "v")


def test_a_server_that_was_restarted_unnoticed_gets_a_new_group():
    fleet = Fleet()
    fleet.sync()
    fleet.sync()
    assert fleet.groups == [["first http://n:0", "first http://n:1"]], "nothing has changed"
    fleet.processes["http://n:1"] = "second"
    fleet.sync()
    assert fleet.groups[1:] == [["first http://n:0", "second"]], "the same address, another process"


def test_a_server_that_was_lost_gets_a_new_group_even_as_the_same_process():
    fleet = Fleet()
    fleet.sync()
    fleet.lose(fleet.servers[0], "no new token")
    fleet.servers[0].fault = ""
    fleet.sync()
    assert len(fleet.groups) == 2


def test_a_server_that_dies_before_a_sync_is_left_out_of_it():
    fleet = Fleet()
    fleet.sync()
    del fleet.processes["http://n:0"]
    fleet.sync()
    assert fleet.groups[1:] == [["first http://n:1"]] and "no connection" in fleet.servers[0].fault
    del fleet.processes["http://n:1"]
    with pytest.raises(InputError, match="no rollout server answers"):
        fleet.sync()


def test_a_transfer_that_hangs_leaves_a_collective_behind():
    fleet = Fleet()
    fleet.options = SimpleNamespace(sync_timeout_s=0.2)
    waited = asyncio.Event()

    def hangs(up):
        sender = fleet.connect(up)
        sender.send_weights = lambda: asyncio.run(waited.wait())
        return sender

    fleet.transfer._connect = hangs
    with pytest.raises(InputError, match=r"did not end within 0.2 s") as caught:
        fleet.sync()
    assert caught.value.stuck


def test_each_process_of_a_server_has_a_name():
    first, second = SyncWorker(), SyncWorker()
    assert first.siri_process() == first.siri_process() != second.siri_process()
