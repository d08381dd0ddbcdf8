"""`siri plan RECIPE`: GPU memory and GPU-hours that a run needs."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from siri.commands.splits import print_splits, prompt_means, splits
from siri.config import Config
from siri.config.recipe import RecipeOptions
from siri.config.settings import setting
from siri.errors import InputError
from siri.planning.formulas import RESERVE
from siri.planning.hours import Rates, run_hours
from siri.planning.memory_plan import Machine, MemoryPlan, memory_plan
from siri.planning.models import load_model_config
from siri.planning.tables import find_gpu, print_hours, print_plan
from siri.text import say


@dataclass(frozen=True)
class PlanOptions(RecipeOptions):
    """The machines, and what is assumed of them."""

    gpus: int = setting(8, everyday=True)
    """GPUs that train together."""
    gpus_per_node: int = 8
    """GPUs of one machine."""
    gpu: str = setting("h100", everyday=True)
    """h100, h200, a100-40, a100-80, l40s, rtx4090, a10, or bytes of memory, such as 80e9."""
    reserve: float = RESERVE
    """Share of the memory kept free."""
    assumed_mfu: float = setting(0.4, above=0, most=1)
    """Share of the GPUs' peak that training is taken to reach, for the GPU-hours."""
    assumed_tokens_per_s: float = setting(0.0, least=0)
    """Response tokens that one GPU is taken to sample in a second; 0 = from its memory's bandwidth."""
    lengths_of: str = ""
    """A run whose prompts' mean lengths the simulation of splits draws from; empty = the assumed distribution."""


def run_plan(options: PlanOptions) -> int:
    """Print the plan, and the GPU-hours where the GPU is known; returns 0 when it fits and 1 when it does not."""
    from siri.data.problems import resolve_path
    from siri.model.liger import planned
    from siri.model.policy import ARCHITECTURES
    from siri.model.weight_files import settle_tying
    from siri.rollout.engines import planned_engine

    config = options.config("model")
    gpu = find_gpu(options.gpu)
    machine = Machine(options.gpus, gpu.memory, options.gpus_per_node, options.reserve, gpu.multiprocessors)
    model_config, known = load_model_config(config.model)
    if known:
        say(known)
    elif model_config.model_type in ARCHITECTURES:  # others are refused below
        note = settle_tying(model_config, config.model, resolve_path(config.model), fetch=False)
        if note:
            say(note)
    # that of a run on GPUs, with the vLLM that is installed here, if it is
    rollout, note = planned_engine(config)
    if note:
        say(note)
    plan = memory_plan(model_config, config, machine, rollout=rollout, liger=planned(config.liger))
    print_plan(plan)
    counted, note = with_counted_steps(config)
    if note:
        say(note)
    if gpu.flops and counted and plan.fits:  # one that does not fit has no hours
        plan = replace(plan, config=replace(plan.config, steps=counted.steps))
        rates = Rates(options.assumed_mfu * gpu.flops, gpu.bandwidth, options.assumed_tokens_per_s)
        print_hours(run_hours(model_config, plan, rates), plan, rates, options.assumed_mfu)
        if options.gpus > 1 and plan.rollout != "local":
            _print_splits(model_config, plan, rates, options.lengths_of)
    return 0 if plan.fits else 1


def with_counted_steps(config: Config) -> tuple[Config | None, str]:
    """The settings with the steps that their epochs come to, as the trainer would count them, and a line on that; None
    where the problems cannot be counted here, and a line on what is missing."""
    if not config.epochs:
        return config, ""
    from transformers import AutoTokenizer

    from siri.data.problems import resolve_path
    from siri.data.prompts import load_prompts
    from siri.rewards.pool import wanted_columns
    from siri.train.setup import asked_lengths, with_epochs

    unknown = f"hours: {config.epochs:g} epochs are not priced, because the problems cannot be counted"
    if not config.data:
        return None, f"{unknown}: data is not set; give --data, or --epochs 0 --steps N"
    try:  # the hub is not asked
        source = resolve_path(config.model)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, local_files_only=True)
        made_up = len(tokenizer) <= len(set(tokenizer.all_special_tokens))  # where a folder has no files of one
    except Exception:  # transformers raises whatever its parsers raise
        tokenizer, made_up = None, True
    if made_up:
        way = f"hf download {config.model}, give --model a folder that has one, or --epochs 0 --steps N"
        return None, f"{unknown}: no tokenizer of {config.model} on this machine; {way}"
    try:
        columns, asked = wanted_columns(config.reward), asked_lengths(config)
        drop = config.duplicates == "drop"
        prompts = load_prompts(config.data, tokenizer, config, wanted=columns, asked=asked, drop=drop)
    except InputError as error:
        return None, f"{unknown}: {error}"
    counted, (line,) = with_epochs(config, prompts)
    return counted, line


def _print_splits(model_config: Any, plan: MemoryPlan, rates: Rates, lengths_of: str) -> None:
    """Which GPUs should sample, by a simulation at three caps of a cycle."""
    schedule = plan.config.length_schedule()
    caps = sorted({schedule.cap(plan.config.cycle * quarter // 4) for quarter in range(3)}, reverse=True)
    means = prompt_means(Path(lengths_of)) if lengths_of else []
    source = f"the lengths of {lengths_of}" if lengths_of else "assumed lengths"
    staleness = plan.config.staleness
    priced = splits(model_config, plan, rates, caps, (staleness,) if staleness else (1, 2), means)
    print_splits(priced, caps, source)
