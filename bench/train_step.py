"""An optimizer step of R1-Distill-Qwen-1.5B (its config, random weights): packed as SIRI trains, and two padded ways.

`python bench/train_step.py [--size tiny|1.5b] [--out FILE]` measures at each cap of the size, on responses of lognormal
length (median 0.45 of the cap, sigma 0.7, cut at the cap): tokens/s, model FLOPs utilisation, peak memory beside what
`siri.planning.memory_plan` predicts, and the share of the head.

siri packed          `siri.train.learner`: lock-step packing, packed attention, fused head and loss
padded full logits   transformers as it comes: all responses right-padded to the longest of the batch, logits in memory
padded TRL chunked   the same padding, with TRL's chunked log-probs of the response tokens only

All three run on the same sharded model (FSDP2, a mesh of one on one GPU), the same samples and AdamW at a learning rate
of 0, so that the norms of their gradients have to agree; who disagrees is not reported. Padded micro-batches are as
large as the memory allows. On a CPU it runs the tiny size, so that it cannot rot; nothing is claimed from that.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import records
import torch
from kernel_peers import installed
from model_sizes import MODELS
from siri_kernels import grpo_loss

from siri.config import Config
from siri.model.fsdp import full, shard
from siri.model.policy import Policy, allocate, checkpoint_activations
from siri.packing.flops import training_flops
from siri.planning.formulas import LEVELS, kept_and_redone
from siri.planning.gpus import model_flops_utilisation
from siri.planning.memory_plan import Machine, MemoryPlan, memory_plan, update_peak
from siri.runtime.ranks import Ranks, join_ranks, leave_ranks
from siri.runtime.stopwatch import Stopwatch
from siri.train.learner import Learner
from siri.train.samples import Sample

COMMON = {"rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False, "use_sliding_window": False}
CAPS = {"1.5b": (16_384, 8192), "tiny": (96, 48)}
SEQUENCES = {"1.5b": 24, "tiny": 8}
PROMPT = {"1.5b": 128, "tiny": 5}
BUDGETS = (49_152, 36_864, 24_576)
ROOM = 0.9
"""Share of a GPU's memory that plans may fill"""
GOALS = {"mfu": (0.45, "higher"), "speedup-padded": (2.5, "higher"), "memory-error": (0.10, "lower")}
MFU_CAP = 16_384
"""The goal of MFU is for this cap"""


@dataclass(frozen=True)
class Setup:
    policy: Policy
    optimizer: torch.optim.Optimizer
    ranks: Ranks
    device: torch.device
    memory: int = 0
    """bytes of the GPU; 0 on a CPU"""
    multiprocessors: int = 132

    @property
    def config(self) -> Any:
        return self.policy.model.config

    @property
    def always(self) -> int:
        """Bytes of weights, gradients, also those that stay whole between micro-steps, and AdamW's moments."""
        plan = planned(self, 1, "none")
        return plan.always + plan.accumulated


def planned(setup: Setup, tokens: int, checkpointing: str) -> MemoryPlan:
    """The memory plan of a run whose micro-steps have `tokens` tokens, without a rollout engine on the GPU."""
    config = Config(max_prompt_tokens=1, l_max=2, l_min=1, token_budget=max(tokens, 3), checkpointing=checkpointing)
    machine = Machine(1, max(setup.memory, 1), multiprocessors=setup.multiprocessors)
    return memory_plan(setup.config, config, machine, rollout="served")


def build(size: str, device: torch.device) -> Setup:
    """The model with random weights, sharded on a GPU as `siri train` shards it."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    from siri.model import attention
    from siri.model.liger import apply_liger

    ranks, device = join_ranks(device)
    config = Qwen2Config(**MODELS[size], **COMMON)
    with torch.device("meta" if ranks.sharded else device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention.register())
    for line in apply_liger(model, "auto", device).notes:
        print(line)
    if ranks.sharded:
        shard(model, ranks, compute_dtype=torch.bfloat16)
        allocate(model, device)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1)
            else:
                parameter.normal_(0, 0.02)
    policy = Policy(model, None, frozenset(), config.max_position_embeddings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    if device.type != "cuda":
        return Setup(policy, optimizer, ranks, device)
    gpu = torch.cuda.get_device_properties(device)
    return Setup(policy, optimizer, ranks, device, gpu.total_memory, gpu.multi_processor_count)


def draw(size: str, cap: int) -> list[Sample]:
    """Samples with responses of lognormal length and advantages of both signs."""
    g = np.random.default_rng(cap)
    lengths = np.clip(np.round(0.45 * cap * np.exp(0.7 * g.standard_normal(SEQUENCES[size]))), 1, cap).astype(int)
    vocab = MODELS[size]["vocab_size"]
    ids = lambda n: g.integers(vocab, size=n).tolist()  # noqa: E731
    return [
        Sample(ids(PROMPT[size]), ids(n), [0.0] * int(n), float(advantage))
        for n, advantage in zip(lengths, g.standard_normal(len(lengths)), strict=True)
    ]


# --- three ways ---


def packed_plan(setup: Setup, longest: int) -> tuple[int, str]:
    """Token budget and checkpointing: what recomputes least, and of these the largest budget that fits."""
    if not setup.memory:
        return max(2 * longest, 128), "none"
    for level in LEVELS:
        for budget in BUDGETS:
            if budget >= longest and predicted_bytes(setup, budget, level) <= ROOM * setup.memory:
                return budget, level
    return longest, "full"


def predicted_bytes(setup: Setup, tokens: int, checkpointing: str) -> int:
    """Peak of a packed update whose largest micro-step has `tokens` tokens."""
    return update_peak(setup.config, planned(setup, tokens, checkpointing), tokens, several=True)


def packed(setup: Setup, samples: list[Sample], budget: int, config: Config) -> Callable[[Stopwatch], dict]:
    """A step by `siri.train.learner`; returns its norm and its largest micro-step."""

    def step(watch: Stopwatch) -> dict:
        learner = Learner(setup.policy, setup.optimizer, config, token_budget=budget, watch=watch, ranks=setup.ranks)
        update = learner.update([samples])
        largest = max(sum(lengths) for micro_step in update.plan.lengths for lengths in micro_step)
        return {name: update.metrics[name] for name in ("grad_norm", "micro_steps")} | {"largest": largest}

    return step


def padded(setup: Setup, samples: list[Sample], rows: int, loss: Callable) -> Callable[[Stopwatch], dict]:
    """A step over right-padded micro-batches of `rows` sequences, in the order of sampling."""
    model, counted = setup.policy.model, sum(len(sample.response_ids) for sample in samples)
    longest = max(map(len, samples))
    parts = [samples[start : start + rows] for start in range(0, len(samples), rows)]

    def step(watch: Stopwatch) -> dict:
        setup.optimizer.zero_grad(set_to_none=True)
        for number, part in enumerate(parts, start=1):
            batch = right_padded(part, longest, setup.device)
            if setup.ranks.sharded:
                model.set_requires_gradient_sync(number == len(parts))
            with torch.autocast("cuda", torch.bfloat16, enabled=setup.device.type == "cuda"):
                logp = loss(setup.policy, batch)
            grpo_loss(logp, None, batch.advantages, denominator=counted).loss.backward()
        norm = full(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)).item()
        setup.optimizer.step()
        setup.optimizer.zero_grad(set_to_none=True)
        return {"grad_norm": norm, "micro_steps": len(parts), "largest": rows * longest}

    return step


def right_padded(samples: Sequence[Sample], longest: int, device: torch.device) -> SimpleNamespace:
    """ids and attention mask [B, T], where a response token is predicted [B, T - 1], and the advantages of those R."""
    ids = torch.zeros(len(samples), longest, dtype=torch.int64)
    mask, predicts = torch.zeros_like(ids), torch.zeros(len(samples), longest - 1, dtype=torch.bool)
    for row, sample in enumerate(samples):
        ids[row, : len(sample)] = torch.tensor([*sample.prompt_ids, *sample.response_ids])
        mask[row, : len(sample)] = 1
        predicts[row, len(sample.prompt_ids) - 1 : len(sample) - 1] = True
    advantages = torch.tensor([a.advantage for a in samples])[:, None].expand_as(predicts)[predicts]
    tensors = {"ids": ids, "mask": mask, "predicts": predicts, "advantages": advantages}
    return SimpleNamespace(**{name: tensor.to(device) for name, tensor in tensors.items()})


def full_logits(policy: Policy, batch: SimpleNamespace) -> torch.Tensor:
    """Log-probs [R] of the response tokens from logits of every position."""
    z = policy.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits[:, :-1]
    logp = z.float().log_softmax(-1).gather(-1, batch.ids[:, 1:, None]).squeeze(-1)
    return logp[batch.predicts]


def trl_chunked(policy: Policy, batch: SimpleNamespace) -> torch.Tensor:
    """Log-probs [R] by TRL's chunked function, as its trainer calls it: on the response tokens alone."""
    from trl.kernels import ChunkedLogProbFunction

    def inside(model: Any) -> torch.Tensor:
        out = model.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        hidden = out.last_hidden_state[:, :-1][batch.predicts]
        hidden = hidden.bfloat16() if hidden.is_cuda else hidden
        targets, weight = batch.ids[:, 1:][batch.predicts], model.lm_head.weight.to(hidden.dtype)
        return ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, 32768, None, 1.0, ())[0]

    return policy.call(inside)


def padded_plan(setup: Setup, longest: int, logits: bool) -> tuple[int, str]:
    """Sequences of a micro-batch and checkpointing: what recomputes least, and of these the most that fit. Full logits
    take 16 bytes for each: in bf16, twice in fp32, and the gradients of both kinds."""
    if not setup.memory:
        return 2, "none"
    for level in ("none", "full"):
        kept, anew = kept_and_redone(setup.config, level, attention="sdpa")  # a padded batch is dense
        each = longest * (setup.config.num_hidden_layers * kept + anew)
        each += 16 * longest * setup.config.vocab_size if logits else 8 * longest * setup.config.hidden_size
        rows = int(ROOM * setup.memory - setup.always - 10 * setup.config.vocab_size * setup.config.hidden_size) // each
        if rows >= 1:
            return rows, level
    return 1, "full"


# --- the measurement ---


def set_checkpointing(model: Any, level: str) -> None:
    # the method's name until transformers 6
    (getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable)()
    checkpoint_activations(model, level)


def run(setup: Setup, step: Callable[[Stopwatch], dict], rounds: int) -> dict | None:
    """Median seconds, peak bytes and parts of a step after one to warm up; None when memory runs out."""
    watch = Stopwatch(setup.device)
    try:
        step(watch)
        watch.seconds()
        before = torch.cuda.memory_allocated() if setup.memory else 0
        if setup.memory:
            torch.cuda.reset_peak_memory_stats()
        seconds, parts, outcome = [], [], {}
        for _ in range(rounds):
            with watch("step"):
                outcome = step(watch)
            parts.append(watch.seconds())
            seconds.append(parts[-1]["step_s"])
    except torch.OutOfMemoryError as error:
        print(f"out of memory: {str(error).splitlines()[0]}")
        return None
    middle = seconds.index(statistics.median_low(seconds))
    peak = torch.cuda.max_memory_allocated() if setup.memory else None
    memory = {"peak": peak, "extra": None if peak is None else peak - before}
    return {**outcome, **memory, "seconds": seconds[middle], "parts": parts[middle]}


def ways(setup: Setup, size: str, samples: list[Sample]) -> dict[str, tuple[str, str, Callable]]:
    """Name -> (setting, checkpointing, step)."""
    longest = max(map(len, samples))
    budget, level = packed_plan(setup, longest)
    # the gradient is looked at before it is clipped; whatever else a step needs is SIRI's default
    config = Config(temperature=1.0, checkpointing=level, clip_high=0.28)
    by_name = {"siri packed": (f"budget {budget}", level, packed(setup, samples, budget, config))}
    rows, level = padded_plan(setup, longest, logits=True)
    by_name["padded full logits"] = (f"{rows} a micro-batch", level, padded(setup, samples, rows, full_logits))
    if installed("trl.kernels"):
        rows, level = padded_plan(setup, longest, logits=False)
        by_name["padded TRL chunked"] = (f"{rows} a micro-batch", level, padded(setup, samples, rows, trl_chunked))
    return by_name


def measure(
    setup: Setup, size: str, cap: int, rounds: int, deadline: float, out: Path
) -> tuple[list[dict], dict[str, float]]:
    """Rows and goal values of one cap; each row is written when it is there, so that a limit on time costs only what
    comes after."""
    samples = draw(size, cap)
    tokens = sum(map(len, samples))
    responses = [len(sample.response_ids) for sample in samples]
    flops = training_flops(setup.config, [len(s) for s in samples], responses, [True] * len(samples))
    rows, norms, values = [], {}, {}
    for name, (setting, level, step) in ways(setup, size, samples).items():
        if time.monotonic() > deadline:
            print(f"cap {cap}: time is up, {name} stays unmeasured")
            continue
        set_checkpointing(setup.policy.model, level)
        begin = time.monotonic()
        timing = run(setup, step, rounds if name == "siri packed" else 1)
        print(f"cap {cap}: {name} took {time.monotonic() - begin:.0f} s, with a step to warm up", flush=True)
        if timing is None:
            break  # a step that was cut off leaves the sharded model in no state to go on from
        norms[name] = timing["grad_norm"]
        off = abs(norms[name] / norms["siri packed"] - 1)
        if off > (0.02 if setup.memory else 1e-4):
            print(f"cap {cap}: the gradient of {name} is off by {off:.1%}; left out")
            continue
        seconds = timing["seconds"]
        row = {"op": "train_step", "impl": name, "size": f"{size}-{cap_name(cap)}", "ms": 1e3 * seconds}
        row |= {"ratio_to_gemm": None, "extra_bytes": timing["extra"], "max_error": None, "memory_peak": timing["peak"]}
        row |= {"tokens": tokens, "tokens_per_s": tokens / seconds, "setting": f"{setting}, checkpointing {level}"}
        row |= {"mfu": model_flops_utilisation(flops, seconds, 1, setup.device), "micro_steps": timing["micro_steps"]}
        row |= {"grad_norm": norms[name]}
        if name == "siri packed":
            row |= {"memory_predicted": predicted_bytes(setup, timing["largest"], level)}
            row |= {part: share for part, share in timing["parts"].items() if part != "step_s"}
            row |= {"head_share": timing["parts"]["head_s"] / seconds}
        rows.append(row)
        records.write(out, [row], [])
    by_name = {row["impl"]: row for row in rows}
    ours, theirs = by_name.get("siri packed"), by_name.get("padded full logits")
    if ours and setup.memory:
        values["mfu"] = ours["mfu"]
        values["memory-error"] = abs(ours["memory_predicted"] / ours["memory_peak"] - 1)
        if theirs:
            values["speedup-padded"] = ours["tokens_per_s"] / theirs["tokens_per_s"]
    return rows, values


def cap_name(cap: int) -> str:
    return f"{cap // 1024}k" if cap % 1024 == 0 else str(cap)


def goals_of(size: str, cap: int, values: dict[str, float]) -> list[dict]:
    """Unmeasured at the tiny size, whatever it ran on."""
    return [
        records.goal(f"train.{name}.{size}-{cap_name(cap)}", None if size == "tiny" else values.get(name), *limit)
        for name, limit in GOALS.items()
        if name != "mfu" or cap == MFU_CAP or size == "tiny"
    ]


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description="A training step, packed and padded, measured.")
    parser.add_argument("--size", choices=MODELS, default="1.5b" if on_gpu else "tiny")
    parser.add_argument("--caps", type=int, nargs="+", help="16384 and 8192 for 1.5b, unless named")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=420, help="nothing new is begun after that")
    parser.add_argument("--out", type=Path, default=records.default_path(), help="bench/results/DEVICE-DATE.json")
    options = parser.parse_args()
    begin = time.monotonic()
    deadline = begin + options.seconds
    setup = build(options.size, torch.device("cuda" if on_gpu else "cpu"))
    print(f"the model was there after {time.monotonic() - begin:.0f} s", flush=True)
    try:
        for cap in options.caps or CAPS[options.size]:
            rows, values = measure(setup, options.size, cap, options.rounds, deadline, options.out)
            goals = goals_of(options.size, cap, values)
            records.write(options.out, rows, goals)
            records.show(rows, goals)
            for row in rows:
                mfu = "" if row["mfu"] is None else f", MFU {row['mfu']:.1%}"
                head = f", head {row['head_share']:.1%}" if "head_share" in row else ""
                print(f"{row['impl']:20}{row['tokens_per_s']:12.0f} tokens/s{mfu}{head} ({row['setting']})")
    finally:
        leave_ranks()
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
