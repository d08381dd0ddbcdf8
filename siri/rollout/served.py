"""vLLM behind URLs: rollouts from `vllm serve` processes over HTTP. All of vLLM's own interface that this mode uses is
in this file, in `siri.rollout.transfer` (NCCL), and in `siri.rollout.worker`, which the servers load.

A server is used only while it holds the weights of the last sync. One that is lost is waited for while others take over
its responses; once it is back it is checked like a new one and given the weights again. Each response belongs to a job
that is done once: what a lost server may have sampled is thrown away and sampled again with the same seed.
"""

import asyncio
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from siri.distributed import ALONE, Ranks
from siri.errors import InputError, first_line
from siri.model import Policy
from siri.rollout import Completion, Progress
from siri.rollout.dispatch import BadAnswer, Dispatch, ServerLost
from siri.rollout.transfer import FileTransfer, NcclTransfer
from siri.rollout.vllm import Job, Ran, VllmOptions, check_version, installed
from siri.rollout.worker import differing

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

log = logging.getLogger("siri.rollout")


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
    from urllib.request import urlopen

    try:
        with urlopen(f"{url}/version", timeout=5) as answer:
            return json.loads(answer.read())["version"]
    except (OSError, ValueError, KeyError):
        return None


class ServedEngine:
    """A backend of `siri.rollout.vllm.VllmRollout`: servers that all ranks share."""

    def __init__(self, options: VllmOptions, policy: Policy, *, ranks: Ranks = ALONE) -> None:
        """Check every server; InputError for one that is not there, serves another model, or would bias log-probs."""
        self.options, self.policy, self.ranks = options, policy, ranks
        self.servers = [Server(url) for url in options.servers]
        self.version: str | None = None
        self.retries: Counter[str] = Counter()

        async def check_all(session: Any) -> list[Any]:
            checks = (self._check(session, server) for server in self.servers)
            return await asyncio.gather(*checks, return_exceptions=True)

        for server, fault in zip(self.servers, self._do(check_all), strict=True):
            if isinstance(fault, (ServerLost, BadAnswer)):
                raise InputError(f"rollout server {server.url}: {fault}; start it with {LAUNCH}")
            if fault is not None:
                raise fault
        if len(dtypes := {server.dtype for server in self.servers}) > 1:
            raise InputError(f"the rollout servers compute in different types ({', '.join(sorted(dtypes))}); use one")
        self.dtype = getattr(torch, dtypes.pop())
        self.cache_tokens = sum(server.cache_tokens for server in self.servers) // ranks.size
        self.most = max(1, sum(server.most for server in self.servers) // ranks.size)
        ready = policy.device.type == "cuda" and all(server.weight_transfer == "nccl" for server in self.servers)
        if options.sync == "nccl" and not ready:
            raise InputError(
                "rollout_sync is nccl, which needs a trainer on GPUs and servers started with "
                """--weight-transfer-config '{"backend": "nccl"}'; use --rollout-sync files"""
            )
        if options.sync == "nccl":
            check_version(installed())  # of the sending side
        use = options.sync == "nccl" or (options.sync == "auto" and ready and installed() is not None)
        self.nccl = NcclTransfer(self, policy) if use else None
        if self.nccl is None and options.sync_dir is None:
            raise InputError("the servers take weights from files; name a folder they see with --rollout-sync-dir")
        self.files = FileTransfer(options.sync_dir) if options.sync_dir else None
        how = "NCCL" if self.nccl else f"files in {options.sync_dir}, which the servers have to see"
        self.notes = [f"rollout: {len(self.servers)} vLLM servers; weights travel over {how}"]

    # --- sampling ---

    def run(self, jobs: Sequence[Job], *, temperature: float, limit: int, progress: Progress | None = None) -> Ran:
        """Answer the jobs, in their order as far as servers are free, at most `limit` at once."""
        self.retries.clear()
        return self._do(lambda session: Dispatch(self, session, jobs, temperature, limit, progress).run(self.servers))

    def probe(self, jobs: Sequence[Job], temperature: float) -> list[tuple[str, list[Completion]]]:
        """Answers of each server for a fingerprint; rank 0 asks for all ranks."""
        if not self.ranks.main:
            return []
        answers = []
        for server in [one for one in self.servers if not one.fault]:
            ran = self._do(
                lambda session, server=server: Dispatch(self, session, jobs, temperature, len(jobs)).run([server])
            )
            answers.append((f"server {server.url}", ran.completions))
        return answers

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
        answer = await self.ask(session, server, "POST", "/v1/completions", body, timeout=None)
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

    async def tokens_made(self, session: Any, server: Server, timeout: float) -> float:
        """How many tokens the server has sampled since it started."""
        import aiohttp

        try:
            async with session.get(server.url + "/metrics", timeout=aiohttp.ClientTimeout(total=timeout)) as response:
                text = await response.text()
        except TimeoutError:
            raise
        except (aiohttp.ClientError, OSError) as error:
            raise ServerLost(f"no connection ({first_line(error) or type(error).__name__})") from None
        found = re.findall(r"^vllm:generation_tokens_total(?:\{.*\})? (\S+)", text, re.MULTILINE)
        return sum(map(float, found))

    # --- weights ---

    def load(self, weights: Iterator[tuple[str, torch.Tensor]], version: str) -> None:
        """Give every server that answers the weights; one that is lost on the way is left out until it is back."""
        self.version = version
        if self.ranks.main:
            self._do(self._find)
        if self.nccl:
            self.nccl.send(weights, version)
        elif self.ranks.main:
            self.files.write(weights, version)
            self._do(lambda session: self._give(session))
        else:
            for _ in weights:  # rank 0 needs this rank's shards
                pass
        if self.ranks.main and all(server.fault for server in self.servers):
            raise InputError(f"weight {version} reached no rollout server: {self._faults()}")

    async def _find(self, session: Any) -> None:
        """Look for the servers that were lost before."""
        for server in [one for one in self.servers if one.fault]:
            with suppress(ServerLost, BadAnswer):
                await self._check(session, server)
                server.fault = ""

    async def _give(self, session: Any) -> None:
        async def to(server: Server) -> None:
            for last in (False, True):
                try:
                    return await self.take_files(session, server)
                except (ServerLost, BadAnswer) as error:
                    if last:
                        self.lose(server, f"weight sync interrupted: {error}")

        await asyncio.gather(*(to(server) for server in self.servers if not server.fault))

    async def take_files(self, session: Any, server: Server) -> None:
        """Have one server load the files of the last sync, and compare checksums."""
        found = await self.rpc(
            session, server, "siri_load", str(self.files.folder), timeout=self.options.sync_timeout_s
        )
        for there in found:
            if there["damaged"]:
                raise InputError(
                    f"weight {self.version}: tensor {there['damaged'][0]} reached {server.url} damaged; see "
                    f"{self.files.folder}"
                )
        await self.settle(session, server, found, self.files.sums)

    async def settle(self, session: Any, server: Server, found: list[Any], sent: dict[str, list[int]]) -> None:
        """Compare what the server holds with what was sent, and clear its prefix cache."""
        if len(found) == 1 and (names := differing(sent, found[0])):  # tensor-parallel workers hold parts
            raise InputError(f"weight {self.version}: {server.url} does not hold what was sent: {', '.join(names[:3])}")
        cleared = await self.ask(session, server, "POST", "/reset_prefix_cache", timeout=self.options.timeout_s)
        if not cleared["success"]:
            raise BadAnswer("it kept its prefix cache, which holds keys of old weights")

    # --- servers ---

    def lose(self, server: Server, reason: str) -> None:
        """Stop using a server."""
        server.fault = reason
        log.warning("rollout server %s lost: %s", server.url, reason)

    def _faults(self) -> str:
        return "; ".join(f"{server.url}: {server.fault}" for server in self.servers if server.fault)

    async def _check(self, session: Any, server: Server) -> None:
        """Refuse a server that samples anything else than the trainer's model would."""
        timeout = self.options.timeout_s
        check_version((await self.ask(session, server, "GET", "/version", timeout=timeout))["version"], server.url)
        info = await self.ask(session, server, "GET", "/server_info?config_format=json", timeout=timeout)
        config = info["vllm_config"]
        for path, allowed, remedy in REQUIRED:
            value: Any = config
            for key in path.split("."):
                value = value.get(key) if isinstance(value, dict) else None
            if value not in allowed:
                raise InputError(f"rollout server {server.url}: {path} is {value!r}; {remedy}")
        (served,) = (await self.ask(session, server, "GET", "/v1/models", timeout=timeout))["data"]
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
                raise InputError(
                    f"rollout server {server.url} serves another model: its {key} is {about[0]['model'].get(key)}, "
                    f"the trainer's {own.get(key)}; start it with the model that is trained"
                )
        server.cache_tokens, server.dtype = about[0]["cache_tokens"], about[0]["dtype"]
        server.workers = len(about)
        server.most = config["scheduler_config"]["max_num_seqs"]
        server.weight_transfer = (config.get("weight_transfer_config") or {}).get("backend")

    async def admit(self, session: Any, server: Server) -> None:
        """Make sure that a server holds the weights of the last sync; if it does not, give it the files again."""
        held = await self.held(session, server)
        if held == self.version:
            return
        if self.nccl:
            raise ServerLost(f"it holds the weights {held} and not {self.version}; it has to wait for the next sync")
        await self.take_files(session, server)

    async def held(self, session: Any, server: Server) -> str | None:
        """Version of the weights that the server's workers hold; None if there is none, or not one."""
        versions = set(await self.rpc(session, server, "siri_version", timeout=self.options.timeout_s))
        return versions.pop() if len(versions) == 1 else None

    async def revive(self, session: Any, server: Server) -> None:
        """Wait for a lost server, check it as if it were new, and give it the weights."""
        pause = 0.2
        while True:
            await asyncio.sleep(pause)
            try:
                await self._check(session, server)
                return await self.admit(session, server)
            except (ServerLost, BadAnswer) as error:
                server.fault = str(error)
                pause = min(2 * pause, 5.0)

    async def rpc(self, session: Any, server: Server, method: str, *args: str, timeout: float) -> list[Any]:
        """What each of the server's workers answers to one of `SyncWorker`'s methods."""
        body = {"method": method, "args": list(args)}
        answer = await self.ask(session, server, "POST", "/collective_rpc", body, timeout=timeout)
        try:
            return [json.loads(result) for result in answer["results"]]
        except (KeyError, TypeError, ValueError):
            raise BadAnswer(f"{method} was answered with {str(answer)[:80]!r}") from None

    async def ask(
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

    def _do(self, work: Any) -> Any:
        import aiohttp

        async def inside() -> Any:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
                return await work(session)

        return asyncio.run(inside())

    def sleep(self) -> None:
        """Nothing: servers have GPUs of their own."""

    def wake(self) -> None:
        """Nothing."""

    def metrics(self) -> dict[str, float]:
        """Servers in use, and what had to be done again in the last rollout."""
        used = sum(not server.fault for server in self.servers)
        return {"rollout_servers_used": used, "rollout_retries": self.retries.total()}

    def close(self) -> None:
        """Remove the files of the last sync; the servers stay."""
        if self.files and self.ranks.main:
            self.files.close()
