"""GPU-hours of a run before it starts: the cost model's FLOPs and tokens over rates that are ASSUMED, not measured.

    training  model FLOPs (`siri.packing.flops.training_flops`) / (GPUs x data sheet peak x assumed MFU)
    rollout   response tokens / (GPUs x assumed tokens/s of a GPU)

Without a figure for the latter, decoding is taken to read the weights, and the keys and values of all responses in
flight, once for every token of each, at DECODE_SHARE of the memory's bandwidth. That is vLLM; the embedded engine has
a price of its own (`_embedded_s`). Grading, weight sync, evaluations and
checkpoints are left out.
"""

from dataclasses import dataclass
from functools import cache
from math import prod
from statistics import NormalDist
from typing import Any

import numpy as np

from siri.config import Config
from siri.packing.flops import training_flops
from siri.planning.memory_plan import MemoryPlan, adapter_of, caps

MEDIAN_SHARE, SIGMA = 0.45, 0.7
"""Assumed lengths of responses: lognormal, this share of the cap in the median, cut at the cap."""
PROMPT_TOKENS = 150
"""Assumed length of a prompt."""
DECODE_SHARE = 0.25
"""Assumed share of the memory's bandwidth that decoding uses, over a whole batch with its tail."""
LAYER_S = 1e-3
"""Assumed seconds that the embedded engine takes for a layer and token, however few responses there are: it launches
every kernel by itself."""
QUANTILES = 512


@dataclass(frozen=True)
class Rates:
    """What a GPU does in a second."""

    flops: float
    """Model FLOPs in training: peak times assumed MFU."""
    bandwidth: float
    """Bytes, from the data sheet; unused with tokens_per_s."""
    tokens_per_s: float = 0.0
    """Response tokens sampled by a GPU; 0 = from the bandwidth."""


@dataclass(frozen=True)
class StepHours:
    """A step at one cap."""

    cap: int
    response_tokens: float
    """Of the whole batch."""
    rollout_s: float
    """0 with vLLM servers, whose GPUs are others."""
    train_s: float
    tokens_per_s: float
    """Response tokens that a GPU is taken to sample in a second; 0 with vLLM servers."""


@dataclass(frozen=True)
class RunHours:
    """A whole run, GPU-hours, and its steps at the caps of each phase."""

    rollout: float
    training: float
    steps: tuple[tuple[str, StepHours], ...]

    @property
    def total(self) -> float:
        return self.rollout + self.training


def run_hours(model_config: Any, plan: MemoryPlan, rates: Rates) -> RunHours:
    """Predict the GPU-hours of plan's run. Everything in `rates` is assumed; nothing was measured."""
    config, gpus = plan.config, plan.machine.gpus
    schedule = config.length_schedule()

    @cache
    def at(cap: int) -> StepHours:
        return step_hours(model_config, plan, rates, cap)

    steps = [at(schedule.cap(step)) for step in range(config.steps)]
    rollout, training = (
        gpus * sum(seconds) / 3600
        for seconds in ([hours.rollout_s for hours in steps], [hours.train_s for hours in steps])
    )
    return RunHours(rollout, training, tuple((name, at(cap)) for name, cap in caps(config)))


def step_hours(model_config: Any, plan: MemoryPlan, rates: Rates, cap: int) -> StepHours:
    """Seconds of a step whose responses are cut at `cap`."""
    config, gpus = plan.config, plan.machine.gpus
    responses = response_lengths(cap)
    lengths = responses + PROMPT_TOKENS
    count = config.prompts_per_step * config.group_size
    tokens = count * float(responses.mean())
    train_s = count / QUANTILES * _flops(model_config, config, lengths, responses) / (gpus * rates.flops)
    if plan.rollout == "served":
        return StepHours(cap, tokens, 0.0, train_s, 0.0)
    speed = rates.tokens_per_s
    if not speed and plan.rollout == "local":
        seconds = _embedded_s(model_config, plan, rates, cap)
        return StepHours(cap, tokens, seconds, train_s, tokens / (gpus * seconds))
    if not speed:
        context = PROMPT_TOKENS + float((responses**2).sum() / responses.sum()) / 2  # mean over the tokens sampled
        in_flight = min(-(-count // gpus), max(1.0, plan.phases[0].cache_tokens / context))
        read = 2 * plan.parameters + in_flight * context * plan.cache_token
        speed = in_flight * DECODE_SHARE * rates.bandwidth / read
    return StepHours(cap, tokens, tokens / (gpus * speed), train_s, speed)


def _embedded_s(model_config: Any, plan: MemoryPlan, rates: Rates, cap: int) -> float:
    """Seconds of a rollout of the embedded engine: it samples in waves, as many responses as its cache holds at the
    cap, each of which lasts as long as its longest response, and a token of all of them takes LAYER_S a layer beside
    what is read."""
    count = -(-plan.config.prompts_per_step // plan.machine.gpus) * plan.config.group_size
    at_once = max(1, min(count, plan.phases[0].cache_tokens // (PROMPT_TOKENS + cap)))
    waves = -(-count // at_once)
    longest = float(np.quantile(response_lengths(cap), at_once / (at_once + 1)))
    read = 2 * plan.parameters + at_once * (PROMPT_TOKENS + longest / 2) * plan.cache_token
    each = LAYER_S * model_config.num_hidden_layers + read / (DECODE_SHARE * rates.bandwidth)
    return waves * longest * each


def _flops(model_config: Any, config: Config, lengths: np.ndarray, responses: np.ndarray) -> float:
    """Of one sequence of every length; mini-batches after the first score old log-probs in a pass of their own."""
    alive = np.ones(len(lengths), dtype=bool)
    scored = 1 - min(1.0, config.mini_batch_prompts / config.prompts_per_step)
    shapes = adapter_of(model_config, config)
    at_head = sum(prod(shape) for name, shape in shapes.items() if name.startswith("lm_head."))
    adapter = (sum(map(prod, shapes.values())) - at_head, at_head) if shapes else None
    once, twice = (
        training_flops(model_config, lengths, responses, alive, scored=flag, adapter=adapter) for flag in (False, True)
    )
    return once + scored * (twice - once)


def response_lengths(cap: int) -> np.ndarray:
    """Quantiles of the assumed lengths, tokens."""
    normal = NormalDist(np.log(MEDIAN_SHARE * cap), SIGMA)
    shares = (np.arange(QUANTILES) + 0.5) / QUANTILES
    return np.clip(np.exp([normal.inv_cdf(share) for share in shares]), 1, cap)
