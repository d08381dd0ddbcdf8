"""Checkpoints: written whole or not at all, verified when read, and enough to continue as if nothing had happened.

A checkpoint is a folder `step_NNNNNN`: `weights/` (the model's, or an adapter's, described by adapter.json) and
`optimizer/` as safetensors, one file a rank (see `shards`), the model's config and tokenizer, and state.json.
manifest.json lists the size and SHA-256 of every file, and nothing that it does not list is read. Nothing is
pickled. Ends of phases get a name beside: `siri-low-2` is a link to the step's folder. `siri.store.saver` writes them.
"""

import copy
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from siri.data.problems import resolve_path
from siri.errors import InputError, first_line, parse_json
from siri.model.adapters import ADAPTER, FILE_PREFIX, Adapter, base_parameters, merge_into
from siri.model.fsdp import fill
from siri.model.policy import Policy, read_model
from siri.model.weight_files import MANIFEST, WEIGHTS, is_checkpoint
from siri.runtime.ranks import ALONE, Ranks
from siri.store import files
from siri.store.schema import state_fault
from siri.store.shards import make_moments, moments_of, names_in, read_pieces, read_whole, weights_of

STATE = "state.json"
OPTIMIZER = "optimizer"
PENDING = "pending.safetensors"
"""Rollouts that are sampled ahead, where there are any (`siri.train.batches`)."""
TRAINING_FILES = (MANIFEST, STATE, ADAPTER, WEIGHTS, OPTIMIZER, PENDING)
"""What a checkpoint holds beyond the files of a model folder."""
STEP = re.compile(r"step_([0-9]+)")
REPLACED = re.compile(r"(step_[0-9]+)\.replaced(?:-[0-9]+)?")
HALF_WRITTEN = re.compile(r"\..+\.part")
LEFT_BY_NFS = re.compile(r"(.+/)?\.nfs[0-9a-f]+")
"""NFS keeps a file so that was removed while a process had it open; nobody reads it."""


def about_model(policy: Policy) -> dict[str, bytes]:
    """The files that make the weights a model: its config and tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        _write_about(Path(folder), policy)
        return {path: (Path(folder) / path).read_bytes() for path in files_in(Path(folder))}


def _write_about(part: Path, policy: Policy) -> None:
    if policy.adapter is not None:
        (part / ADAPTER).write_bytes(policy.adapter.written())
    config = copy.deepcopy(policy.model.config)
    config.architectures = [type(policy.model).__name__.removeprefix("FSDP")]
    config.dtype = torch.float32
    config.save_pretrained(part)
    if policy.model.generation_config is not None:
        policy.model.generation_config.save_pretrained(part)
    policy.tokenizer.save_pretrained(part)


def describe(part: Path, path: str) -> dict[str, Any]:
    """The manifest's entry of one file in `part`, which is on the disk from now on."""
    files.sync(part / path)
    return {"bytes": (part / path).stat().st_size, "sha256": _sha256(part / path)}


def finish(part: Path, final: Path, listing: dict[str, Any], name: str | None) -> None:
    """Make the folder `part` the checkpoint `final`, with `name` as a link to it. OSError, and no checkpoint, where a
    file of the listing is not there: one that another rank wrote to a folder that this one does not see."""
    for path, entry in listing.items():
        if not (part / path).is_file() or (part / path).stat().st_size != entry["bytes"]:
            raise OSError(
                errno.ENOENT, f"{path} of another rank is not seen here: the run folder must be shared by all machines"
            )
    files.write_atomic(part / MANIFEST, json.dumps(listing, indent=1).encode())
    for path in [*(path for path in part.iterdir() if path.is_dir()), part]:
        files.sync(path)
    old = good = None
    if files.there(final):  # of the same step, from a save that failed after this: it makes room, and goes last
        good = not final.is_symlink() and verify(final) is None
        old = files.aside(final, "replaced" if good else "damaged")
    if name:  # first: of a kill between the two a name without a checkpoint is left, and not one without its name
        give_name(final, name)
    part.rename(final)
    files.sync(final.parent)
    if old is not None and good:
        remove(old)


def give_name(final: Path, name: str) -> None:
    """Make `name` a link to a checkpoint, whatever it was a link to."""
    link = final.parent / f".{name}.part"
    remove(link)
    link.symlink_to(final.name)
    link.replace(final.parent / name)


def put_back(folder: Path) -> list[str]:
    """Finish what a kill cut short while a checkpoint made room for a newer one of the same step: where there is no
    newer one, or a damaged one, it gets its name back, and a line says so."""
    if not files.there(folder):
        return []
    notes = []
    for path in sorted(folder.iterdir()):
        match = REPLACED.fullmatch(path.name)
        if match is None or path.is_symlink() or verify(path) is not None:
            continue
        if files.there(folder / match[1]):
            if (fault := verify(folder / match[1])) is None:
                continue
            kept = files.aside(folder / match[1], "damaged")
            notes.append(f"{folder / match[1]}: damaged, {fault}; kept as {kept.name}")
        os.rename(path, folder / match[1])
        files.sync(folder)
        notes.append(f"{folder / match[1]}: got its name back, which a save that was cut short had taken from it")
    return notes


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; nothing that a link points to."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


def verify(checkpoint: Path, *, without: str = "") -> str | None:
    """What is wrong with a checkpoint, in words, or None. Storage that fails says nothing about what it holds: it is
    asked again, and then InputError. without: a folder in it that may be gone or damaged."""
    try:
        return files.patient(lambda: _fault(checkpoint, without))
    except OSError as error:
        raise InputError(
            f"{checkpoint}: cannot be read ({files.reason(error)}); nothing was changed, try again when it can"
        ) from None


def _fault(checkpoint: Path, without: str = "") -> str | None:
    """What is wrong with a checkpoint. OSError where a file is there and cannot be read."""
    at = MANIFEST
    try:
        listing = parse_json(files.read(checkpoint / MANIFEST))
        present = _entries(checkpoint)
        if without:
            listing = {name: entry for name, entry in listing.items() if not name.startswith(f"{without}/")}
            present = {name: path for name, path in present.items() if not name.startswith(f"{without}/")}
        for name, entry in listing.items():
            at = name
            if name not in present:  # nor can a name lead out of the folder: what is found is inside
                return f"{name} is missing"
            if present[name].is_symlink() or not present[name].is_file():
                return f"{name} is a link, or no file"
            if present[name].stat().st_size != entry["bytes"]:
                return f"{name} has {present[name].stat().st_size} bytes instead of {entry['bytes']}"
        if strange := sorted(name for name in present.keys() - listing.keys() if not LEFT_BY_NFS.fullmatch(name)):
            return f"{strange[0]} is not in its {MANIFEST}"
        at = MANIFEST
        with ThreadPoolExecutor(8) as pool:
            for name, digest in zip(listing, pool.map(lambda name: _sha256(present[name]), listing), strict=True):
                if digest != listing[name]["sha256"]:
                    return f"{name} does not match its checksum"
        if STATE not in listing or not any(name.startswith(f"{WEIGHTS}/") for name in listing):
            return f"{MANIFEST} lists no {STATE} or no {WEIGHTS}"
        for name in listing:
            if name.startswith((f"{WEIGHTS}/", f"{OPTIMIZER}/", PENDING)) and (fault := _tensor_fault(present[name])):
                return f"{name} holds no tensors ({fault})"
        at = STATE
        named = STEP.fullmatch(checkpoint.name)
        if fault := state_fault(read_state(checkpoint), steps_done(checkpoint) if named else None):
            return f"{STATE} {fault}"
    except OSError as error:
        if error.errno not in (*files.ABSENT, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.ENAMETOOLONG):
            raise
        return f"{at} cannot be read ({type(error).__name__})"
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{at} cannot be read ({type(error).__name__})"
    return None


def _entries(checkpoint: Path) -> dict[str, Path]:
    """What lies in a checkpoint and its folders, but for its manifest, by the path from there."""

    def fails(error: OSError) -> None:
        raise error

    entries = {}
    for folder, folders, names in os.walk(checkpoint, onerror=fails):
        paths = [Path(folder, name) for name in names]
        paths += [path for name in folders if (path := Path(folder, name)).is_symlink()]
        entries |= {path.relative_to(checkpoint).as_posix(): path for path in paths}
    entries.pop(MANIFEST, None)
    return entries


def _tensor_fault(path: Path) -> str:
    """What is wrong with a safetensors file whose bytes are those that were written."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        return ""
    try:
        with safe_open(path, framework="np"):
            return ""
    except SafetensorError as error:
        return first_line(error)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What the trainer said of itself: steps_done, train_tokens, sampler, ..."""
    return parse_json(files.read(checkpoint / STATE))


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first, damaged ones included."""
    try:
        with os.scandir(folder) as entries:
            names = [each.name for each in entries if STEP.fullmatch(each.name) and each.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({files.reason(error)}); nothing was changed") from None
    return sorted((folder / name for name in names), key=steps_done)


def steps_done(checkpoint: Path) -> int:
    """After how many steps a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step_")[:18])


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
    """Fill the policy's model from a checkpoint, a model folder, or the hub; a new adapter beside it is left as it is,
    one in the checkpoint becomes a part of the weights. Every rank calls it; of a checkpoint with whole weights each
    reads what it holds, from the others rank 0 reads. InputError, on every rank, where there are none, or those of
    another model."""
    if is_checkpoint(folder) and not policy.adapter and not (Path(folder) / ADAPTER).exists():
        _read_trained(Path(folder), policy)
        return
    weights: dict[str, torch.Tensor] = {}
    ranks.on_main(lambda: weights.update(model_weights(folder, copy.deepcopy(policy.model.config))))
    for name, parameter in base_parameters(policy.model):
        fill(parameter, weights.get(name))


def model_weights(folder: str | Path, config: Any) -> dict[str, torch.Tensor]:
    """The parameters, fp32 and whole on the CPU, of a model folder, one of the hub, or a checkpoint, where an
    adapter is merged into its base. config: of the model, settled. InputError where they do not fit it."""
    if not is_checkpoint(folder):
        return read_model(folder, config).state_dict()
    held, adapter = whole_weights(Path(folder)), Adapter.read(Path(folder))
    if adapter is None:
        wanted = parameter_names(config)
        _check_names(Path(folder), set(held), wanted)
        return held
    base = model_weights(resolve_path(adapter.base), config)
    merge_into(base, held, adapter.scaling)
    return base


def parameter_names(config: Any) -> set[str]:
    """Of a model of a settled configuration; a tied head is not among them."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return {name for name, _ in AutoModelForCausalLM.from_config(config).named_parameters()}


def _read_trained(checkpoint: Path, policy: Policy) -> None:
    pieces = weights_of(policy)
    _check_names(checkpoint, names_in(checkpoint / WEIGHTS), set(pieces))
    read_pieces(checkpoint / WEIGHTS, pieces)


def _check_names(checkpoint: Path, held: set[str], wanted: set[str]) -> None:
    """Refuse a checkpoint that lacks one of the model's parameters, or has one that the model would not take."""
    adapters = [any(name.startswith(FILE_PREFIX) for name in names) for names in (held, wanted)]
    if adapters[0] != adapters[1]:
        holds, needs = ("an adapter", "whole weights") if adapters[0] else ("whole weights", "an adapter")
        raise InputError(
            f"{checkpoint}: holds {holds}, and this run trains {needs}; go on with the --lora-rank of the run that "
            "wrote it, or give it to a new run as --model"
        )
    if wanted != held:
        name = min(wanted ^ held)
        there = "has a" if name in held else "has no"
        raise InputError(
            f"{checkpoint}: {there} {name}, {'unlike' if name in held else 'which is in'} the model that it is loaded "
            "into; go on with the model that it was written of, or start a new run"
        )


@torch.no_grad()
def restore(
    checkpoint: Path, policy: Policy, optimizer: torch.optim.Optimizer | None, *, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """Load what was trained, and its moments into the optimizer if one is given, from a verified checkpoint, in place;
    returns what `state` was. Of an adapter, the base has to be there already.

    Every rank calls it, and reads what it holds; the run that wrote it may have had another number of ranks.
    """
    try:
        _read_trained(checkpoint, policy)
        if optimizer is not None:
            make_moments(policy, optimizer, names_in(checkpoint / OPTIMIZER))
            read_pieces(checkpoint / OPTIMIZER, moments_of(policy, optimizer))
        return read_state(checkpoint)
    except OSError as error:
        raise InputError(f"{checkpoint}: cannot be read ({files.reason(error)}); try again when it can") from None


def discard_after(folder: Path, steps: int) -> list[str]:
    """Clear the way for a run that continues after `steps` steps. Checkpoints of later steps are damaged, and would be
    counted as the newest: they get another name, and a line each that says so. Names without a checkpoint go, and what
    a kill left half-written."""
    notes = []
    for path in checkpoints(folder):
        if steps_done(path) > steps:
            notes.append(f"{path} is kept as {files.aside(path, 'damaged').name}; delete it when it is of no more use")
    if not files.there(folder):
        return notes
    for path in folder.iterdir():
        if path.is_symlink() and path.name.startswith("siri-") and not files.there(folder / os.readlink(path)):
            path.unlink()
        newer = REPLACED.fullmatch(path.name)
        if HALF_WRITTEN.fullmatch(path.name) or (newer and verify(folder / newer[1]) is None):
            remove(path)
    return notes


def prune(folder: Path, keep: int, keep_every: int = 0) -> None:
    """Remove all but the newest `keep` checkpoints; the named ones stay, and those of every `keep_every` steps."""
    named = {os.path.basename(os.readlink(path)) for path in folder.iterdir() if path.is_symlink()}
    ordinary = [path for path in checkpoints(folder) if path.name not in named]
    for path in ordinary[: max(0, len(ordinary) - keep)]:
        if not keep_every or steps_done(path) % keep_every:
            going = path.with_name(f".{path.name}.part")  # a kill leaves no half of a checkpoint under its name
            remove(going)
            path.rename(going)
            remove(going)


def whole_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The model's parameters, fp32, each in one piece on the CPU."""
    return read_whole(checkpoint / WEIGHTS)


def whole_moments(checkpoint: Path) -> dict[str, torch.Tensor]:
    """AdamW's state: NAME.exp_avg, NAME.exp_avg_sq and NAME.step, each in one piece on the CPU."""
    return read_whole(checkpoint / OPTIMIZER)


def files_in(folder: Path) -> Iterator[str]:
    """The files in a folder and its folders, by their paths from there, in order."""
    return (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
