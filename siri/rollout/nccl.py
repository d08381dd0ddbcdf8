"""vLLM's weight transfer to servers over NCCL: all of its interface that the served mode uses."""

import asyncio
import socket
import threading
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import torch

from siri.errors import InputError, first_line
from siri.model.adapters import base_parameters
from siri.model.policy import Policy
from siri.rollout.answers import read_held, text
from siri.rollout.dispatch import BadAnswer, ServerLost
from siri.rollout.worker import Sums, checksum


class NcclTransfer:
    """vLLM's weight transfer over NCCL; rank 0 sends, all ranks gather. NOT RUN on GPUs yet.

    The group spans the processes of the servers that are up; when one is lost, or another took its place at the same
    address, the next sync makes a new one.
    """

    def __init__(self, engine: Any, policy: Policy) -> None:
        self.engine, self.policy = engine, policy
        self.members: dict[str, list[str]] | None = None
        """By the address of each server, its workers' processes."""
        self.sender: Any = None
        self.sums: Sums = {}

    def send(self, weights: Iterator[tuple[str, torch.Tensor]], version: str) -> None:
        """Every rank calls it. InputError when it takes longer than the time-out: a server died in the middle, and the
        collective cannot be left."""
        ranks, timeout = self.engine.ranks, self.engine.options.sync_timeout_s
        up, same = ranks.on_main(self._reached)
        failed: list[BaseException] = []

        def work() -> None:
            try:
                if self.policy.device.type == "cuda":
                    torch.cuda.set_device(self.policy.device)
                if not same:
                    self.sender = self._connect(up)
                    self.members = up
                self.source.stream = self._counted(weights)
                self.sender.send_weights()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(timeout)
        if thread.is_alive():
            error = InputError(f"weight {version}: the NCCL transfer did not end within {timeout:g} s; use --resume")
            error.stuck = True
            raise error
        if failed:
            raise InputError(f"weight {version}: the NCCL transfer failed: {first_line(failed[0])}") from failed[0]
        if ranks.main:
            self._settle()

    def forget(self) -> None:
        """A server was lost: the group that it was in is of no more use."""
        self.members = None

    def _reached(self) -> tuple[dict[str, list[str]], bool]:
        """On rank 0: the servers that answer, their weights without a name from now on, and whether the group of the
        sync before is still theirs. A server that does not answer is lost; InputError when none is left."""
        engine, timeout = self.engine, self.engine.options.sync_timeout_s
        up: dict[str, list[str]] = {}

        async def work(session: Any) -> None:
            for server in [server for server in engine.servers if not server.fault]:
                try:
                    processes = await engine.rpc(session, server, "siri_process", timeout=timeout)
                    await engine.rpc(session, server, "siri_mark", "", timeout=timeout)
                    up[server.url] = [text(process, "siri_process") for process in processes]
                except (ServerLost, BadAnswer) as error:
                    engine.lose(server, f"weight sync interrupted: {error}")

        engine.do(work)
        if not up:
            raise InputError("no rollout server answers; start them again and use --resume")
        return up, up == self.members

    def _counted(self, weights: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        self.sums = {}
        for name, tensor in weights:
            if self.engine.ranks.main:
                self.sums[name] = checksum(tensor)
            yield name, tensor

    def _settle(self) -> None:
        engine = self.engine

        async def work(session: Any) -> None:
            for server in [server for server in engine.servers if not server.fault]:
                held = await engine.rpc(session, server, "siri_present", timeout=engine.options.sync_timeout_s)
                await engine.settle(session, server, read_held(held), self.sums)

        engine.do(work)

    def _connect(self, up: Collection[str]) -> Any:
        # vLLM is an extra
        from vllm.distributed.weight_transfer.base import (  # pyright: ignore[reportMissingImports]
            ParamMeta,
            WeightSource,
        )
        from vllm.distributed.weight_transfer.factory import (  # pyright: ignore[reportMissingImports]
            WeightTransferTrainerFactory,
        )
        from vllm.distributed.weight_transfer.nccl_engine import (  # pyright: ignore[reportMissingImports]
            NCCLTrainerInitInfo,
        )

        engine = self.engine
        servers = [server for server in engine.servers if server.url in up]
        if self.sender is not None and engine.ranks.main:
            with suppress(ServerLost, BadAnswer, InputError):  # a new process knows nothing of the group
                Fan(engine, servers).shutdown_weight_transfer_engine()
        named = base_parameters(self.policy.model)
        declared = [ParamMeta(name, engine.dtype, tuple(parameter.shape)) for name, parameter in named]
        self.source = weight_source(WeightSource, declared)
        host, port = engine.ranks.broadcast(_meeting_point(servers[0].url) if engine.ranks.main else None)
        init = NCCLTrainerInitInfo(
            master_address=host,
            master_port=port,
            world_size=1 + sum(server.workers for server in servers),
            rank=engine.ranks.rank,
        )
        return WeightTransferTrainerFactory.trainer_init(init, client=Fan(engine, servers), source=self.source)


def weight_source(base: type, declared: list[Any]) -> Any:
    """A vLLM WeightSource of the tensors `declared`; its `stream` is what the next pass yields. vLLM 0.33 renamed the
    pass and made metadata a cached property."""

    def one_pass(self: Any) -> Iterator[tuple[str, torch.Tensor]]:
        return self.stream

    if hasattr(base, "iter_full"):
        metadata = cached_property(lambda self: declared)
        metadata.__set_name__(base, "metadata")
        body: dict[str, Any] = {"metadata": metadata, "iter_full": one_pass}
    else:
        body = {"metadata": lambda self: declared, "__iter__": one_pass}
    return type("Source", (base,), body)()


class Fan:
    """vLLM's control calls of a weight transfer, to several servers at once."""

    def __init__(self, engine: Any, servers: list[Any]) -> None:
        self.engine, self.servers = engine, servers

    def _post(self, path: str, bodies: list[Any]) -> None:
        engine = self.engine

        async def work(session: Any) -> None:
            timeout = engine.options.sync_timeout_s
            calls = zip(self.servers, bodies, strict=True)
            await asyncio.gather(
                *(engine.http(session, server, "POST", path, body, timeout=timeout) for server, body in calls)
            )

        engine.do(work)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """The workers of one server follow those of the one before."""
        bodies, offset = [], init_info["rank_offset"]
        for server in self.servers:
            bodies.append({"init_info": {**init_info, "rank_offset": offset}})
            offset += server.workers
        self._post("/init_weight_transfer_engine", bodies)

    def start_weight_update(self) -> None:
        self._post("/start_weight_update", [None] * len(self.servers))

    def update_weights(self, update_info: Any) -> None:
        self._post("/update_weights", [{"update_info": update_info}] * len(self.servers))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._post("/finish_weight_update", [{"weight_version": weight_version}] * len(self.servers))

    def shutdown_weight_transfer_engine(self) -> None:
        self._post("/shutdown_weight_transfer_engine", [None] * len(self.servers))


def _meeting_point(url: str) -> tuple[str, int]:
    """This machine's address as seen from a server's network, and a free port."""
    parts = urlsplit(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((parts.hostname, parts.port or 80))  # sends nothing, but chooses the interface
        host = probe.getsockname()[0]
    with socket.socket() as free:
        free.bind(("", 0))
        return host, free.getsockname()[1]
