"""What may stand in the files of a run. They may come from anywhere, so whoever reads them checks them first."""

from collections.abc import Mapping, Set
from typing import Any

LARGEST = 10**15
"""No count, and no figure that is drawn, is larger."""

METRICS = {"cap", "accuracy", "reward_mean", "truncation_rate", "entropy", "train_tokens", "response_tokens"}
METRICS |= {"response_tokens_mean", "tokens_right_mean", "tokens_wrong_mean", "repetition_rate", "zero_variance_groups"}
METRICS |= {"backtracking_per_response", "forward_words_per_response", "lockstep_efficiency", "budget_use"}
METRICS |= {"loss", "grad_norm", "clip_low_fraction", "clip_high_fraction", "approx_kl", "mismatch_k3", "gpu_memory"}
METRICS |= {"tokens_per_s", "mfu", "memory_peak", "memory_predicted"}
METRICS |= {"rollout_began_time", "rollout_ended_time", "train_began_time", "train_ended_time"}
METRICS |= {"staleness_mean", "staleness_max", "rollout_idle_time_share", "batches_ready", "responses_unfinished"}
"""Numbers of metrics.jsonl that are drawn or counted; so is every time (NAME_s)."""
EVALS = {"cap", "accuracy", "tokens_mean", "tokens_right_mean", "tokens_wrong_mean", "truncation_rate", "train_tokens"}
EVALS |= {"problems", "samples"}
"""Numbers of eval.jsonl."""
CONFIG = {"l_max", "l_min", "cycle", "steps", "seed", "group_size", "prompts_per_step", "save_every"}
"""Numbers of config.json."""


def is_count(value: Any) -> bool:
    """A whole number from 0 to LARGEST."""
    return type(value) is int and 0 <= value <= LARGEST


def is_number(value: Any) -> bool:
    """A finite number of a size that can be drawn."""
    return type(value) in (int, float) and abs(value) <= LARGEST  # NaN and infinities are not


def row_fault(kind: str, row: Mapping[str, Any]) -> str:
    """What is wrong with a row of KIND.jsonl, in words; "" where nothing is."""
    if not is_count(row.get("step")):
        return "has no step" if "step" not in row else "its step is no count"
    if not isinstance(row.get("phase"), (str, type(None))):
        return "its phase is no text"
    if not isinstance(row.get("turn"), (str, type(None))):
        return "its turn is no text"
    if kind == "metrics":
        return _numbers(row, METRICS | {key for key in row if key.endswith("_s")})
    if kind == "eval":
        return _eval_fault(row)
    return _plan_fault(row) if kind == "plans" else ""


def config_fault(config: Any) -> str:
    """What is wrong with a config.json, as far as a report reads it."""
    if not isinstance(config, dict):
        return "it holds no object"
    return _numbers(config, CONFIG)


def _numbers(row: Mapping[str, Any], keys: Set[str]) -> str:
    bad = sorted(key for key in keys if row.get(key) is not None and not is_number(row[key]))
    return f"its {bad[0]} is no number" if bad else ""


def _eval_fault(row: Mapping[str, Any]) -> str:
    if not isinstance(row.get("name"), str):
        return "has no name"
    benchmarks = row.get("benchmarks") or {}
    if not isinstance(benchmarks, dict) or not all(isinstance(figures, dict) for figures in benchmarks.values()):
        return "its benchmarks are no objects"
    return next(filter(None, (_numbers(figures, EVALS) for figures in (row, *benchmarks.values()))), "")


def _plan_fault(row: Mapping[str, Any]) -> str:
    """A plan is drawn as lengths[s][r] in bars of costs[s][r]."""
    costs, lengths = row.get("costs"), row.get("lengths")
    if not costs:
        return ""  # not drawn
    if not is_number(row.get("cap")) or not is_number(row.get("lockstep_efficiency")):
        return "its cap or lockstep_efficiency is no number"
    if not isinstance(costs, list) or not isinstance(lengths, list) or len(costs) != len(lengths):
        return "its costs and lengths are no lists of the same length"
    ranks = len(costs[0]) if isinstance(costs[0], list) else 0
    for cost, length in zip(costs, lengths, strict=True):
        if not (isinstance(cost, list) and isinstance(length, list) and len(cost) == len(length) == ranks > 0):
            return "its costs and lengths are not those of the same ranks"
        if not all(is_number(value) and value >= 0 for value in cost):
            return "its costs are no numbers"
        if not all(isinstance(each, list) and all(is_count(n) and n for n in each) for each in length):
            return "its lengths are no counts"
    if not isinstance(row.get("starts"), list):
        return "its starts are no list"
    for key in ("seconds", "predicted"):
        times = row.get(key)
        if times is not None and not (isinstance(times, list) and all(map(is_number, times))):
            return f"its {key} are no numbers"
    return ""


def state_fault(state: Any, steps: int | None) -> str:
    """What is wrong with the state.json of the checkpoint after `steps` steps, where that is known."""
    if not isinstance(state, dict) or not is_count(state.get("steps_done")):
        return "does not say how far it got"
    if steps is not None and state["steps_done"] != steps:
        return f"is that of another step, {state['steps_done']}"
    if not is_count(state.get("train_tokens")):
        return "its train_tokens is no count"
    if not isinstance(state.get("name"), (str, type(None))):
        return "its name is no text"
    sampler = state.get("sampler", {"epoch": 0, "cursor": 0, "seed": 0})
    wanted = {"epoch", "cursor", "seed"}
    if (
        not isinstance(sampler, dict)
        or sampler.keys() - {"size"} != wanted
        or not all(type(value) is int and value >= 0 for value in sampler.values())
        or not all(sampler[key] < 2**63 for key in ("epoch", "cursor"))
    ):
        return "its sampler is none"
    if not is_count(state.get("staleness", 0)):
        return "its staleness is no count"
    streaks = state.get("health", {})
    if not isinstance(streaks, dict) or not all(map(is_count, streaks.values())):
        return "its health is none"
    return ""
