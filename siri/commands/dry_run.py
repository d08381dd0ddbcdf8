"""`siri train RECIPE --dry-run`: everything that can be wrong with a run, found without allocating or writing."""

import json
import os
from dataclasses import replace
from pathlib import Path

import torch

from siri.config import Config
from siri.model.policy import Policy, pick_device
from siri.planning.budget import token_budget
from siri.planning.memory_plan import Machine, MemoryPlan, memory_plan
from siri.rewards.pool import RewardPool
from siri.rollout.engines import engine_for, vllm_options
from siri.rollout.vllm import check_version, installed
from siri.runtime.threads import choose_threads
from siri.store.loggers import check_logger
from siri.store.run_folder import Resume, RunFolder
from siri.text import say
from siri.train.setup import Setup, prepare, training_sources


def dry_run(config: Config, run_dir: Path, *, recipe: str, resume: Resume, rewind: bool = False) -> int:
    """Set a run up as far as it goes without weights, and print what it would be. Bad input is the InputError that the
    run itself would end with. Under torchrun rank 0 prints.

    Machines that are missing here are no fault: a run for GPUs is planned for H100s where there is none, and a rollout
    server that does not answer yet is named.
    """
    gpu = config.device != "cpu" and torch.cuda.is_available()
    folder = RunFolder(run_dir, config, recipe, resume, rewind=rewind)
    world, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    # what only a GPU can refuse is not asked where there is none
    asked = config if gpu else replace(config, attention="auto", liger="off")
    setup = prepare(
        asked,
        device=pick_device(config.device if gpu else "cpu"),
        sources=training_sources(config),
        weights="none",
        parts=world if config.shard_across_nodes else here,
    )
    folder.sampler(setup.problems[0], setup.policy.tokenizer)  # says what became of the data of a run that continues
    check_logger(config.logger)
    with RewardPool(config.reward, workers=1, timeout_s=config.reward_timeout_s, think=config.think) as rewards:
        rewards.try_gold(setup.problems[0].answers)
        graders = rewards.cell()
    # a run on vLLM means GPUs, wherever it is dry
    mode = engine_for(config, torch.device("cuda" if gpu or config.rollout == "vllm" else "cpu"))
    planned = gpu or mode != "local"
    longest = setup.problems[0].longest + setup.sources[0].cap
    budget = token_budget(config, longest=longest, on_gpu=planned)
    lines = [*setup.policy.notes, *problem_lines(setup), *folder.notes, run_line(config, budget)]
    lines += engine_lines(config, mode, world, setup.policy, run_dir)
    parameters = sum(parameter.numel() for parameter in setup.policy.model.parameters())
    threads = choose_threads(config.threads, parameters=parameters, device="cuda" if planned else "cpu")
    lines.append(f"{threads} CPU thread{'s' * (threads > 1)} in each process")
    lines += [graders] if graders else []
    plan = None
    if planned:
        memory = torch.cuda.get_device_properties(0).total_memory if gpu else 80 * 10**9
        settled = replace(config, token_budget=budget, max_prompt_tokens=setup.problems[0].longest)
        plan = memory_plan(setup.policy.model.config, settled, Machine(world, memory, here), rollout=mode)
    if os.environ.get("RANK", "0") == "0":
        _print(config, lines, plan, gpu)
    return 0


def problem_lines(setup: Setup) -> list[str]:
    """What would be trained and measured on."""
    return [
        f"{len(prompts.ids):,} problems of {source.name}, up to {prompts.longest} tokens and a cap of {source.cap:,}"
        for source, prompts in zip(setup.sources, setup.problems, strict=True)
    ]


def run_line(config: Config, budget: int) -> str:
    """How long the run would be, under which caps and in which packs."""
    return (
        f"{config.steps:,} steps of {config.prompts_per_step} x {config.group_size} responses; schedule "
        f"{config.schedule}, caps {config.l_min:,} to {config.l_max:,}; at most {budget:,} tokens a micro-step"
    )


def engine_lines(config: Config, mode: str, ranks: int, policy: Policy, run_dir: Path) -> list[str]:
    """What the rollout engine would be, after its version was checked."""
    if mode == "local":
        return ["rollout: the embedded engine"]
    tied = policy.model.config.tie_word_embeddings
    options = vllm_options(config, ranks, folder=run_dir, context=policy.context, tied=tied)
    if mode == "served":
        from siri.rollout.served import LAUNCH, version_of

        lines = []
        for url in options.servers:
            version = version_of(url)
            if version is not None:
                check_version(version, url)
            answer = f"vLLM {version}" if version else f"no answer yet; start it: {LAUNCH}"
            lines.append(f"rollout server {url}: {answer}")
        if config.rollout_sync == "nccl":
            check_version(installed())
        return [*lines, f"weights: {config.rollout_sync}; each server has to hold {options.context:,} tokens"]
    from siri.rollout.colocated import engine_options

    version = installed()
    check_version(version)
    return [f"rollout: vLLM {version} in each of {ranks} processes: {json.dumps(engine_options(options, gpu=True))}"]


def _print(config: Config, lines: list[str], plan: MemoryPlan | None, gpu: bool) -> None:
    from siri.planning.tables import print_plan

    say(f"{config.model} would be trained.")
    for line in lines:
        say(line)
    if plan is not None:
        if not gpu:
            print("memory, planned for H100s, because there is no GPU here:")
        print_plan(plan)
    print("dry run: nothing was allocated or written")
