"""vLLM's weight transfer to servers over NCCL: all of its interface that the served mode uses."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import torch

from siri.errors import InputError, first_line
from siri.model.policy import Policy
from siri.rollout.answers import read_held
from siri.rollout.worker import Sums, checksum


class NcclTransfer:
    """vLLM's weight transfer over NCCL; rank 0 sends, all ranks gather. NOT RUN on GPUs yet.

    The group spans the servers that are up; when one is lost or comes back, the next sync makes a new one.
    """

    def __init__(self, engine: Any, policy: Policy) -> None:
        self.engine, self.policy = engine, policy
        self.members: list[Any] | None = None
        self.sender: Any = None
        self.sums: Sums = {}

    def send(self, weights: Iterator[tuple[str, torch.Tensor]], version: str) -> None:
        """Every rank calls it. InputError when it takes longer than the time-out: a server died in the middle, and the
        collective cannot be left."""
        ranks, timeout = self.engine.ranks, self.engine.options.sync_timeout_s
        up = ranks.broadcast([server.url for server in self.engine.servers if not server.fault])
        if ranks.main:
            self._everywhere("siri_mark", "")
        failed: list[BaseException] = []

        def work() -> None:
            try:
                if self.policy.device.type == "cuda":
                    torch.cuda.set_device(self.policy.device)
                if up != self.members:
                    self.sender, self.members = self._connect(up), up
                self.source.stream = self._counted(weights)
                self.sender.send_weights()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(timeout)
        if thread.is_alive():
            raise InputError(f"weight {version}: the NCCL transfer did not end within {timeout:g} s; use --resume")
        if failed:
            raise InputError(f"weight {version}: the NCCL transfer failed: {first_line(failed[0])}") from failed[0]
        if ranks.main:
            self._everywhere("siri_present", check=True)

    def _counted(self, weights: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        self.sums = {}
        for name, tensor in weights:
            if self.engine.ranks.main:
                self.sums[name] = checksum(tensor)
            yield name, tensor

    def _everywhere(self, method: str, *arguments: str, check: bool = False) -> None:
        engine = self.engine

        async def work(session: Any) -> None:
            for server in [one for one in engine.servers if not one.fault]:
                found = await engine.rpc(session, server, method, *arguments, timeout=engine.options.sync_timeout_s)
                if check:
                    await engine.settle(session, server, read_held(found), self.sums)

        engine.do(work)

    def _connect(self, up: list[str]) -> Any:
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
        if self.sender is not None:
            Fan(engine, servers).shutdown_weight_transfer_engine()
        named = self.policy.model.named_parameters()
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
