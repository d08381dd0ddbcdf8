"""vLLM behind URLs: the HTTP routes of vLLM that the served mode uses; weights over NCCL are in `siri.rollout.nccl`.

What is done with the servers is in `siri.rollout.fleet`; what they load of ours in `siri.rollout.worker`.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from siri.errors import InputError, first_line
from siri.model.identity import SHAPE
from siri.model.policy import Policy
from siri.rollout import Completion
from siri.rollout.address import brought_along, refuse_open
from siri.rollout.answers import (
    MOST_BYTES,
    StreamReader,
    array,
    completion_bytes,
    excerpt,
    parsed,
    read_about,
    read_completion,
    read_results,
    read_tokens_made,
    read_version,
    table,
    text,
    whole_number,
)
from siri.rollout.dispatch import BadAnswer, ServerLost
from siri.rollout.guard import SECRET
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
PAUSED = "/is_paused"
"""The route that says whether a server is paused."""
DEVELOPMENT = ("/server_info", "/collective_rpc", "/reset_prefix_cache", "/pause", "/resume")
"""Routes of a server that is started for a trainer."""
STREAMED = 16
"""Tokens of a response that a server sends at once: what a lost server may cost of each, and a message for so many."""
Extend = Callable[[list[int], list[float]], None]


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
    process: tuple[str, ...] = ()
    """Which process it was when it was last found to hold the weights: the names of its workers."""
    fault: str = ""
    """Why it is not used; empty while it is."""


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
        most = completion_bytes(job)
        body = _plain_sampling(server, job, temperature)
        answer = await self.http(session, server, "POST", "/v1/completions", body, timeout=None, most=most)
        model, completion = read_completion(answer, job, vocabulary=self.policy.model.config.vocab_size)
        if model != server.model:
            raise InputError(f"rollout server {server.url} answered as {model!r} instead of {server.model!r}")
        return completion

    async def stream(self, session: Any, server: Server, job: Job, temperature: float, extend: Extend) -> str:
        """One response as it comes; `extend` takes its tokens and their log-probs. Returns why it ended: "stop",
        "length", or "abort" where the server was paused. ServerLost or BadAnswer where it broke off: what came until
        then is good. Whoever calls watches for a hang."""
        import aiohttp

        body = _plain_sampling(server, job, temperature)
        body |= {"stream": True, "stream_options": {"include_usage": True}, "stream_interval": STREAMED}
        reader = StreamReader(job, server.model, self.policy.model.config.vocab_size)
        limits = aiohttp.ClientTimeout(total=None, sock_connect=min(10.0, self.options.timeout_s))
        try:
            async with session.post(
                f"{server.url}/v1/completions", json=body, timeout=limits, allow_redirects=False
            ) as response:
                if response.status != 200:
                    said = await self._body(response, MOST_BYTES)
                    self.refuse(server, "/v1/completions", response.status, said)
                left = completion_bytes(job)
                async for piece in response.content.iter_any():
                    left -= len(piece)
                    if left < 0:
                        raise BadAnswer(f"its answer has more than {completion_bytes(job):,} bytes")
                    for tokens, logp in reader.feed(piece):
                        extend(tokens, logp)
        except TimeoutError:
            raise ServerLost(f"no connection within {limits.sock_connect:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise ServerLost(f"no connection ({first_line(error) or type(error).__name__})") from None
        return reader.end()

    async def pause_server(self, session: Any, server: Server) -> None:
        """End what runs there, for every rank, with all the tokens it has; what is asked for from now on waits."""
        answer = await self.http(session, server, "POST", "/pause?mode=abort", timeout=self.options.timeout_s)
        if table(answer, "/pause").get("status") != "paused":
            raise BadAnswer(f"/pause was answered with {excerpt(answer)}")

    async def resume_server(self, session: Any, server: Server) -> None:
        """Go on after a pause."""
        answer = await self.http(session, server, "POST", "/resume", timeout=self.options.timeout_s)
        if table(answer, "/resume").get("status") != "resumed":
            raise BadAnswer(f"/resume was answered with {excerpt(answer)}")

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
        await asyncio.to_thread(refuse_open, server.url, insecure=self.options.insecure)
        info = await self.http(session, server, "GET", "/server_info?config_format=json", timeout=timeout)
        config = table(table(info, "/server_info").get("vllm_config"), "vllm_config")
        for path, allowed, remedy in REQUIRED:
            value: Any = config
            for key in path.split("."):
                value = value.get(key) if isinstance(value, dict) else None
            if value not in allowed:
                raise InputError(f"rollout server {server.url}: {path} is {excerpt(value)}; {remedy}")
        models = table(await self.http(session, server, "GET", "/v1/models", timeout=timeout), "/v1/models").get("data")
        (served,) = array(models, "the models that it serves", most=1) or [None]
        served = table(served, "the model")
        server.model = text(served.get("id"), "the model's name")
        if whole_number(served.get("max_model_len"), "max_model_len") < self.options.context:
            raise InputError(
                f"rollout server {server.url} holds {served['max_model_len']} tokens, but the longest prompt and cap "
                f"make {self.options.context}; start it with --max-model-len {self.options.context}"
            )
        server.workers = 0  # not known yet
        about = await self.rpc(session, server, "siri_about", timeout=timeout)
        model, server.dtype, server.cache_tokens = read_about(about)
        trained = json.loads(json.dumps(self.policy.model.config.to_dict(), default=str))
        for key in SHAPE:
            if model.get(key) != trained.get(key):
                way = "start it with the model that is trained"
                if key == "tie_word_embeddings":  # config.json may say otherwise than the files
                    way += (
                        f", and --hf-overrides '{json.dumps({key: trained.get(key)})}' where its config.json is wrong"
                    )
                raise InputError(
                    f"rollout server {server.url} serves another model: its {key} is {excerpt(model.get(key))}, "
                    f"the trainer's {trained.get(key)}; {way}"
                )
        server.workers = len(about)
        paused = await self.http(session, server, "GET", PAUSED, timeout=timeout)
        if table(paused, PAUSED).get("is_paused") is not False:  # by a trainer that was killed in a sync
            await self.resume_server(session, server)
        scheduler = table(config.get("scheduler_config"), "scheduler_config")
        server.most = whole_number(scheduler.get("max_num_seqs"), "max_num_seqs", least=1, most=10**6)
        transfer = table(config.get("weight_transfer_config") or {}, "weight_transfer_config")
        server.weight_transfer = transfer.get("backend")
        if await self.tokens_made(session, server, timeout) is None:
            raise InputError(
                f"rollout server {server.url} does not count its tokens; start it without --disable-log-stats"
            )

    async def held(self, session: Any, server: Server) -> str | None:
        """Version of the weights that the server's workers hold; None if there is none, or not one."""
        return read_version(await self.rpc(session, server, "siri_version", timeout=self.options.timeout_s))

    async def process(self, session: Any, server: Server) -> tuple[str, ...]:
        """Which process answers at the server's address: names of its workers that no other has had."""
        names = await self.rpc(session, server, "siri_process", timeout=self.options.timeout_s)
        return tuple(text(name, "siri_process") for name in names)

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
        self.refuse(server, path, status, said)
        return parsed(said, path)

    def refuse(self, server: Server, path: str, status: int, said: bytes) -> None:
        """InputError or BadAnswer for an answer that says no."""
        words = said[:800].decode(errors="replace")
        if 300 <= status < 400:
            raise BadAnswer(f"HTTP {status}: it sends elsewhere, where the trainer does not follow")
        if status in (408, 425, 429) or status >= 500:
            raise BadAnswer(f"HTTP {status}: {words[:120]!r}")
        if status == 401:
            raise InputError(f"rollout server {server.url} wants another secret; set {SECRET} as it was set there")
        if status == 404 and path.startswith((*DEVELOPMENT, PAUSED)):
            raise InputError(f"rollout server {server.url} has no {path.split('?')[0]}; start it with {LAUNCH}")
        if status >= 400:
            raise InputError(f"rollout server {server.url} refuses {path}: HTTP {status}: {words[:200]!r}")

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
        """What the coroutine function makes of a session of its own."""

        async def inside() -> Any:
            async with self.connected() as session:
                return await work(session)

        return asyncio.run(inside())

    def connected(self) -> Any:
        """An HTTP session, a context of the event loop that runs."""
        import aiohttp

        # nothing is unpacked here: some kB of gzip may hold gigabytes
        plain = {"Accept-Encoding": "identity", **brought_along()}
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=plain, auto_decompress=False)


def _plain_sampling(server: Server, job: Job, temperature: float) -> dict[str, Any]:
    """The body of a request that samples from the plain softmax, whatever the server's defaults are."""
    return {
        "model": server.model,
        "prompt": job.prompt_ids,
        "max_tokens": job.max_tokens,
        "temperature": temperature,
        "seed": job.seed,
        "top_p": job.top_p,
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
