"""Which rollout engine a run gets: the embedded one, vLLM in the training processes, or vLLM servers."""

from pathlib import Path
from typing import Any
from zlib import crc32

import torch

from siri.config import Config
from siri.errors import InputError
from siri.model.policy import Policy
from siri.rollout import Rollout
from siri.rollout.order import ExpectedLengths
from siri.rollout.vllm import MOST_SEQUENCES, VllmOptions, VllmRollout, check_version, installed
from siri.runtime.ranks import ALONE, Ranks

CONTEXT = 64
"""Least context of an engine, tokens: the prompts of a fingerprint have to fit."""


def make_engine(
    config: Any, policy: Policy, *, device: torch.device | None = None, ranks: Ranks = ALONE, folder: Path | None = None
) -> Rollout:
    """The engine that a Config or the options of `siri eval` ask for. Every rank calls it.

    device: of the engine, the policy's by default. folder: where a run keeps response lengths, and weights that travel
    as files. Its weights are those of the policy only after the first `sync`.
    """
    device = device or policy.device
    mode = choose(config, device)
    if mode == "local":
        from siri.rollout.local import local_engine

        return local_engine(config, policy, copy=ranks.sharded)
    options = vllm_options(config, ranks.size, folder=folder, context=policy.context)
    if mode == "served":
        from siri.rollout.fleet import ServedEngine

        backend = ServedEngine(options, policy, ranks=ranks)
    else:
        from siri.rollout.colocated import ColocatedEngine

        check_version(installed())
        backend = ColocatedEngine(options, device)
    lengths = ExpectedLengths(folder / "lengths.jsonl" if folder and isinstance(config, Config) else None)
    return VllmRollout(
        policy,
        backend,
        temperature=config.temperature or 1.0,
        lengths=lengths,
        tolerance=getattr(config, "rollout_tolerance", "auto"),
        ranks=ranks,
    )


def choose(config: Any, device: torch.device) -> str:
    """ "local", "colocated" or "served". auto is vLLM where there are servers, or a GPU and an installed version that
    works; on a CPU the embedded engine is the better one."""
    if config.rollout == "local":
        return "local"
    if config.rollout_servers:
        return "served"
    if config.rollout == "vllm":
        return "colocated"
    if device.type != "cuda":
        return "local"
    try:
        check_version(installed())
    except InputError:
        return "local"
    return "colocated"


def vllm_options(config: Any, engines: int, *, folder: Path | None, context: int) -> VllmOptions:
    """The part of a Config, or of `siri eval`'s options, that vLLM needs. engines: in-process ones that share the
    batch. context: of the model."""
    default = Config
    if isinstance(config, Config):
        schedule = config.length_schedule()
        caps = [schedule.longest, config.eval_cap or schedule.longest]
        batch = config.prompts_per_step * config.group_size
        batch = max(batch, config.eval_samples * (config.eval_problems or 1))
    else:
        caps, batch = [config.cap], MOST_SEQUENCES * engines
    longest = max(CONTEXT, config.max_prompt_tokens + max(caps))
    sync_dir = folder / "rollout-weights" if folder else None
    if shared := getattr(config, "rollout_sync_dir", ""):
        own = str((folder or Path()).absolute())  # two runs may share the folder that servers see
        sync_dir = Path(shared) / f"{Path(own).name}-{crc32(own.encode()):08x}"
    return VllmOptions(
        model=str(_folder(config.model)),
        context=min(longest, context),
        sequences=max(1, min(MOST_SEQUENCES, -(-batch // engines))),
        memory=config.rollout_memory,
        servers=tuple(url.rstrip("/") for url in config.rollout_servers),
        sync=getattr(config, "rollout_sync", default.rollout_sync),
        sync_dir=sync_dir,
        timeout_s=config.rollout_timeout_s,
        sync_timeout_s=getattr(config, "rollout_sync_timeout_s", default.rollout_sync_timeout_s),
    )


def _folder(model: str) -> Any:
    from siri.data.problems import resolve_path

    return resolve_path(model)
