"""Made-up but realistic run folders for the tests of what a person sees. Nothing here was measured."""

import json
import math
from pathlib import Path

import numpy as np

from siri.packing import pack
from siri.packing.step_plan import StepPlan, StepTimes
from siri.schedule import LengthSchedule
from siri.store.jsonl import MetricsLog

DEMO = {
    "steps": 120,
    "l_max": 96,
    "l_min": 20,
    "cycle": 40,
    "tokens": (45.0, 19.0),
    "accuracy": (0.44, 0.985),
    "entropy": (0.31, 0.11),
}
LARGE = {
    "steps": 1920,
    "l_max": 16384,
    "l_min": 8192,
    "cycle": 640,
    "tokens": (9500, 6800),
    "accuracy": (0.36, 0.52),
    "entropy": (0.62, 0.41),
}

PARTS = {"reward": 0.1, "plan": 0.01, "old_logp": 0.02, "forward": 0.08, "head": 0.05, "backward": 0.11}
PARTS |= {"optimizer": 0.02, "save": 0.05}
"""Shares of a step; 0.7 is rollout and 0.3 training, of which 0.01 is no named part."""


def make_run(
    folder: Path,
    *,
    recipe: str = "demo",
    schedule: str = "cosine",
    steps: int = 120,
    upto: int | None = None,
    l_max: int = 96,
    l_min: int = 20,
    cycle: int = 40,
    tokens: tuple[float, float] = (45.0, 19.0),
    accuracy: tuple[float, float] = (0.44, 0.985),
    entropy: tuple[float, float] = (0.31, 0.11),
    lag: float = 0.2,
    eval_every: int | None = None,
    base: bool = True,
    seed: int = 0,
) -> Path:
    """Write config.json, metrics.jsonl and eval.jsonl of a run of `steps` steps, of which `upto` are done."""
    folder.mkdir(parents=True, exist_ok=True)
    caps = LengthSchedule(schedule, l_max, l_min, cycle)
    rng = np.random.default_rng(seed)
    config = {
        "recipe": recipe,
        "model": "siri/demo/assets/model" if l_max < 1000 else "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        "data": "siri.demo" if l_max < 1000 else "agentica-org/DeepScaleR-Preview-Dataset",
        "schedule": schedule,
        "l_max": l_max,
        "l_min": l_min,
        "cycle": cycle,
        "steps": steps,
        "seed": seed,
        "prompts_per_step": 16,
        "group_size": 16,
        "lr": 1e-4,
        "stages": None,
    }
    (folder / "config.json").write_text(json.dumps(config))
    metrics, evals, plans = (MetricsLog(folder / f"{name}.jsonl") for name in ("metrics", "eval", "plans"))
    mid, half = (l_max + l_min) / 2, (l_max - l_min) / 2
    trained = 0.0

    def at(pair: tuple[float, float], share: float) -> float:
        return pair[0] + (pair[1] - pair[0]) * (1 - math.exp(-3.2 * share)) / (1 - math.exp(-3.2))

    def swing(step: float) -> float:
        return 0.0 if schedule == "constant" else (caps.cap(max(int(step - lag * cycle), 0)) - mid) / max(half, 1)

    def evaluate(step: int, name: str) -> None:
        share = step / steps
        right = at((accuracy[0] + 0.07, accuracy[1]), share) + 0.008 * swing(step) * (step > 0)
        length = at(tokens, share) * (1 + 0.12 * swing(step) * (step > 0))
        evals.append(
            {
                "step": step,
                "name": name,
                "cap": l_max,
                "accuracy": min(right, 0.997),
                "tokens_mean": length,
                "truncation_rate": 0.02 * math.exp(-3 * share),
                "pass_at_k": {"1": min(right, 0.997), "8": min(right * 1.2, 1)},
                "samples": 8192,
                "problems": 512,
                "train_tokens": int(trained),
            }
        )

    if base:
        evaluate(0, "base")
    for step in range(steps if upto is None else upto):
        share, cap = step / steps, caps.cap(step)
        length = min(at(tokens, share) * (1 + 0.12 * swing(step)) * rng.normal(1, 0.03), 0.97 * cap)
        cut = min(1.0, 0.9 * math.exp(-1.6 * cap / length) * 1.3)
        right = float(np.clip(at(accuracy, share) * (1 - 0.35 * cut) + rng.normal(0, 0.02), 0, 1))
        seconds = length * 256 / 9000
        trained += length * 256
        metrics.append(
            {
                "step": step,
                "phase": caps.phase(step),
                "cap": cap,
                "reward_mean": right,
                "accuracy": right,
                "response_tokens_mean": length,
                "truncation_rate": cut,
                "entropy": at(entropy, share) * (1 + 0.1 * swing(step)) * rng.normal(1, 0.03),
                "loss": rng.normal(0, 0.02),
                "grad_norm": rng.lognormal(-1.2, 0.2),
                "clip_low_fraction": 0.001,
                "clip_high_fraction": 0.002,
                "approx_kl": 1e-4,
                "lockstep_efficiency": 0.97,
                "budget_use": 0.9,
                "zero_variance_groups": right**8,
                "train_tokens": int(trained),
                "rollout_s": 0.7 * seconds,
                "train_s": 0.3 * seconds,
                "step_time_s": seconds,
                "tokens_per_s": 9000.0,
                **{f"{name}_s": share * seconds for name, share in PARTS.items()},
                "micro_steps_s": 0.24 * seconds,
                "micro_steps_predicted_s": 0.27 * seconds if step else None,
            }
        )
        done = step + 1
        if done % cycle in (0, cycle // 2):
            plan, lengths = StepPlan(), rng.integers(1, cap + 1, 64).tolist()
            for part in (lengths[:32], lengths[32:]):
                plan.add(pack(part, token_budget=3 * cap, ranks=4), part)
            StepTimes().note(plan, [0.1] * len(plan.costs))
            plans.append(plan.record(step=step, phase=caps.phase(step), cap=cap, token_budget=3 * cap))
        if schedule != "constant" and done % cycle == cycle // 2:
            evaluate(done, f"siri-low-{done // cycle + 1}")
        elif schedule != "constant" and done % cycle == 0:
            evaluate(done, f"siri-high-{done // cycle}")
        elif eval_every and done % eval_every == 0:
            evaluate(done, f"step-{done}")
        if done == steps:
            evaluate(done, "final")
    return folder
