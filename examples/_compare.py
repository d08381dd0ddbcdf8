"""What every example prints: peak memory and time of one step before and after, and the largest difference."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent.parent)]  # runs from a checkout, from any folder
os.environ.setdefault("HF_HUB_OFFLINE", "1")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def tiny_qwen2(vocab: int = 8192):
    """A random two-layer Qwen2 with a vocabulary that dwarfs it, as a real one's does."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        eos_token_id=2,
        bos_token_id=1,
        pad_token_id=0,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(DEVICE)


@contextlib.contextmanager
def without_profiler_noise():
    """The profiler's C++ writes lines of its own to standard output and error, past Python's streams."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(nowhere, number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, stream in zip((1, 2), kept, strict=True):
            os.dup2(stream, number)
            os.close(stream)
        os.close(nowhere)


def measure(step) -> tuple[int, float]:
    """(peak bytes of live tensors above those before, seconds) of a step that has run once before."""
    step()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, start = torch.cuda.memory_allocated(), time.perf_counter()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before, time.perf_counter() - start
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    recording = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
    with without_profiler_noise(), recording as recorded:
        step()
    live = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak, seconds


def gradients(model) -> list[torch.Tensor]:
    return [p.grad.detach().clone() for p in model.parameters() if p.grad is not None]


def largest_difference(before, after) -> float:
    """Over nested lists of tensors."""
    if isinstance(before, torch.Tensor):
        return float((before.detach().double() - after.detach().double()).abs().max())
    return max(largest_difference(x, y) for x, y in zip(before, after, strict=True))


def report(title: str, before: tuple[int, float], after: tuple[int, float], difference: float) -> None:
    print(f"{title} ({DEVICE}, tiny model: the sizes say nothing about a real one's speed)")
    for name, (peak, seconds) in (("before", before), ("after", after)):
        print(f"  {name:<7} peak {peak / 2**20:8.1f} MiB   {1e3 * seconds:8.1f} ms")
    if DEVICE == "cpu":
        print("  (the buffer for logits is 32 MiB on a CPU, however large the batch)")
    print(f"  largest difference {difference:.1e}")
    if not difference < 1e-3:
        raise SystemExit("the adapter does not reproduce the trainer")
