"""vLLM in the process that trains: one engine for each GPU, beside the trainer's rank. All of vLLM's own interface that
this mode uses is in this file and in `siri.rollout.worker`.

Under torchrun every rank runs an engine of its own (`external_launcher`, one GPU each). While the policy is updated the
engine sleeps: weights and cache leave the GPU. A sync wakes the weights' memory and loads them tensor by tensor from
the trainer's shards, so that no second copy of the model ever exists.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Any

import torch

from siri.errors import InputError, first_line
from siri.rollout import Completion, Done, Progress
from siri.rollout.checksums import differing
from siri.rollout.vllm import Job, Ran, VllmOptions
from siri.rollout.worker import load, present
from siri.runtime.signals import Interrupted

CPU_CACHE_BYTES = 2**27
"""Keys and values on a CPU, where this mode is there for tests: a CPU has no memory that could be lent to and fro."""


class ColocatedEngine:
    """A backend of `siri.rollout.vllm.VllmRollout`: an engine in this process."""

    def __init__(self, options: VllmOptions, device: torch.device) -> None:
        self.device = device
        self.gpu = device.type == "cuda"
        self.notes = []
        if not self.gpu:
            self.notes.append("rollout: vLLM sleeps on GPUs only; on this CPU it keeps its memory during the update")
        self.dtype = torch.bfloat16 if self.gpu else torch.float32
        self.asleep = False
        self.memory: dict[str, float] = {}
        # an engine core in a process of its own could not be handed tensors
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        for name, value in {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}.items():
            os.environ.setdefault(name, value)
        # a type checker takes vllm.py in this folder for it
        from vllm import LLM  # pyright: ignore[reportAttributeAccessIssue]

        try:
            self.llm = LLM(**engine_options(options, gpu=self.gpu))
        except Exception as error:  # vLLM raises whatever its parts raise
            raise InputError(
                f"vLLM cannot start on {options.model}: {first_line(error)}; lower --rollout-memory if it is memory, "
                "or use --rollout local"
            ) from error
        self.engine = self.llm.llm_engine
        cache = self.engine.vllm_config.cache_config
        self.cache_tokens = cache.num_gpu_blocks * cache.block_size
        self.most = self.engine.vllm_config.scheduler_config.max_num_seqs

    def ask(
        self,
        jobs: Sequence[Job],
        *,
        temperature: float,
        limit: int,
        progress: Progress | None = None,
        check: Callable[[], None] = lambda: None,
        done: Done | None = None,
    ) -> Ran:
        """Answer the jobs in their order, at most `limit` at once."""
        waiting, running = deque(enumerate(jobs)), 0
        ended: dict[int, Completion] = {}
        began = last = perf_counter()
        busy = 0.0
        try:
            while waiting or running:
                check()
                while waiting and running < limit:
                    index, job = waiting.popleft()
                    params = sampling_params(job, temperature)
                    self.engine.add_request(str(index), {"prompt_token_ids": job.prompt_ids}, params)
                    running += 1
                finished = [output for output in self.engine.step() if output.finished]
                now = perf_counter()
                busy, last = busy + running * (now - last), now
                for output in finished:
                    index = int(output.request_id)
                    ended[index] = _completion(output.outputs[0])
                    if done:
                        done(index, ended[index])
                running -= len(finished)
                if finished and progress:
                    progress(len(finished))
        except BaseException as error:
            left = [str(index) for index in range(len(jobs)) if index not in ended]
            self.engine.abort_request(left)  # so that nothing of it runs along with the next batch
            if isinstance(error, Interrupted) or not isinstance(error, Exception):
                raise
            raise InputError(f"vLLM failed during rollout: {first_line(error)}") from error
        return Ran([ended[index] for index in range(len(jobs))], busy, perf_counter() - began)

    def probe(self, jobs: Sequence[Job], temperature: float) -> list[tuple[str, list[Completion]]]:
        """Answers for a fingerprint, with the name of the engine that gave them."""
        rank = os.environ.get("RANK", "0")
        return [(f"the engine of rank {rank}", self.ask(jobs, temperature=temperature, limit=len(jobs)).completions)]

    def offer(self, weights: Iterator[tuple[str, torch.Tensor]], version: str) -> None:
        """Nothing: the engine cannot sample while it takes weights."""

    def load(self, weights: Iterator[tuple[str, torch.Tensor]], version: str) -> None:
        """Replace the model's weights in place; compare checksums where the engine keeps a tensor as it was sent."""
        self._wake("weights")
        (sent,) = self.llm.collective_rpc(load, args=(weights,))
        (there,) = self.llm.collective_rpc(present)
        if names := differing(sent, [there]):
            raise InputError(f"weight sync {version}: vLLM does not hold what was sent: {', '.join(names[:3])}")
        self._wake("kv_cache")
        self.asleep = False
        if not self.llm.reset_prefix_cache():
            raise InputError(f"weight sync {version}: vLLM kept its prefix cache, which holds keys of old weights")

    def fly(self, temperature: float, stop_ids: tuple[int, ...], places: Callable[[int, int], int]) -> None:
        return None

    def pause(self) -> None:
        """Nothing is in flight."""

    def resume(self) -> None:
        """Nothing."""

    def sleep(self) -> None:
        """Give the memory of weights and cache back. Level 2 keeps no copy: a sync follows every update."""
        if not self.gpu or self.asleep:
            return
        before, kept_before = torch.cuda.mem_get_info(self.device)[0], torch.cuda.memory_reserved(self.device)
        self.llm.sleep(level=2)
        self.asleep = True
        after, kept_after = torch.cuda.mem_get_info(self.device)[0], torch.cuda.memory_reserved(self.device)
        # vLLM unmaps the memory of its pool, and torch goes on counting what it has given to it
        sleeping = max(0, (after - before) - (kept_before - kept_after))
        self.memory = {
            "rollout_memory_returned": after - before,
            "rollout_memory_free_asleep": after,
            "rollout_memory_asleep": sleeping,
        }

    def wake(self) -> None:
        """Nothing: the sync before has woken the engine, and weights that were slept away cannot come back without."""
        if self.asleep:
            raise InputError("the vLLM engine sleeps and has no weights; it has to be synced before it samples")

    def _wake(self, tag: str) -> None:
        if self.gpu and self.asleep:
            torch.cuda.empty_cache()  # what the trainer's allocator merely keeps has to be free for the engine
            self.llm.wake_up(tags=[tag])
            if tag == "kv_cache":
                self.memory["rollout_memory_free_awake"] = torch.cuda.mem_get_info(self.device)[0]

    def metrics(self) -> dict[str, float]:
        """Bytes: what the last sleep returned, what of it torch still counts as allocated, and what was free on the GPU
        asleep and awake. Empty on a CPU."""
        return dict(self.memory)

    def close(self) -> None:
        """Release the engine."""
        self.engine.engine_core.shutdown()


def engine_options(options: VllmOptions, *, gpu: bool) -> dict[str, Any]:
    """The arguments of `vllm.LLM`: plain sampling from the model itself, log-probs of the distribution sampled from."""
    chosen: dict[str, Any] = {
        "model": options.model,
        "tensor_parallel_size": 1,
        "distributed_executor_backend": "external_launcher" if "RANK" in os.environ else "uni",
        "load_format": "dummy",  # the trainer sends its weights, so none are read, and a sync left out shows
        # config.json may say otherwise than the files, and the trainer goes by these
        "hf_overrides": {"tie_word_embeddings": options.tied},
        "skip_tokenizer_init": True,  # prompts and answers are token ids
        "dtype": "bfloat16" if gpu else "float32",
        "max_model_len": options.context,
        "max_num_seqs": options.sequences,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "enable_prefix_caching": True,  # the samples of a prompt share its keys and values
        "seed": 0,  # each response has a seed of its own
        "disable_log_stats": True,
    }
    if gpu:
        return chosen | {"enable_sleep_mode": True, "gpu_memory_utilization": options.memory}
    # a prompt cut in two rewinds its generator, which vLLM's sampler can do on GPUs only
    whole = {"enable_chunked_prefill": False, "max_num_batched_tokens": max(4096, options.context)}
    return chosen | whole | {"kv_cache_memory_bytes": CPU_CACHE_BYTES, "enforce_eager": True}


def sampling_params(job: Job, temperature: float) -> Any:
    """vLLM's parameters of plain sampling, with the log-prob of each token that was drawn."""
    # a type checker takes vllm.py in this folder for it
    from vllm import SamplingParams  # pyright: ignore[reportAttributeAccessIssue]
    from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

    return SamplingParams(
        temperature=temperature,
        max_tokens=job.max_tokens,
        seed=job.seed,
        top_p=job.top_p,
        top_k=-1,
        min_p=0.0,
        repetition_penalty=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        stop_token_ids=list(job.stop_ids),
        ignore_eos=True,  # what ends a response is in stop_ids, the same for every engine
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _completion(output: Any) -> Completion:
    tokens = list(output.token_ids)
    if output.finish_reason not in ("stop", "length") or len(output.logprobs.logprobs) != len(tokens):
        raise RuntimeError(
            f"a response ended by {output.finish_reason!r} with {len(tokens)} tokens and "
            f"{len(output.logprobs.logprobs)} log-probs"
        )
    return Completion(tokens, list(output.logprobs.logprobs), output.finish_reason == "length")
