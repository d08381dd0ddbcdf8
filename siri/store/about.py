"""siri.json: what a checkpoint or an export says of itself, so that it is measured as it was trained."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siri.config import Config
from siri.data.places import resolve_path
from siri.errors import InputError, first_line, parse_json
from siri.store import files
from siri.store.held import CONFIG

ABOUT = "siri.json"
FORMAT = 1
PROTOCOL: dict[str, type | tuple[type, ...]] = {
    "reward": str,
    "think": bool,
    "template": str,
    "template_args": str,
    "instruction": str,
    "max_prompt_tokens": int,
    "temperature": (int, float),
    "top_p": (int, float),
    "cap": int,
}
"""How a model is measured, and what kind of value each setting has."""
DTYPES = ("float32", "bfloat16", "float16")


def about_run(config: Config, recipe: str, dtype: str) -> bytes:
    """What the checkpoints of a run hold. dtype: of the weights of its base."""
    about = {"format": FORMAT, "base": config.model, "base_dtype": dtype, "recipe": recipe, "data": list(config.data)}
    return json.dumps({**about, "lora_rank": config.lora_rank, "evaluation": protocol(config)}, indent=1).encode()


def protocol(config: Config) -> dict[str, Any]:
    """How a run measures."""
    shared = {name: getattr(config, name) for name in PROTOCOL if hasattr(config, name)}
    return shared | {
        "temperature": config.eval_temperature,
        "top_p": config.eval_top_p,
        "cap": config.eval_cap or config.length_schedule().longest,
    }


def read_about(folder: Path) -> dict[str, Any]:
    """What a folder says of itself; {} where it says nothing. InputError where that cannot be read."""
    path = folder / ABOUT
    try:
        held = parse_json(files.read(path))
        if not isinstance(held, dict) or held.get("format") != FORMAT:
            raise ValueError(f"it is not of format {FORMAT}")
        measured = held.get("evaluation")
        if not isinstance(measured, dict):
            raise ValueError("it holds no evaluation")
        for name, value in measured.items():
            kind = PROTOCOL.get(name)
            if kind is None or not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise ValueError(f"its {name} is {value!r}")
        for name in ("base", "base_dtype", "recipe"):
            if not isinstance(held.get(name, ""), str):
                raise ValueError(f"its {name} is no text")
        if not isinstance(held.get("data", []), list):
            raise ValueError("its data is no list")
        return held
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)}); restore it, or delete it") from None


def protocols(models: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """How each model that says so was measured in its run, by its name."""
    by_model = {}
    for model in models:
        folder = Path(resolve_path(model))
        if folder.is_dir() and (held := read_about(folder)):
            by_model[model] = held["evaluation"]
    return by_model


def base_dtype(model: str) -> str:
    """Type of the weights in a model's files, as its config.json has it; "" where that says nothing."""
    from transformers import AutoConfig

    folder = Path(resolve_path(model))
    if folder.is_dir() and (held := read_about(folder)):
        return str(held.get("base_dtype", ""))
    try:
        dtype = AutoConfig.from_pretrained(str(folder), trust_remote_code=False).dtype
    except Exception:  # transformers raises whatever its parsers raise; whoever loads the model says what is wrong
        return ""
    name = str(dtype).removeprefix("torch.")
    return name if name in DTYPES else ""


def run_of(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint lies in; None where it lies elsewhere."""
    run = checkpoint.parent.parent
    return run if checkpoint.parent.name == "checkpoints" and (run / CONFIG).is_file() else None


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Settings that both name, and not alike."""
    return sorted(name for name in first.keys() & second.keys() if first[name] != second[name])
