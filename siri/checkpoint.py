"""Checkpoints: written whole or not at all, verified when read, and enough to continue as if nothing had happened.

A checkpoint is a folder `step_NNNNNN` with the model as safetensors and config (loadable by transformers), its
tokenizer, the optimizer state as safetensors, and state.json. manifest.json lists the size and SHA-256 of every file.
Nothing is pickled. Ends of phases get a name beside: `siri-low-2` is a link to the step's folder.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from siri.distributed import ALONE, Ranks, fill, full
from siri.errors import InputError, parse_json
from siri.model import Policy
from siri.offload import MOMENTS, HostAdamW, bring

MANIFEST = "manifest.json"
STATE = "state.json"
OPTIMIZER = "optimizer.safetensors"
TRAINING_FILES = (MANIFEST, STATE, OPTIMIZER)
"""What a checkpoint holds beyond a model folder."""


def save_checkpoint(
    folder: Path,
    done: int,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    *,
    name: str | None,
    ranks: Ranks = ALONE,
) -> Path:
    """Write `folder/step_NNNNNN` after `done` steps, and the link `folder/name` to it. `state` is JSON data of the
    caller's. Every rank calls it, rank 0 writes: the files do not depend on the number of ranks."""
    from safetensors.torch import save_file

    weights = _whole(policy.model.state_dict().items(), ranks)
    moments = _whole(_moments(policy, optimizer), ranks)
    if not ranks.main:
        ranks.gather(None)
        return folder / f"step_{done:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step_{done:06d}"
    part = folder / f".{final.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    policy.model.save_pretrained(part, state_dict=weights)
    policy.tokenizer.save_pretrained(part)
    save_file(moments, part / OPTIMIZER)
    (part / STATE).write_text(json.dumps({"steps_done": done, "name": name, **state}, indent=1))
    listing = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in _files(part)}
    (part / MANIFEST).write_text(json.dumps(listing, indent=1))
    for path in [*_files(part), part]:
        _fsync(path)
    if final.exists():
        shutil.rmtree(final)
    part.rename(final)
    if name:
        link = folder / f".{name}.part"
        link.unlink(missing_ok=True)
        link.symlink_to(final.name)
        link.replace(folder / name)
    _fsync(folder)
    ranks.gather(None)  # nobody goes on before the checkpoint is there
    return final


def verify(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words, or None."""
    try:
        listing = parse_json((checkpoint / MANIFEST).read_text())
        for name, entry in listing.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}"
            if _sha256(path) != entry["sha256"]:
                return f"{name} does not match its checksum"
        if STATE not in listing or OPTIMIZER not in listing:
            return f"{MANIFEST} lists no {STATE} or no {OPTIMIZER}"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    return None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first, damaged ones included."""
    return sorted((path for path in folder.glob("step_*") if path.name[5:].isdigit()), key=steps_done)


def steps_done(checkpoint: Path) -> int:
    """After how many steps a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step_"))


def newest_good(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and a line about each newer one that does not."""
    damaged = []
    for path in reversed(checkpoints(folder)):
        fault = verify(path)
        if fault is None:
            return path, damaged
        damaged.append(f"{path}: damaged, {fault}")
    return None, damaged


@torch.no_grad()
def load_weights(folder: str | Path, policy: Policy, *, ranks: Ranks = ALONE) -> None:
    """Fill the policy's parameters from a model folder, or the hub. Every rank calls it, rank 0 reads."""
    from transformers import AutoModelForCausalLM

    weights = {}
    if ranks.main:
        weights = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    for name, parameter in policy.model.named_parameters():
        fill(parameter, weights.get(name))


@torch.no_grad()
def restore(
    checkpoint: Path, policy: Policy, optimizer: torch.optim.Optimizer, *, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """Load a verified checkpoint into model and optimizer, in place; returns what `state` was.

    Every rank calls it, rank 0 reads; the run that wrote it may have had another number of ranks.
    """
    from safetensors.torch import load_file

    load_weights(checkpoint, policy, ranks=ranks)
    moments = load_file(checkpoint / OPTIMIZER) if ranks.main else {}
    known = ranks.broadcast(sorted(moments))
    for name, parameter in policy.model.named_parameters():
        if f"{name}.step" in known:
            moment = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
            for key, value in moment.items():
                fill(value, moments.get(f"{name}.{key}"))
            optimizer.state[parameter] = {"step": ranks.broadcast(moments.get(f"{name}.step")), **moment}
            if isinstance(optimizer, HostAdamW):
                optimizer.park(parameter)
    return ranks.broadcast(json.loads((checkpoint / STATE).read_text()) if ranks.main else None)


def discard_after(folder: Path, steps: int) -> None:
    """Remove the checkpoints of later steps, which a resumed run writes again: they are damaged, and would be counted
    as the newest."""
    for path in checkpoints(folder):
        if steps_done(path) > steps:
            shutil.rmtree(path)
    for link in folder.glob("siri-*"):
        if link.is_symlink() and not link.exists():
            link.unlink()


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what a kill left half-written; named ones stay."""
    for part in folder.glob(".step_*.part"):
        shutil.rmtree(part)
    named = {path.resolve().name for path in folder.iterdir() if path.is_symlink()}
    ordinary = [path for path in checkpoints(folder) if path.name not in named]
    for path in ordinary[: max(0, len(ordinary) - keep)]:
        shutil.rmtree(path)


def export(source: Path, target: Path) -> Path:
    """Copy the model and tokenizer of a checkpoint to a folder that transformers loads; the training state stays.

    source: a checkpoint folder, a name link such as checkpoints/siri-low-1, or a run folder (its newest checkpoint).
    """
    checkpoint = source
    if (source / "checkpoints").is_dir():
        found, damaged = newest_good(source / "checkpoints")
        if found is None:
            raise InputError(f"{source}: no good checkpoint in this run" + "".join(f"; {line}" for line in damaged))
        checkpoint = found
    if not (checkpoint / MANIFEST).is_file():
        raise InputError(f"{source}: no checkpoint there; give a run folder or one of its checkpoints")
    if fault := verify(checkpoint):
        raise InputError(f"{source}: damaged, {fault}; choose another checkpoint")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target}: exists and is no empty folder; choose a new one")
    part = target.parent / f".{target.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(checkpoint, part, ignore=shutil.ignore_patterns(*TRAINING_FILES))
    if target.exists():
        target.rmdir()
    part.rename(target)
    return target


def _moments(policy: Policy, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    """One at a time, for those that live in host memory would not all fit on the device."""
    for name, parameter in policy.model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            yield f"{name}.{key}", bring(value, parameter) if key in MOMENTS else value


def _whole(tensors: Iterable[tuple[str, torch.Tensor]], ranks: Ranks) -> dict[str, torch.Tensor]:
    """Each tensor in one piece, in rank 0's host memory; the other ranks help to join them and keep none."""
    joined = {}
    for key, value in tensors:
        whole = full(value)
        if ranks.main:
            joined[key] = whole.cpu().contiguous()
    return joined


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
