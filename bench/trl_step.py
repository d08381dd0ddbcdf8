"""TRL's own GRPO step with and without `siri_kernels.integrations.trl`: time and peak memory.

`python bench/trl_step.py [--size tiny|1.5b] [--out FILE]` takes one model (Qwen2-1.5B's config, random weights), two
real trainers around it, GRPOTrainer and FusedGRPOTrainer, and the same completions of lognormal length, as TRL hands
them to `compute_loss` after sampling. A step is loss, backward and AdamW at a learning rate of 0; sampling, which the
adapter does not touch, is not in it. Both run interleaved in one process. "trl_step half" is the step in which half of
the groups have no advantage, as where all answers of a prompt are right or wrong.

max_error is the relative L2 difference between the two gradients of the LM head: in bf16, that of TRL's logits rounded
to bf16. On a CPU it runs the tiny size, so that it cannot rot; nothing is claimed from that.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import records
import torch
from model_sizes import MODELS
from torch import Tensor

BATCH = {"1.5b": (8, 512, 4096), "tiny": (8, 6, 24)}
"""sequences, prompt and completion length; the longest completion has all of it, the median 0.45"""
GROUP = 4
SAME = 0.1
"""Gradients farther apart than this (relative L2) are not those of one loss"""


@dataclass
class Bench:
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    trainers: dict[str, object]
    forwards: dict[str, Callable]
    inputs: dict[str, dict[str, Tensor]]

    def step(self, impl: str, op: str) -> Callable[[], None]:
        trainer = self.trainers[impl]

        def run() -> None:
            self.model.forward = self.forwards[impl]
            self.optimizer.zero_grad()
            trainer.compute_loss(self.model, dict(self.inputs[op])).backward()
            self.optimizer.step()

        return run


def batch(size: str, vocab: int, device: torch.device) -> dict[str, dict[str, Tensor]]:
    """The two batches, as TRL hands one to its loss: prompts padded on the left, completions on the right."""
    n, prompt, longest = BATCH[size]
    g = torch.Generator().manual_seed(0)
    lengths = (0.45 * longest * (0.7 * torch.randn(n, generator=g)).exp()).long().clamp(1, longest)
    lengths[0] = longest
    advantages = torch.randn(n, generator=g)
    completion_mask = (torch.arange(longest) < lengths[:, None]).long()
    inputs = {
        "prompt_ids": torch.randint(3, vocab, (n, prompt), generator=g),
        "prompt_mask": torch.ones(n, prompt, dtype=torch.long),
        "completion_ids": torch.randint(3, vocab, (n, longest), generator=g),
        "completion_mask": completion_mask,
        "advantages": advantages,
        "num_items_in_batch": completion_mask.sum(),
    }
    half = {**inputs, "advantages": torch.where(torch.arange(n) // GROUP % 2 == 0, advantages, 0.0)}
    ops = {"trl_step": inputs, "trl_step half": half}
    return {op: {name: x.to(device) for name, x in given.items()} for op, given in ops.items()}


def tokenizer():
    """GRPOTrainer wants one; nothing here is text."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<bos>": 1, "<eos>": 2}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def build(size: str, device: torch.device) -> Bench:
    from datasets import Dataset
    from siri_kernels.integrations.trl import FusedGRPOTrainer
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    on_gpu = device.type == "cuda"
    torch.manual_seed(0)
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False}
    config = AutoConfig.for_model("qwen2", **MODELS[size], **special)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    with device:  # random weights of this size take a minute on a CPU
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    arguments = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=BATCH[size][0],
        num_generations=GROUP,
        max_completion_length=BATCH[size][2],
        loss_type="dapo",
        bf16=on_gpu,
        use_cpu=not on_gpu,
        report_to=[],
        save_strategy="no",
    )
    made, forwards = {}, {}
    for impl, kind in (("trl", GRPOTrainer), ("trl + siri", FusedGRPOTrainer)):
        made[impl] = kind(
            model=model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": ["<bos>"] * BATCH[size][0]}),
            processing_class=tokenizer(),
        )
        made[impl].current_gradient_accumulation_steps = 1
        forwards[impl] = model.forward
    model.train()
    if on_gpu:  # TRL's default, which its Trainer switches on in train()
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=on_gpu)
    return Bench(model, optimizer, made, forwards, batch(size, config.vocab_size, device))


def seconds(function: Callable[[], None], device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    begin = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - begin


def peak_bytes(function: Callable[[], None], device: torch.device) -> int | None:
    """Beyond weights, gradients and moments, which are there before."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def head_gradients(bench: Bench, op: str) -> float:
    """Relative L2 difference of the LM head's gradient; also warms both up."""
    gradients = []
    for impl in bench.trainers:
        bench.step(impl, op)()
        gradients.append(bench.model.lm_head.weight.grad.float().clone())
    return float((gradients[1] - gradients[0]).norm() / gradients[0].norm())


def measure(size: str, device: torch.device, rounds: int, limit: float) -> list[dict]:
    deadline = time.monotonic() + limit
    begin = time.monotonic()
    bench = build(size, device)
    print(f"the trainers were there after {time.monotonic() - begin:.0f} s", flush=True)
    rows = []
    for op in bench.inputs:
        error = head_gradients(bench, op)
        if not error < SAME:
            raise SystemExit(f"{op}: the gradients differ by {error:.2g} (relative L2): not the same training step")
        times: dict[str, list[float]] = {impl: [] for impl in bench.trainers}
        for round_ in range(rounds):
            if round_ and time.monotonic() > deadline:
                break
            for impl, samples in times.items():
                samples.append(seconds(bench.step(impl, op), device))
        for impl, samples in times.items():
            peak = peak_bytes(bench.step(impl, op), device)
            ms = 1e3 * statistics.median(samples)
            rows.append({"op": op, "impl": impl, "size": size, "ms": ms, "ratio_to_gemm": None, "extra_bytes": peak})
            rows[-1]["max_error"] = error if impl != "trl" else None
    return rows


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description="TRL's GRPO step with and without the adapter, measured.")
    parser.add_argument("--size", choices=MODELS, default="1.5b" if on_gpu else "tiny")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=420, help="no new round is begun after that")
    parser.add_argument("--out", type=Path, default=records.default_path(), help="bench/results/DEVICE-DATE.json")
    options = parser.parse_args()
    rows = measure(options.size, torch.device("cuda" if on_gpu else "cpu"), options.rounds, options.seconds)
    records.show(rows, [])
    records.write(options.out, rows, [])
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
