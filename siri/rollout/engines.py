"""Which rollout engine a run gets: the embedded one, vLLM in the training processes, or vLLM servers."""

import os
from pathlib import Path
from zlib import crc32

import torch

from siri.config.sections import RolloutSettings
from siri.data.problems import resolve_path
from siri.errors import InputError
from siri.model.policy import Policy
from siri.rollout import Rollout
from siri.rollout.order import ExpectedLengths
from siri.rollout.vllm import MOST_SEQUENCES, VllmOptions, VllmRollout, check_version, installed
from siri.runtime.ranks import ALONE, Ranks
from siri.runtime.signals import Stop

EMBEDDED_CAP = 2048
"""Longest responses, tokens, for which the embedded engine is taken on a GPU without being asked for."""
CONTEXT = 64
"""Least context of an engine, tokens: the prompts of a fingerprint have to fit."""


def make_engine(
    settings: RolloutSettings,
    policy: Policy,
    *,
    device: torch.device | None = None,
    ranks: Ranks = ALONE,
    folder: Path | None = None,
    stop: Stop | None = None,
) -> Rollout:
    """The engine that a Config or the options of `siri eval` ask for. Every rank calls it.

    device: of the engine, the policy's by default. folder: where a run keeps response lengths, and weights that travel
    as files. stop: what a rollout listens to. Its weights are those of the policy only after the first `sync`.
    """
    device = device or policy.device
    mode, workload = engine_for(settings, device), settings.workload()
    if mode == "local":
        from siri.rollout.local import local_engine

        return local_engine(settings, policy, copy=ranks.sharded)
    tied = policy.model.config.tie_word_embeddings
    options = vllm_options(settings, ranks.size, folder=folder, context=policy.context, tied=tied)
    if mode == "served":
        from siri.rollout.fleet import ServedEngine

        backend = ServedEngine(options, policy, ranks=ranks)
    else:
        from siri.rollout.colocated import ColocatedEngine

        check_version(installed())
        backend = ColocatedEngine(options, device)
    return VllmRollout(
        policy,
        backend,
        temperature=workload.temperature or 1.0,
        lengths=ExpectedLengths(folder / "lengths.jsonl" if folder and workload.recurring else None),
        tolerance=settings.rollout_tolerance,
        ranks=ranks,
        stop=stop,
    )


def engine_for(settings: RolloutSettings, device: torch.device) -> str:
    """ "local", "colocated" or "served". auto is vLLM where there are servers, or a GPU and an installed version that
    works; on a CPU the embedded engine is the better one. InputError on a GPU without such a version, where the cap is
    long: there the embedded engine would take many times as long, so it has to be asked for."""
    if settings.rollout == "local":
        return "local"
    if settings.rollout_servers:
        return "served"
    if settings.rollout == "vllm":
        return "colocated"
    if device.type != "cuda":
        return "local"
    try:
        check_version(installed())
    except InputError as error:
        if (cap := settings.workload().cap) > EMBEDDED_CAP:
            raise InputError(
                f"rollout is auto, and vLLM cannot be used ({str(error).split(';')[0]}); at a cap of {cap} tokens the "
                "embedded engine, which samples a token of a few responses at a time, would take most of the run: "
                "pip install -e ./kernels -e '.[vllm]', or ask for it with --rollout local"
            ) from None
        return "local"
    return "colocated"


def refuse_shared(staleness: int, settings: RolloutSettings, device: torch.device) -> None:
    """InputError where sampling is to be ahead of training and the engine shares its GPU with the trainer."""
    if staleness and engine_for(settings, device) == "colocated":
        raise InputError(
            f"staleness {staleness} samples while the trainer trains, and vLLM in the same processes shares the GPU "
            "with it; start servers on other GPUs and name them with --rollout-servers, or give --staleness 0"
        )


def planned_engine(settings: RolloutSettings) -> tuple[str, str]:
    """The engine for which a run on GPUs is planned, wherever that is done, and a line where the run itself would be
    refused here."""
    try:
        return engine_for(settings, torch.device("cuda")), ""
    except InputError:
        return "colocated", "planned with vLLM in the training processes, which cannot be used here."


def vllm_options(
    settings: RolloutSettings, engines: int, *, folder: Path | None, context: int, tied: bool = False
) -> VllmOptions:
    """The part of a Config, or of `siri eval`'s options, that vLLM needs. engines: in-process ones that share the
    batch. context, tied: of the model."""
    workload = settings.workload()
    assert settings.rollout_memory != "auto"  # the plan has put a share for it
    sequences = MOST_SEQUENCES if workload.responses is None else -(-workload.responses // engines)
    sync_dir = folder / "rollout-weights" if folder else None
    if settings.rollout_sync_dir:
        run = str((folder or Path()).absolute())  # two runs may share the folder that servers see
        sync_dir = Path(settings.rollout_sync_dir) / f"{Path(run).name}-{crc32(os.fsencode(run)):08x}"
    return VllmOptions(
        model=str(resolve_path(workload.model)),
        tied=tied,
        context=min(max(CONTEXT, workload.tokens), context),
        sequences=max(1, min(MOST_SEQUENCES, sequences)),
        memory=settings.rollout_memory,
        servers=tuple(url.rstrip("/") for url in settings.rollout_servers),
        insecure=settings.rollout_insecure,
        sync=settings.rollout_sync,
        sync_dir=sync_dir,
        timeout_s=settings.rollout_timeout_s,
        sync_timeout_s=settings.rollout_sync_timeout_s,
    )
