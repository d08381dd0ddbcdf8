"""`siri train RECIPE --dry-run`: everything that can be wrong with a run, found without allocating or writing."""

import json
import os
from dataclasses import replace
from pathlib import Path

import torch

from siri.commands.trial import try_reward
from siri.config import Config
from siri.model.liger import planned as expected_parts
from siri.model.policy import Policy
from siri.planning.budget import token_budget
from siri.planning.memory_plan import Machine, MemoryPlan, memory_plan
from siri.rewards.pool import RewardPool
from siri.rollout.engines import engine_for, vllm_options
from siri.rollout.vllm import check_version, installed
from siri.runtime.threads import choose_threads
from siri.store.loggers import check_loggers
from siri.store.run_folder import Resume, RunFolder
from siri.text import say
from siri.train.device import choose_device
from siri.train.edges import idle_gpus
from siri.train.setup import Setup, prepare, training_sources


def dry_run(config: Config, run_dir: Path, *, recipe: str, resume: Resume, rewind: bool = False) -> int:
    """Set a run up as far as it goes without weights, and print what it would be. Bad input is the InputError that the
    run itself would end with. Under torchrun rank 0 prints.

    Machines that are missing here are no fault: a run for GPUs is planned for H100s where there is none, and a rollout
    server that does not answer yet is named.
    """
    device, note = choose_device(config)
    # the folder is one process's: under torchrun the others have nothing to look up in it
    main = os.environ.get("RANK", "0") == "0"
    folder = RunFolder(run_dir, config, recipe, resume, rewind=rewind) if main else None
    try:
        return _dry_run(config, run_dir, folder, device=device, note=note)
    finally:
        if folder is not None:
            folder.release()


def _dry_run(config: Config, run_dir: Path, folder: RunFolder | None, *, device: torch.device, note: str) -> int:
    gpu = device.type == "cuda"
    world, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    # what only a GPU can refuse is not asked where there is none
    asked = config if gpu else replace(config, attention="auto", liger="off")
    setup = prepare(
        asked,
        device=device,
        sources=training_sources(config),
        weights="none",
        parts=world if config.shard_across_nodes else here,
    )
    if folder is not None:  # what became of the data and the model of a run that continues
        folder.sampler(setup.problems[0], setup.policy.tokenizer)
        if not folder.fresh:
            folder.know_model()
    check_loggers(config.logger)
    with RewardPool(config.reward, workers=1, timeout_s=config.reward_timeout_s, think=config.think) as rewards:
        rewards.try_gold(setup.problems[0].answers)
        tried, graders = try_reward(rewards, setup.problems[0].answers, config), rewards.cell()
    # a run on vLLM means GPUs, wherever it is dry
    mode = engine_for(config, torch.device("cuda" if gpu or config.rollout == "vllm" else "cpu"))
    planned = gpu or mode != "local"
    config = replace(config, steps=setup.config.steps)
    longest = setup.problems[0].longest + setup.sources[0].cap
    budget = token_budget(config, longest=longest, on_gpu=planned)
    lines = [*setup.policy.notes, *problem_lines(setup), *setup.data_notes()]
    lines += [*(folder.notes if folder else ()), run_line(config, budget)]
    if config.lora_rank:
        lines.append(f"LoRA of rank {config.lora_rank} and alpha {config.alpha():g} on {', '.join(config.targets())}")
    plan = None
    settled = config
    if planned:
        memory = torch.cuda.get_device_properties(0).total_memory if gpu else 80 * 10**9
        planned_for = replace(config, token_budget=budget, max_prompt_tokens=setup.problems[0].longest)
        if gpu:
            planned_for = replace(planned_for, attention=setup.backend)
        sizes = Machine(world, memory, here)
        plan = memory_plan(
            setup.policy.model.config, planned_for, sizes, rollout=mode, liger=expected_parts(config.liger)
        )
        settled = replace(config, rollout_memory=plan.config.rollout_memory)
    lines += engine_lines(settled, mode, world, setup.policy, run_dir)
    parameters = sum(parameter.numel() for parameter in setup.policy.model.parameters())
    threads = choose_threads(config.threads, parameters=parameters, device="cuda" if planned else "cpu")
    lines.append(f"{threads} CPU thread{'s' * (threads > 1)} in each process")
    lines += [line for line in (note, graders, tried, idle_gpus(device)) if line]
    if folder is not None:
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
    caps = f"caps {config.l_min:,} to {config.l_max:,}"
    if config.schedule == "auto":
        caps = f"caps up to {config.l_max:,}"
    return (
        f"{config.steps:,} steps of {config.prompts_per_step} x {config.group_size} responses; schedule "
        f"{config.schedule}, {caps}; at most {budget:,} tokens a micro-step"
    )


def engine_lines(config: Config, mode: str, ranks: int, policy: Policy, run_dir: Path) -> list[str]:
    """What the rollout engine would be, after its version was checked."""
    if mode == "local":
        return ["rollout: the embedded engine"]
    tied = policy.model.config.tie_word_embeddings
    options = vllm_options(config, ranks, folder=run_dir, context=policy.context, tied=tied)
    if mode == "served":
        from siri.rollout.address import refuse_open, version_of
        from siri.rollout.served import LAUNCH

        lines = []
        for url in options.servers:
            version = version_of(url)
            if version is not None:
                check_version(version, url)
                refuse_open(url, insecure=options.insecure)
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
