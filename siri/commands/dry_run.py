"""`siri train RECIPE --dry-run`: everything that can be wrong with a run, found without allocating or writing."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from siri.config import Config
from siri.data.prompts import load_prompts
from siri.model.attention import choose as choose_attention
from siri.model.policy import check_context, load_policy, pick_device
from siri.packing.flops import read_cost_ratio
from siri.planning.budget import token_budget
from siri.planning.memory_plan import Machine, memory_plan
from siri.rollout.engines import choose, vllm_options
from siri.rollout.vllm import check_version, installed
from siri.store.run_folder import Resume, RunFolder


def dry_run(config: Config, run_dir: Path, *, recipe: str, resume: Resume) -> int:
    """Resolve configuration, run folder, data, model, packing budget, memory plan and rollout engine, and print what a
    run would be. Bad input is the InputError that the run itself would end with. Under torchrun rank 0 prints.

    Machines that are missing here are no fault: a run for GPUs is planned for H100s where there is none, and a rollout
    server that does not answer yet is named.
    """
    gpu = config.device != "cpu" and torch.cuda.is_available()
    device = pick_device(config.device if gpu else "cpu")
    RunFolder(run_dir, config, recipe, resume)
    read_cost_ratio(config.cost_ratio)
    policy = load_policy(config.model, device, weights=False)  # shapes and tokenizer
    if gpu or config.attention == "auto":
        choose_attention(config.attention, device, policy.model.config, config.checkpointing)
    schedule, lines = config.length_schedule(), []
    sources = [(config.data, schedule.longest, 0)]
    sources += [(one, config.eval_cap or schedule.longest, config.eval_problems) for one in config.eval_data]
    longest = 0
    for source, cap, limit in sources:
        prompts = load_prompts(source, policy.tokenizer, config, limit=limit)
        check_context(policy, prompts.longest, cap)
        longest = longest or prompts.longest  # of the training problems, which come first
        lines.append(f"{len(prompts.ids):,} problems of {source}, up to {prompts.longest} tokens and a cap of {cap:,}")
    budget = token_budget(config, longest=longest + schedule.longest, on_gpu=device.type == "cuda")
    world, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    # a run on vLLM means GPUs, wherever it is dry
    mode = choose(config, torch.device("cuda" if gpu or config.rollout == "vllm" else "cpu"))
    lines.append(
        f"{config.steps:,} steps of {config.prompts_per_step} x {config.group_size} responses; schedule "
        f"{config.schedule}, caps {config.l_min:,} to {config.l_max:,}; at most {budget:,} tokens a micro-step"
    )
    lines += engine_lines(config, mode, world, policy.context, run_dir)
    plan = None
    if gpu or mode != "local":
        memory = torch.cuda.get_device_properties(0).total_memory if gpu else 80 * 10**9
        plan = memory_plan(policy.model.config, config, Machine(world, memory, here), rollout=mode)
    if os.environ.get("RANK", "0") == "0":
        _print(config, lines, plan, gpu)
    return 0


def engine_lines(config: Config, mode: str, ranks: int, context: int, run_dir: Path) -> list[str]:
    """What the rollout engine would be, after its version was checked."""
    if mode == "local":
        return ["rollout: the embedded engine"]
    options = vllm_options(config, ranks, folder=run_dir, context=context)
    if mode == "served":
        from siri.rollout.served import LAUNCH, version_of

        lines = []
        for url in options.servers:
            found = version_of(url)
            if found is not None:
                check_version(found, url)
            lines.append(
                f"rollout server {url}: " + (f"vLLM {found}" if found else f"no answer yet; start it: {LAUNCH}")
            )
        if config.rollout_sync == "nccl":
            check_version(installed())
        return [*lines, f"weights: {config.rollout_sync}; each server has to hold {options.context:,} tokens"]
    from siri.rollout.colocated import engine_options

    found = installed()
    check_version(found)
    return [f"rollout: vLLM {found} in each of {ranks} processes: {json.dumps(engine_options(options, gpu=True))}"]


def _print(config: Config, lines: list[str], plan: Any, gpu: bool) -> None:
    from siri.planning.tables import print_plan

    print(f"{config.model} would be trained.")
    for line in lines:
        print(line)
    if plan is not None:
        if not gpu:
            print("memory, planned for H100s, because there is no GPU here:")
        print_plan(plan)
    print("dry run: nothing was allocated or written")
