"""An executor for the asynchronous scheduling of vLLM, which its CPU build switches off: a model of transformers in the
place of workers, whose results are read a batch later than they are made, as a GPU's are.

vLLM schedules a batch before it has seen the tokens of the one before: a response that has ended runs once more, and a
batch may be left over when the last response is there. A block of keys bears the version of the weights it was written
with, so that reading one of older weights is seen (`Runner.stale`)."""

from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from vllm.platforms.cpu import CpuPlatform
from vllm.v1.executor.abstract import Executor
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, LogprobsLists, ModelRunnerOutput
from vllm.v1.worker.worker_base import CompilationTimes

CACHE_BYTES = 2**22


def switch_on() -> None:
    """Have vLLM's CPU platform leave asynchronous scheduling on."""
    settle = CpuPlatform.check_and_update_config.__func__

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        settle(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)


@dataclass
class Response:
    """What the worker knows of a request."""

    tokens: list[int]
    temperature: float
    generator: torch.Generator
    blocks: list[int] = field(default_factory=list)


class Late(Future):
    """A result that is there when it is asked for, and not before."""

    def __init__(self, runner: "Runner", output: ModelRunnerOutput) -> None:
        super().__init__()
        self.runner, self.output = runner, output
        runner.in_flight += 1

    def result(self, timeout: float | None = None) -> ModelRunnerOutput:
        if not self.done():
            self.runner.in_flight -= 1
            self.set_result(self.output)
        return super().result(timeout)


class Runner:
    """Samples with transformers, a whole forward pass for each token."""

    def __init__(self, vllm_config: Any) -> None:
        from transformers import AutoModelForCausalLM

        config = vllm_config.model_config.hf_config
        self.model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
        # on a CPU siri renews the head's packed copy, which this model has not
        self.model.lm_head.quant_method = SimpleNamespace(process_weights_after_loading=lambda head: None)
        self.block = vllm_config.cache_config.block_size
        self.responses: dict[str, Response] = {}
        self.written: dict[int, int] = {}
        self.version = self.in_flight = 0
        self.stale: list[str] = []
        """Requests that have read keys of older weights."""
        self.output: ModelRunnerOutput = EMPTY_MODEL_RUNNER_OUTPUT

    def get_model(self) -> Any:
        return self.model

    def reload_weights(self, weights_iterator: Any) -> None:
        self.version += 1
        held = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in weights_iterator:
                held[name].copy_(tensor)

    def execute(self, scheduled: Any) -> None:
        """Run a batch: its tokens are known here at once, and to the scheduler when it reads `Late`."""
        for name in scheduled.finished_req_ids:
            self.responses.pop(name, None)
        computed = {}
        for new in scheduled.scheduled_new_reqs:
            params = new.sampling_params
            tokens = list(new.prefill_token_ids or new.prompt_token_ids)
            generator = torch.Generator().manual_seed(params.seed)
            self.responses[new.req_id] = Response(tokens, params.temperature, generator, list(new.block_ids[0]))
            computed[new.req_id] = new.num_computed_tokens
        cached = scheduled.scheduled_cached_reqs
        for name, count, more in zip(cached.req_ids, cached.num_computed_tokens, cached.new_block_ids, strict=True):
            blocks = list(more[0]) if more else []
            response = self.responses[name]
            response.blocks = blocks if name in cached.resumed_req_ids else response.blocks + blocks
            computed[name] = count
        names = list(scheduled.num_scheduled_tokens)
        sampled = [self._run(name, computed[name], scheduled.num_scheduled_tokens[name]) for name in names]
        self.output = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: index for index, name in enumerate(names)},
            sampled_token_ids=[[] if drawn is None else [drawn[0]] for drawn in sampled],
            logprobs=LogprobsLists(
                np.array([[0 if drawn is None else drawn[0]] for drawn in sampled]),
                np.array([[0.0 if drawn is None else drawn[1]] for drawn in sampled], np.float32),
                np.zeros(len(names), np.int64),
            ),
        )

    def _run(self, name: str, computed: int, count: int) -> tuple[int, float] | None:
        """Write the keys of `count` more tokens; the token that follows and its log-prob, where they are all there."""
        response = self.responses[name]
        for position in range(computed, computed + count):
            self.written[response.blocks[position // self.block]] = self.version
        blocks = response.blocks[: -(-(computed + count) // self.block)]
        if any(self.written.get(block) != self.version for block in blocks):
            self.stale.append(name)
        if computed + count < len(response.tokens):
            return None
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([response.tokens]), use_cache=False).logits[0, -1]
        logp = torch.log_softmax(logits / (response.temperature or 1.0), -1)
        if response.temperature:
            token = int(torch.multinomial(logp.exp(), 1, generator=response.generator))
        else:
            token = int(logp.argmax())
        response.tokens.append(token)
        return token, float(logp[token])


class LateExecutor(Executor):
    """One worker, in this process."""

    def _init_executor(self) -> None:
        self.runner = Runner(self.vllm_config)
        self.worker = SimpleNamespace(model_runner=self.runner, vllm_config=self.vllm_config)
        self.worker.reload_weights = self.runner.reload_weights
        self.calls: list[str] = []

    def collective_rpc(self, method: Any, timeout: Any = None, args: Any = (), kwargs: Any = None, **_: Any) -> Any:
        if callable(method):
            return [method(self.worker, *args, **(kwargs or {}))]
        self.calls.append(method)
        return [self._answer(method)]

    def _answer(self, method: str) -> Any:
        config = self.model_config.hf_config
        if method == "get_kv_cache_spec":
            heads, size = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
            block = self.cache_config.block_size
            return {
                f"model.layers.{layer}.self_attn": FullAttentionSpec(
                    block_size=block, num_kv_heads=heads, head_size=size, dtype=torch.float32
                )
                for layer in range(config.num_hidden_layers)
            }
        answers = {
            "determine_available_memory": CACHE_BYTES,
            "get_supported_kv_cache_layouts": ["NHD"],
            "compile_or_warm_up_model": CompilationTimes(0.0, 0.0),
            "get_supported_tasks": ("generate",),
        }
        return answers.get(method)

    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
        assert non_block, "asynchronous scheduling waits for no batch"
        future: Future = Future()
        if scheduler_output.total_num_scheduled_tokens:
            self.runner.execute(scheduler_output)
            future.set_result(None)
        else:
            for name in scheduler_output.finished_req_ids:
                self.runner.responses.pop(name, None)
            future.set_result(EMPTY_MODEL_RUNNER_OUTPUT)
        return future

    def sample_tokens(self, grammar_output: Any, non_block: bool = False) -> Any:
        assert non_block
        return Late(self.runner, self.runner.output)

    def check_health(self) -> None:
        pass

    @classmethod
    def supports_async_scheduling(cls) -> bool:
        return True
