"""vLLM behind URLs: all of vLLM's own interface that the served mode uses, HTTP routes and NCCL weight transfer.

What is done with the servers is in `siri.rollout.fleet`; what they load of ours in `siri.rollout.worker`.
"""

import asyncio
import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

import torch

from siri.errors import InputError, first_line
from siri.model.policy import Policy
from siri.rollout import Completion
from siri.rollout.dispatch import BadAnswer, ServerLost
from siri.rollout.vllm import Job, VllmOptions, check_version
from siri.rollout.worker import Sums, bit_sum
from siri.runtime.ranks import Ranks

LAUNCH = (
    "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs --generation-config vllm "
    "--worker-extension-cls siri.rollout.worker.SyncWorker"
)
"""How a server has to be started; launch/serve.sh does."""
REQUIRED: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("model_config.logprobs_mode", ("processed_logprobs",), "start it with --logprobs-mode processed_logprobs"),
    ("model_config.generation_config", ("vllm",), "start it with --generation-config vllm"),
    ("model_config.override_generation_config", ({}, None), "start it without --override-generation-config"),
    ("model_config.quantization", (None,), "start it without quantization"),
    ("model_config.logits_processors", ([], None), "start it without logits processors"),
    ("cache_config.cache_dtype", ("auto", "bfloat16", "float16", "float32"), "start it with --kv-cache-dtype auto"),
    ("speculative_config", (None,), "start it without speculative decoding"),
    ("watermark_config", (None,), "start it without a watermark"),
    ("lora_config", (None,), "start it without LoRA"),
    ("parallel_config.data_parallel_size", (1,), "start one server for each replica"),
    (
        "parallel_config.worker_extension_cls",
        ("siri.rollout.worker.SyncWorker",),
        "start it with --worker-extension-cls siri.rollout.worker.SyncWorker",
    ),
)
"""Settings of a server under which it samples from the plain softmax and says so: anything else would bias the loss."""
SAME = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SAME += ("num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "rope_parameters")
"""What trainer and server must agree on in the model's config."""


@dataclass(eq=False)
class Server:
    """One `vllm serve` process."""

    url: str
    model: str = ""
    cache_tokens: int = 0
    most: int = 0
    """Responses it runs at once."""
    weight_transfer: str | None = None
    """Backend of vLLM's weight transfer, if it was started with one."""
    dtype: str = ""
    workers: int = 1
    fault: str = ""
    """Why it is not used; empty while it is."""


def version_of(url: str) -> str | None:
    """Version of the vLLM that answers there; None if nothing does."""
    try:
        with build_opener(ProxyHandler({})).open(f"{url}/version", timeout=5) as answer:
            return json.loads(answer.read())["version"]
    except (OSError, HTTPException, ValueError, KeyError, TypeError, OverflowError):
        return None


class ServerApi:
    """Requests to `vllm serve` processes, as the trainer's options and model want them."""

    def __init__(self, options: VllmOptions, policy: Policy, ranks: Ranks) -> None:
        self.options, self.policy, self.ranks = options, policy, ranks

    async def clear_cache(self, session: Any, server: Server) -> None:
        """Drop the keys and values of prompts seen with other weights."""
        # what still runs there, for another rank or for nobody since its connection broke, is computed again
        path = "/reset_prefix_cache?reset_running_requests=true"
        cleared = await self.http(session, server, "POST", path, timeout=self.options.timeout_s)
        if not cleared["success"]:
            raise BadAnswer("it kept its prefix cache, which holds keys of old weights")

    async def sample(self, session: Any, server: Server, job: Job, temperature: float) -> Completion:
        """One response, as plain sampling gives it. Whoever calls watches for a hang: a long response takes minutes."""
        body = {
            "model": server.model,
            "prompt": job.prompt_ids,
            "max_tokens": job.max_tokens,
            "temperature": temperature,
            "seed": job.seed,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": list(job.stop_ids),
            "ignore_eos": True,  # what ends a response is in stop_ids, the same for every engine
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
        }
        answer = await self.http(session, server, "POST", "/v1/completions", body, timeout=None)
        try:
            (choice,) = answer["choices"]
            tokens, logp, reason = choice["token_ids"], choice["logprobs"]["token_logprobs"], choice["finish_reason"]
            model, counted = answer["model"], answer["usage"]["completion_tokens"]
        except (KeyError, TypeError, ValueError):
            raise BadAnswer(f"no completion: {str(answer)[:80]!r}") from None
        if model != server.model:
            raise InputError(f"rollout server {server.url} answered as {model!r} instead of {server.model!r}")
        if reason not in ("stop", "length") or not tokens or not len(tokens) == len(logp) == counted:
            raise BadAnswer(f"{len(tokens)} tokens, {len(logp)} log-probs, {counted} counted, ended by {reason!r}")
        if reason == "length" and len(tokens) != job.max_tokens:
            raise BadAnswer(f"cut after {len(tokens)} tokens under a cap of {job.max_tokens}")
        return Completion(tokens, logp, reason == "length")

    async def tokens_made(self, session: Any, server: Server, timeout: float) -> float | None:
        """How many tokens the server has sampled since it started; None if it does not say. TimeoutError is the
        caller's."""
        import aiohttp

        try:
            async with session.get(server.url + "/metrics", timeout=aiohttp.ClientTimeout(total=timeout)) as response:
                text = await response.text()
        except TimeoutError:
            raise
        except (aiohttp.ClientError, OSError) as error:
            raise ServerLost(f"no connection ({first_line(error) or type(error).__name__})") from None
        found = re.findall(r"^vllm:generation_tokens_total(?:\{.*\})? (\S+)", text, re.MULTILINE)
        return sum(map(float, found)) if found else None

    async def check(self, session: Any, server: Server) -> None:
        """Refuse a server that samples anything else than the trainer's model would. BadAnswer for one that answers as
        no vLLM does."""
        try:
            await self._check(session, server)
        except TimeoutError:
            raise ServerLost(f"no answer to /metrics within {self.options.timeout_s:g} s") from None
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise BadAnswer(f"it does not answer as vLLM does ({type(error).__name__}: {first_line(error)})") from None

    async def _check(self, session: Any, server: Server) -> None:
        timeout = self.options.timeout_s
        check_version((await self.http(session, server, "GET", "/version", timeout=timeout))["version"], server.url)
        info = await self.http(session, server, "GET", "/server_info?config_format=json", timeout=timeout)
        config = info["vllm_config"]
        for path, allowed, remedy in REQUIRED:
            value: Any = config
            for key in path.split("."):
                value = value.get(key) if isinstance(value, dict) else None
            if value not in allowed:
                raise InputError(f"rollout server {server.url}: {path} is {value!r}; {remedy}")
        (served,) = (await self.http(session, server, "GET", "/v1/models", timeout=timeout))["data"]
        server.model = served["id"]
        if served["max_model_len"] < self.options.context:
            raise InputError(
                f"rollout server {server.url} holds {served['max_model_len']} tokens, but the longest prompt and cap "
                f"make {self.options.context}; start it with --max-model-len {self.options.context}"
            )
        about = await self.rpc(session, server, "siri_about", timeout=timeout)
        own = json.loads(json.dumps(self.policy.model.config.to_dict(), default=str))
        for key in SAME:
            if about[0]["model"].get(key) != own.get(key):
                way = "start it with the model that is trained"
                if key == "tie_word_embeddings":  # config.json may say otherwise than the files
                    way += f", and --hf-overrides '{json.dumps({key: own.get(key)})}' where its config.json is wrong"
                raise InputError(
                    f"rollout server {server.url} serves another model: its {key} is {about[0]['model'].get(key)}, "
                    f"the trainer's {own.get(key)}; {way}"
                )
        server.cache_tokens, server.dtype = about[0]["cache_tokens"], about[0]["dtype"]
        server.workers = len(about)
        server.most = config["scheduler_config"]["max_num_seqs"]
        server.weight_transfer = (config.get("weight_transfer_config") or {}).get("backend")
        if await self.tokens_made(session, server, timeout) is None:
            raise InputError(
                f"rollout server {server.url} does not count its tokens; start it without --disable-log-stats"
            )

    async def held(self, session: Any, server: Server) -> str | None:
        """Version of the weights that the server's workers hold; None if there is none, or not one."""
        versions = set(await self.rpc(session, server, "siri_version", timeout=self.options.timeout_s))
        return versions.pop() if len(versions) == 1 else None

    async def rpc(self, session: Any, server: Server, method: str, *args: str, timeout: float) -> list[Any]:
        """What each of the server's workers answers to one of `SyncWorker`'s methods."""
        body = {"method": method, "args": list(args)}
        answer = await self.http(session, server, "POST", "/collective_rpc", body, timeout=timeout)
        try:
            return [json.loads(result) for result in answer["results"]]
        except (KeyError, TypeError, ValueError):
            raise BadAnswer(f"{method} was answered with {str(answer)[:80]!r}") from None

    async def http(
        self, session: Any, server: Server, verb: str, path: str, body: Any = None, *, timeout: float | None
    ) -> Any:
        """One HTTP request; the JSON of the answer. timeout: seconds for all of it, None = somebody else watches."""
        import aiohttp

        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=min(10.0, self.options.timeout_s))
        try:
            async with session.request(verb, server.url + path, json=body, timeout=limits) as response:
                text = await response.text()
                status = response.status
        except aiohttp.ClientPayloadError:
            raise BadAnswer("the answer broke off") from None
        except (TimeoutError, aiohttp.ServerTimeoutError):
            raise ServerLost(
                f"no answer to {path.split('?')[0]} within {timeout or self.options.timeout_s:g} s"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise ServerLost(f"no connection ({first_line(error) or type(error).__name__})") from None
        if status in (408, 425, 429) or status >= 500:
            raise BadAnswer(f"HTTP {status}: {text[:120]!r}")
        if status == 404 and path.startswith(("/server_info", "/collective_rpc", "/reset_prefix_cache")):
            raise InputError(f"rollout server {server.url} has no {path.split('?')[0]}; start it with {LAUNCH}")
        if status >= 400:
            raise InputError(f"rollout server {server.url} refuses {path}: HTTP {status}: {text[:200]!r}")
        try:
            return json.loads(text)
        except ValueError:
            raise BadAnswer(f"{path} was answered with what is no JSON: {text[:80]!r}") from None

    def do(self, work: Any) -> Any:
        import aiohttp

        async def inside() -> Any:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
                return await work(session)

        return asyncio.run(inside())


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
                self.sums[name] = [bit_sum(tensor), tensor.numel()]
            yield name, tensor

    def _everywhere(self, method: str, *arguments: str, check: bool = False) -> None:
        engine = self.engine

        async def work(session: Any) -> None:
            for server in [one for one in engine.servers if not one.fault]:
                found = await engine.rpc(session, server, method, *arguments, timeout=engine.options.sync_timeout_s)
                if check:
                    await engine.settle(session, server, found, self.sums)

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
