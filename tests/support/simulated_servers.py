"""Rollout servers and the network to them, simulated: every delay, fault and repair comes from a seed, and time is that
of a `VirtualLoop`. The fleet, the dispatch and the reading of answers are the real ones; what is replaced is HTTP.

A server's answer names the weights that it came from and the seed that it was asked for, so that whoever gets it can
tell whether it is the response of that job under those weights.
"""

import asyncio
import json
import random
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import aiohttp
import torch

from siri.rollout import dispatch, fleet
from siri.rollout.served import Server
from siri.rollout.vllm import Job, VllmOptions
from siri.rollout.worker import MANIFEST
from siri.runtime.ranks import Ranks
from tests.support.fake_server import CONFIG
from tests.support.virtual_time import VirtualLoop

TIMEOUT_S = 60.0
SLOWEST_S = 50.0
"""Between tokens of a server that is well: in longer than the time-out less a look at it, it counts as lost."""
VOCABULARY = 1 << 20
BASE = 7
"""The first token of what a server samples before it is given weights."""
MODEL = {"model_type": "simulated", "vocab_size": VOCABULARY}
POLICY: Any = SimpleNamespace(
    device=torch.device("cpu"),
    model=SimpleNamespace(config=SimpleNamespace(to_dict=lambda: dict(MODEL), vocab_size=VOCABULARY)),
)


def mark(version: str | None) -> int:
    """The first token of what is sampled under the weights of that name."""
    return BASE if version is None else 1000 + zlib.crc32(version.encode()) % 10**6


def response(job_seed: int, tokens: int, version: str | None) -> list[int]:
    """What a job samples under the weights of that name."""
    return [mark(version), *((job_seed * 31 + place) % VOCABULARY for place in range(1, tokens))]


@dataclass(eq=False)
class SimulatedServer:
    """A `vllm serve` process and its successors under one address."""

    url: str
    draw: random.Random
    sees_folder: bool = True
    up: bool = True
    silent_until: float = 0.0
    """It takes requests until then and answers none."""
    process: int = 0
    holds: str | None = None
    """Version of the weights in place, and whether they bear their name yet."""
    named: bool = False
    made: float = 0.0
    waiting: dict[asyncio.Future, None] = field(default_factory=dict)
    """What it is busy with: all of it breaks when the process ends."""
    oddities: list[str] = field(default_factory=list)
    """What becomes of the next answers."""
    begun: int = 0
    """Responses that it was asked for."""
    calls: asyncio.Lock = field(default_factory=asyncio.Lock)
    """vLLM's engine works off the calls of its workers one after the other: none comes in the middle of a load."""

    def end(self) -> None:
        """The process dies, and every connection to it breaks."""
        for future in self.waiting:
            if not future.done():
                future.set_exception(aiohttp.ClientOSError("reset by peer"))
        self.up = False

    def start(self) -> None:
        """Another process, which holds the weights that it was started with."""
        self.up, self.process, self.holds, self.named, self.made = True, self.process + 1, None, False, 0.0

    async def pause(self, seconds: float) -> None:
        """Be busy, and then silent for as long as it hangs; ClientOSError where the process ends meanwhile."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (left := max(end, self.silent_until) - loop.time()) > 1e-6:
            future = loop.create_future()
            timer = loop.call_later(left, lambda future=future: future.done() or future.set_result(None))
            self.waiting[future] = None
            try:
                await future
            finally:
                timer.cancel()
                del self.waiting[future]

    async def answer(self, url: str, body: Any) -> tuple[int, bytes]:
        """Status and body; ClientError where the connection breaks."""
        path = url.removeprefix(self.url)
        if not self.up:
            raise aiohttp.ClientConnectionError("refused")
        await self.pause(0.0)
        if path == "/v1/completions":
            return await self._complete(body)
        if path == "/collective_rpc":
            process = self.process
            async with self.calls:
                if process != self.process:
                    raise aiohttp.ClientOSError("reset by peer")
                return await self._rpc(body["method"], body["args"])
        said: Any = {
            "/version": {"version": "0.32.0"},
            "/server_info?config_format=json": {"vllm_config": CONFIG},
            "/v1/models": {"data": [{"id": "simulated", "max_model_len": 4096}]},
            "/reset_prefix_cache?reset_running_requests=true": {"success": True},
            "/is_paused": {"is_paused": False},
        }.get(path)
        if path == "/metrics":
            return 200, f'vllm:generation_tokens_total{{engine="0"}} {self.made}\n'.encode()
        return (200, json.dumps(said).encode()) if said is not None else (404, b"no such route")

    async def _rpc(self, method: str, arguments: list[Any]) -> tuple[int, bytes]:
        result: Any = None
        if method == "siri_about":
            result = {"model": MODEL, "dtype": "float32", "cache_tokens": 4096}
        elif method == "siri_version":
            result = self.holds if self.named else None
        elif method == "siri_process":
            result = f"process {self.process}"
        elif method == "siri_load":
            folder = Path(arguments[0])
            if not self.sees_folder or not (folder / MANIFEST).exists():
                result = {"unseen": True}
            else:
                manifest = json.loads((folder / MANIFEST).read_text())
                if not (self.named and self.holds == manifest["version"]):
                    self.named, self.holds = False, f"half of {manifest['version']}"
                    await self.pause(self.draw.uniform(0.1, 3.0))
                    self.holds = manifest["version"]
                sums = {name: [entry] for name, entry in manifest["sums"].items()}
                result = {"damaged": [], "sums": sums, "fused": {}}
        elif method == "siri_mark":
            self.named = bool(arguments[0])
        return 200, json.dumps({"results": [json.dumps(result)]}).encode()

    async def _complete(self, body: dict[str, Any]) -> tuple[int, bytes]:
        self.begun += 1
        count, version = body["max_tokens"], self.holds
        for _ in range(2):  # tokens are seen to come in between
            await self.pause(min(self.draw.expovariate(2.0 / count), SLOWEST_S))
            self.made += count / 2
        tokens = response(body["seed"], count, version if version == self.holds else "a mixture")
        odd = self.oddities.pop() if self.oddities else ""
        answer = {
            "model": "simulated",
            "choices": [
                {
                    "token_ids": tokens[:-1] if odd == "short" else tokens,
                    "logprobs": {"token_logprobs": [-1.0] * count},
                    "finish_reason": "abort" if odd == "abort" else "length",
                }
            ],
            "usage": {"completion_tokens": count},
        }
        if odd == "cut":
            raise aiohttp.ClientPayloadError("cut")
        if odd == "busy":
            return 503, b"busy"
        return 200, b"<html>" if odd == "html" else json.dumps(answer).encode()


class Network:
    """In the place of an aiohttp session: delays in both directions, and hosts that cannot be reached for a while."""

    def __init__(self, servers: list[SimulatedServer], draw: random.Random) -> None:
        self.servers = {server.url: server for server in servers}
        self.draw = draw
        self.cut_until: dict[str, float] = {}

    def request(self, verb: str, url: str, *, json: Any = None, timeout: Any, allow_redirects: bool) -> "_Exchange":
        assert not allow_redirects
        return _Exchange(self, url, json, timeout)

    def get(self, url: str, **options: Any) -> "_Exchange":
        return self.request("GET", url, **options)

    async def exchange(self, url: str, body: Any, limits: Any) -> tuple[int, bytes]:
        loop = asyncio.get_running_loop()
        server = next(server for address, server in self.servers.items() if url.startswith(address + "/"))
        async with asyncio.timeout(limits.total):
            await asyncio.sleep(self.draw.expovariate(50.0))
            if loop.time() < self.cut_until.get(server.url, 0.0):  # packets are lost: nobody says so
                await asyncio.sleep(limits.sock_connect or 10**6)
                raise aiohttp.ServerTimeoutError("no connection")
            answer = await server.answer(url, body)
            await asyncio.sleep(self.draw.expovariate(50.0))
            return answer


class _Exchange:
    """A request that is made on entry, and its response."""

    def __init__(self, network: Network, *request: Any) -> None:
        self.network, self.made = network, request
        self.headers: dict[str, str] = {}
        self.content = self

    async def __aenter__(self) -> "_Exchange":
        self.status, self.body = await self.network.exchange(*self.made)
        return self

    async def __aexit__(self, *_: Any) -> None:
        pass

    async def iter_chunked(self, size: int) -> Any:
        for begin in range(0, len(self.body), size):
            yield self.body[begin : begin + size]


class _HashedServer(Server):
    """One whose hash is that of its address, so that the order of a set is the same in each process."""

    def __hash__(self) -> int:
        return zlib.crc32(self.url.encode())


class SimulatedFleet(fleet.ServedEngine):
    """The fleet of one rank, over the simulated network."""

    def __init__(self, loop: VirtualLoop, network: Network, folder: Path, ranks: Ranks) -> None:
        self.loop, self.network = loop, network
        self.lost: list[tuple[float, str, str]] = []
        """When which server was lost, and why."""
        options = VllmOptions(
            model="simulated",
            tied=False,
            context=128,
            sequences=8,
            memory=0.5,
            servers=tuple(network.servers),
            insecure=True,
            sync="auto",
            sync_dir=folder,
            timeout_s=TIMEOUT_S,
            sync_timeout_s=TIMEOUT_S,
        )
        with patch.object(fleet, "Server", _HashedServer):
            super().__init__(options, POLICY, ranks=ranks)

    def do(self, work: Any) -> Any:
        """Inside of the schedule a coroutine; else what it comes to."""
        return work(self.network) if self.loop.is_running() else self.loop.run(work(self.network))

    def lose(self, server: Server, reason: str) -> None:
        self.lost.append((self.loop.time(), server.url, reason))
        super().lose(server, reason)


def clock_of(loop: VirtualLoop) -> Any:
    """Inside, what dispatches measure is the loop's time."""
    return patch.object(dispatch, "perf_counter", loop.time)


def jobs(draw: random.Random, count: int) -> list[Job]:
    """Jobs of a few tokens, each with a seed of its own."""
    return [Job([1, 2], draw.randint(1, 12), seed, ()) for seed in draw.sample(range(1, 10**6), count)]
