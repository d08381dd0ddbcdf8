"""A stand-in for `vllm serve`: the routes that SIRI uses, tokens from a real tiny model, and faults on demand."""

import asyncio
import json
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from aiohttp import web
from safetensors.torch import load_file

from siri.model.policy import Policy
from siri.rollout import Request
from siri.rollout.local import LocalRollout
from siri.rollout.worker import MANIFEST, checksum
from tests.support.tiny import tiny_policy

CONFIG = {
    "model_config": {
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "override_generation_config": {},
        "quantization": None,
        "logits_processors": None,
    },
    "cache_config": {"cache_dtype": "auto"},
    "parallel_config": {"data_parallel_size": 1, "worker_extension_cls": "siri.rollout.worker.SyncWorker"},
    "scheduler_config": {"max_num_seqs": 8},
    "speculative_config": None,
    "watermark_config": None,
    "lora_config": None,
    "weight_transfer_config": None,
}
Sampled = tuple[list[int], list[float], str]
"""Tokens, log-probs and why they end."""
HANGS_S = 60.0
"""A start or an end that has not come by then never does: neither waits for what is sampled."""


class FakeServer:
    """Runs in a thread. `faults` holds what the next completions do: "500", "hang", "cut", "short", "reset", "abort",
    "html", "other model", "die" (and stay dead) or "restart" (weights lost, connection lost)."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.policy = policy or tiny_policy(seed=7)  # weights of its own, until it is given others
        self.engine = LocalRollout(self.policy, cache_tokens=10**6)
        self.config = json.loads(json.dumps(CONFIG))
        self.version_string, self.max_model_len = "0.32.0", 512
        self.weights: str | None = None
        self.processes = 1
        self.faults: deque[str] = deque()
        self.load_faults: deque[str] = deque()
        self.asked: list[dict] = []
        self.served = self.made = self.running = self.most_running = 0
        self.loads = self.resets = 0
        self.reset_faults: deque[str] = deque()
        self.pauses = 0
        self.paused = False
        self.missing: set[str] = set()
        """Routes that it does not have, from its next start on."""
        self.token_s = 0.0
        """Seconds for a token of a response that is streamed,"""
        self.streamed = 2
        """and tokens that are sent at once, at most what was asked for."""
        self.sampler: Callable[[dict], Sampled] | None = None
        """What it streams, in the place of the model's."""
        self._turn, self._sampling = asyncio.Lock(), threading.Lock()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.port = 0
        self.start()

    # --- life ---

    def start(self) -> None:
        async def begin() -> None:
            app = web.Application()
            for verb, path, handler in (
                ("GET", "/version", self._version),
                ("GET", "/server_info", self._info),
                ("GET", "/v1/models", self._models),
                ("GET", "/metrics", self._metrics),
                ("POST", "/collective_rpc", self._rpc),
                ("POST", "/reset_prefix_cache", self._reset),
                ("GET", "/is_paused", self._is_paused),
                ("POST", "/pause", self._pause),
                ("POST", "/resume", self._resume),
                ("POST", "/v1/completions", self._complete),
            ):
                if path not in self.missing:
                    app.router.add_route(verb, path, handler)
            self.runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
            await self.runner.setup()
            site = web.TCPSite(self.runner, "127.0.0.1", self.port)
            await site.start()
            self.port = site._server.sockets[0].getsockname()[1]

        asyncio.run_coroutine_threadsafe(begin(), self.loop).result(HANGS_S)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result(HANGS_S)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # --- routes ---

    async def _version(self, _):
        return web.json_response({"version": self.version_string})

    async def _info(self, _):
        return web.json_response({"vllm_config": self.config})

    async def _models(self, _):
        return web.json_response({"data": [{"id": "tiny", "max_model_len": self.max_model_len}]})

    async def _metrics(self, _):
        return web.Response(text=f'vllm:generation_tokens_total{{engine="0"}} {float(self.made)}\n')

    async def _reset(self, request):
        assert request.query["reset_running_requests"] == "true"
        if self.reset_faults and self.reset_faults.popleft():
            return web.Response(status=500, text="busy")
        self.resets += 1
        return web.json_response({"success": True})

    async def _rpc(self, request):
        body = await request.json()
        result = getattr(self, body["method"])(*body["args"])
        if result == "crash":
            request.transport.close()
        return web.json_response({"results": [json.dumps(result)]})

    def siri_about(self):
        config = self.policy.model.config.to_dict()
        return {"model": config, "dtype": "float32", "cache_tokens": 4096, "version": self.weights}

    def siri_process(self):
        return f"process {self.processes}"

    def siri_version(self):
        return self.weights

    def siri_load(self, folder: str):
        if not Path(folder).exists():
            return {"unseen": True}
        self.loads += 1
        fault = self.load_faults.popleft() if self.load_faults else ""
        manifest = json.loads((Path(folder) / MANIFEST).read_text())
        if fault or self.weights != manifest["version"]:  # in place already: another rank was first
            self.weights = None
        if fault == "crash":
            return "crash"
        tensors = {
            name: tensor for file in manifest["files"] for name, tensor in load_file(Path(folder) / file).items()
        }
        state = dict(self.policy.model.named_parameters())
        if fault != "stale":
            with self._sampling, torch.no_grad():  # a request that was broken off may be computed still
                for name, tensor in tensors.items():
                    state[name].copy_(tensor)
        shown = tensors if fault == "stale" else state  # a stale engine that even lies about it
        if fault == "wrong":
            with torch.no_grad():
                state["model.norm.weight"][0] += 1
        sums = {name: [checksum(tensor)] for name, tensor in shown.items()}
        return {"damaged": [], "sums": sums, "fused": {}}

    def siri_mark(self, version: str):
        self.weights = version or None

    async def _complete(self, request):
        body = await request.json()
        self.asked.append(body)
        fault = self.faults.popleft() if self.faults else ""
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if fault == "500":
                return web.Response(status=500, text="out of memory")
            if fault == "400":
                return web.json_response({"error": {"message": "no such field"}}, status=400)
            if fault == "hang":
                await asyncio.sleep(60)
            if fault in ("reset", "die", "restart"):
                if fault == "restart":
                    self.weights, self.processes = None, self.processes + 1
                if fault == "die":
                    self.dying = asyncio.ensure_future(self.runner.cleanup())
                request.transport.abort()
                return web.Response()
            if body.get("stream"):
                return await self._stream(request, body, fault)
            await asyncio.sleep(0.01)
            return await self._answer(request, body, fault)
        finally:
            self.running -= 1

    async def _answer(self, request, body, fault: str):
        tokens, logp, reason = await self._beside(self._by_the_model, body)
        self.made += len(tokens)
        self.served += 1
        if fault == "abort":
            reason = "abort"
        if fault == "short":
            logp = logp[:-1]
        answer = {
            "model": "another" if fault == "other model" else "tiny",
            "choices": [{"token_ids": tokens, "logprobs": {"token_logprobs": logp}, "finish_reason": reason}],
            "usage": {"completion_tokens": len(tokens)},
        }
        text = "<html>proxy</html>" if fault == "html" else json.dumps(answer)
        if fault != "cut":
            return web.Response(text=text, content_type="application/json")
        response = web.StreamResponse(headers={"Content-Length": str(len(text))})
        await response.prepare(request)
        await response.write(text[: len(text) // 2].encode())
        request.transport.abort()
        return response

    # --- in flight ---

    async def _is_paused(self, _):
        return web.json_response({"is_paused": self.paused})

    async def _pause(self, request):
        """As vLLM's mode abort: what runs ends with all that it has, what comes waits."""
        assert request.query["mode"] == "abort"
        self.paused, self.pauses = True, self.pauses + 1
        return web.json_response({"status": "paused"})

    async def _resume(self, _):
        self.paused = False
        return web.json_response({"status": "resumed"})

    async def _beside(self, sample: Callable[[dict], Sampled], body: dict) -> Sampled:
        """One response after the other, in a thread: as vLLM does, the server answers all else meanwhile, and ends when
        it is told to, however long that takes on a busy machine."""

        def work() -> Sampled:
            with self._sampling:  # the thread of a request that was broken off goes on
                return sample(body)

        async with self._turn:
            return await asyncio.to_thread(work)

    def _sampled(self, body: dict) -> Sampled:
        return self._by_the_model(body) if self.sampler is None else self.sampler(body)

    def _by_the_model(self, body: dict) -> Sampled:
        self.engine.policy = replace(self.policy, stop_ids=frozenset(body["stop_token_ids"]))
        asked = [Request(body["prompt"], body["max_tokens"])]
        completion = self.engine.generate(asked, temperature=body["temperature"], seed=body["seed"])[0][0]
        return list(completion.token_ids), list(completion.logp), "length" if completion.truncated else "stop"

    async def _stream(self, request, body, fault: str):
        """Faults "cut" and "die" come in the middle."""
        while self.paused:
            await asyncio.sleep(0.005)
        pauses, sent = self.pauses, 0
        tokens, logp, reason = await self._beside(self._sampled, body)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        each = min(self.streamed, body["stream_interval"])
        while sent < len(tokens):
            if self.token_s:
                await asyncio.sleep(self.token_s * each)
            if self.pauses > pauses:
                reason = "abort"
                if sent:
                    await self._event(response, [], [], reason)
                break
            if fault in ("cut", "die") and sent >= len(tokens) // 2:
                if fault == "die":
                    self.dying = asyncio.ensure_future(self.runner.cleanup())
                request.transport.abort()
                return response
            end = sent + each
            last = end >= len(tokens)
            await self._event(response, tokens[sent:end], logp[sent:end], reason if last else None)
            self.made += len(tokens[sent:end])
            sent = min(end, len(tokens))
        self.served += 1
        usage = {"model": "tiny", "choices": [], "usage": {"completion_tokens": sent}}
        await response.write(f"data: {json.dumps(usage)}\n\ndata: [DONE]\n\n".encode())
        return response

    async def _event(self, response, tokens, logp, reason) -> None:
        choice = {"token_ids": tokens, "logprobs": {"token_logprobs": logp}, "finish_reason": reason}
        await response.write(f"data: {json.dumps({'model': 'tiny', 'choices': [choice]})}\n\n".encode())
