"""What a folder holds that may be a run's: whose it is, what it was begun with, and how far it came."""

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from siri.config import Config, of_today
from siri.errors import InputError, first_line, parse_json
from siri.store import files
from siri.store.lock import LEASE, LOCK
from siri.store.schema import is_count

FORMAT = 2
"""Of the run folder. 1: release 0.1.0, which did not say so. A later one may hold what this version would not heed."""
CONFIG, DATA, MODEL, SAVED = "config.json", "data.json", "model.json", "saved.json"
LOGS = ("metrics.jsonl", "eval.jsonl", "health.jsonl", "plans.jsonl", "eval_partial.jsonl")
LOGGERS = ("logger_id", "tensorboard", "wandb", "mlflow", "mlflow.db")
"""What loggers keep in the folder."""
FOLDERS = ("checkpoints", "postmortem", "responses", "rollout-weights")
BEGUN = {LOCK, LEASE, DATA, MODEL, "checkpoints", *LOGGERS}
"""What may be there of a run before its config.json is."""


def refuse_links(folder: Path) -> None:
    """A link in the folder would have files written, or folders cleared, somewhere else."""
    names = {CONFIG, DATA, MODEL, SAVED, LOCK, LEASE, "lengths.jsonl", "log.txt", *LOGS, *LOGGERS, *FOLDERS}
    for name in files.patient(lambda: os.listdir(folder)) if folder.is_dir() else ():
        if (name in names or name.startswith("trace_step_")) and (folder / name).is_symlink():
            raise InputError(
                f"{folder / name} is a link, which a run folder does not hold; put the whole folder where there "
                "is room, or choose another --run-dir"
            )


def check_vacant(folder: Path) -> None:
    """InputError for a folder with something in it that is not what a kill leaves of a run that just began."""
    if not files.there(folder):
        return
    left = set()
    if folder.is_dir():
        left = {name for name in files.patient(lambda: os.listdir(folder)) if not files.TEMPORARY.fullmatch(name)}
        empty = "checkpoints" not in left or not os.listdir(folder / "checkpoints")
        if empty and (left <= BEGUN if LOCK in left else left <= set(LOGGERS)):
            return
    if left & {*LOGS, "checkpoints"} and LOCK in left:
        raise InputError(f"{folder} holds a run without its {CONFIG}; restore that file, or choose another --run-dir")
    raise InputError(f"{folder} exists and is no run folder; choose another --run-dir")


def is_run(held: Path) -> bool:
    """Whether `held` is a run's config.json; one that is damaged is taken for it, a model's is not. OSError where it
    cannot be read."""
    try:
        return "model_type" not in parse_json(files.read(held))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (ValueError, TypeError):
        return True


def held_settings(folder: Path) -> dict[str, Any]:
    """config.json of the run in a folder; {} where none can be read, of which `RunFolder` says what is wrong."""
    try:
        held = parse_json(files.read(folder / CONFIG))
    except (OSError, ValueError, TypeError):
        return {}
    return held if isinstance(held, dict) else {}


def differences(held: Path, config: Config) -> tuple[list[str], dict[str, Any]]:
    """The settings that differ from those in `held`, and all that it holds. A setting that an older version did not
    have was at its default, at which a new one changes nothing."""
    try:
        old = parse_json(files.read(held))
        if not isinstance(old, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{held}: cannot be read ({first_line(error)}); restore it or choose another --run-dir"
        ) from None
    if not is_count(old.get("format", 1)) or old.get("format", 1) > FORMAT:
        raise InputError(
            f"{held}: a run folder of format {old['format']!r}, and this version knows those up to {FORMAT}; continue "
            "it with the version that wrote it"
        )
    old = of_today(old)
    defaults = Config().to_json()
    return [key for key, value in config.to_json().items() if old.get(key, defaults[key]) != value], old


def saved_step(path: Path) -> int | None:
    """What the saver noted; None where it has noted nothing."""
    try:
        step = parse_json(files.read(path))["step"]
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        step = None
    if not is_count(step):
        raise InputError(f"{path}: holds no step; delete it if the newest checkpoint is there")
    return step


def interval(settings: Mapping[str, Any]) -> int:
    """Steps between two saves."""
    every, cycle = (settings.get(key) for key in ("save_every", "cycle"))
    if isinstance(every, int) and is_count(every) and every:
        return every
    return max(1, cycle // 4) if isinstance(cycle, int) and is_count(cycle) else 1


def versions() -> dict[str, str]:
    by_package = {}
    for package in ("siri-rl", "siri-kernels", "torch", "triton", "transformers"):
        try:
            by_package[package] = version(package)
        except PackageNotFoundError:
            continue
    return by_package
