"""vLLM behind URLs: the HTTP routes of vLLM that the served mode uses; weights over NCCL are in `siri.rollout.nccl`.

What is done with the servers is in `siri.rollout.fleet`; what they load of ours in `siri.rollout.worker`.
"""

import asyncio
import json
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from siri.errors import InputError, first_line
from siri.model.policy import Policy
from siri.rollout import Completion
from siri.rollout.answers import (
    MOST_BYTES,
    array,
    completion_bytes,
    parsed,
    read_about,
    read_completion,
    read_results,
    read_tokens_made,
    read_version,
    shown,
    table,
    text,
    whole,
)
from siri.rollout.dispatch import BadAnswer, ServerLost
from siri.rollout.guard import SECRET, headers
from siri.rollout.vllm import Job, VllmOptions, check_version
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


class _Stay(HTTPRedirectHandler):
    """Follows no redirect: the answer of the address itself counts."""

    def redirect_request(self, *_: Any) -> None:
        return None


def version_of(url: str) -> str | None:
    """Version of the vLLM that answers there; None if nothing does."""
    try:
        request = Request(f"{url}/version", headers=headers())
        with build_opener(ProxyHandler({}), _Stay()).open(request, timeout=5) as answer:
            return text(table(parsed(answer.read(2**20), "/version"), "/version").get("version"), "the version")
    except (OSError, HTTPException, ValueError, BadAnswer, OverflowError):
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
        if table(cleared, "/reset_prefix_cache").get("success") is not True:
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
        most = completion_bytes(job)
        answer = await self.http(session, server, "POST", "/v1/completions", body, timeout=None, most=most)
        model, completion = read_completion(answer, job, vocabulary=self.policy.model.config.vocab_size)
        if model != server.model:
            raise InputError(f"rollout server {server.url} answered as {model!r} instead of {server.model!r}")
        return completion

    async def tokens_made(self, session: Any, server: Server, timeout: float) -> float | None:
        """How many tokens the server has sampled since it started; None if it does not say. TimeoutError is the
        caller's."""
        import aiohttp

        try:
            url = server.url + "/metrics"
            async with session.get(
                url, timeout=aiohttp.ClientTimeout(total=timeout), allow_redirects=False
            ) as response:
                metrics = await self._body(response, MOST_BYTES)
        except TimeoutError:
            raise
        except (aiohttp.ClientError, OSError) as error:
            raise ServerLost(f"no connection ({first_line(error) or type(error).__name__})") from None
        return read_tokens_made(metrics.decode(errors="replace"))

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
        version = table(await self.http(session, server, "GET", "/version", timeout=timeout), "/version").get("version")
        check_version(text(version, "the version"), server.url)
        info = await self.http(session, server, "GET", "/server_info?config_format=json", timeout=timeout)
        config = table(table(info, "/server_info").get("vllm_config"), "vllm_config")
        for path, allowed, remedy in REQUIRED:
            value: Any = config
            for key in path.split("."):
                value = value.get(key) if isinstance(value, dict) else None
            if value not in allowed:
                raise InputError(f"rollout server {server.url}: {path} is {shown(value)}; {remedy}")
        models = table(await self.http(session, server, "GET", "/v1/models", timeout=timeout), "/v1/models").get("data")
        (served,) = array(models, "the models that it serves", most=1) or [None]
        served = table(served, "the model")
        server.model = text(served.get("id"), "the model's name")
        if whole(served.get("max_model_len"), "max_model_len") < self.options.context:
            raise InputError(
                f"rollout server {server.url} holds {served['max_model_len']} tokens, but the longest prompt and cap "
                f"make {self.options.context}; start it with --max-model-len {self.options.context}"
            )
        server.workers = 0  # not known yet
        about = await self.rpc(session, server, "siri_about", timeout=timeout)
        model, server.dtype, server.cache_tokens = read_about(about)
        own = json.loads(json.dumps(self.policy.model.config.to_dict(), default=str))
        for key in SAME:
            if model.get(key) != own.get(key):
                way = "start it with the model that is trained"
                if key == "tie_word_embeddings":  # config.json may say otherwise than the files
                    way += f", and --hf-overrides '{json.dumps({key: own.get(key)})}' where its config.json is wrong"
                raise InputError(
                    f"rollout server {server.url} serves another model: its {key} is {shown(model.get(key))}, "
                    f"the trainer's {own.get(key)}; {way}"
                )
        server.workers = len(about)
        scheduler = table(config.get("scheduler_config"), "scheduler_config")
        server.most = whole(scheduler.get("max_num_seqs"), "max_num_seqs", least=1, most=10**6)
        transfer = table(config.get("weight_transfer_config") or {}, "weight_transfer_config")
        server.weight_transfer = transfer.get("backend")
        if await self.tokens_made(session, server, timeout) is None:
            raise InputError(
                f"rollout server {server.url} does not count its tokens; start it without --disable-log-stats"
            )

    async def held(self, session: Any, server: Server) -> str | None:
        """Version of the weights that the server's workers hold; None if there is none, or not one."""
        return read_version(await self.rpc(session, server, "siri_version", timeout=self.options.timeout_s))

    async def rpc(self, session: Any, server: Server, method: str, *args: str, timeout: float) -> list[Any]:
        """What each of the server's workers answers to one of `SyncWorker`'s methods."""
        body = {"method": method, "args": list(args)}
        answer = await self.http(session, server, "POST", "/collective_rpc", body, timeout=timeout)
        return read_results(answer, method, workers=server.workers)

    async def http(
        self,
        session: Any,
        server: Server,
        verb: str,
        path: str,
        body: Any = None,
        *,
        timeout: float | None,
        most: int = 0,
    ) -> Any:
        """One HTTP request; the JSON of the answer, which has at most `most` bytes (0 = MOST_BYTES). timeout: seconds
        for all of it, None = somebody else watches."""
        import aiohttp

        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=min(10.0, self.options.timeout_s))
        try:
            async with session.request(
                verb, server.url + path, json=body, timeout=limits, allow_redirects=False
            ) as response:
                said = await self._body(response, most or MOST_BYTES)
                status = response.status
        except aiohttp.ClientPayloadError:
            raise BadAnswer("the answer broke off") from None
        except (TimeoutError, aiohttp.ServerTimeoutError):
            raise ServerLost(
                f"no answer to {path.split('?')[0]} within {timeout or self.options.timeout_s:g} s"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise ServerLost(f"no connection ({first_line(error) or type(error).__name__})") from None
        words = said[:800].decode(errors="replace")
        if 300 <= status < 400:
            raise BadAnswer(f"HTTP {status}: it sends elsewhere, where the trainer does not follow")
        if status in (408, 425, 429) or status >= 500:
            raise BadAnswer(f"HTTP {status}: {words[:120]!r}")
        if status == 401:
            raise InputError(f"rollout server {server.url} wants another secret; set {SECRET} as it was set there")
        if status == 404 and path.startswith(("/server_info", "/collective_rpc", "/reset_prefix_cache")):
            raise InputError(f"rollout server {server.url} has no {path.split('?')[0]}; start it with {LAUNCH}")
        if status >= 400:
            raise InputError(f"rollout server {server.url} refuses {path}: HTTP {status}: {words[:200]!r}")
        return parsed(said, path)

    async def _body(self, response: Any, most: int) -> bytes:
        """An answer, as long as it is plain and of at most `most` bytes."""
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise BadAnswer("it compresses its answers, for which it was not asked")
        said = bytearray()
        async for piece in response.content.iter_chunked(1 << 16):
            said += piece
            if len(said) > most:
                raise BadAnswer(f"its answer has more than {most:,} bytes")
        return bytes(said)

    def do(self, work: Any) -> Any:
        import aiohttp

        async def inside() -> Any:
            # nothing is unpacked here: some kB of gzip may hold gigabytes
            plain = {"Accept-Encoding": "identity", **headers()}
            async with aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), headers=plain, auto_decompress=False
            ) as session:
                return await work(session)

        return asyncio.run(inside())
