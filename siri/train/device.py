"""Where a run computes: a GPU if there is one, unless the model is so small that it would wait there for launches."""

import os
from math import prod
from pathlib import Path

import torch

from siri.config import Config
from siri.data.problems import resolve_path
from siri.model.policy import ARCHITECTURES, pick_device
from siri.planning.formulas import parameter_shapes
from siri.runtime.threads import SMALL


def choose_device(config: Config) -> tuple[torch.device, str]:
    """The device of this process, and a line on the choice where there was one. auto is a GPU where there is one, but
    the CPU for a model of at most SMALL parameters in a folder: each of its kernels ends before the next one can be
    launched, and on a first step all of them have to be compiled. Under torchrun auto is always a GPU."""
    device = pick_device(config.device)
    if config.device != "auto" or device.type != "cuda":
        return device, ""
    count = None if int(os.environ.get("WORLD_SIZE", "1")) > 1 else parameters(config.model)
    if count is not None and count <= SMALL:
        return torch.device("cpu"), (
            f"device: the CPU, although there is a GPU: a model of {count:,} parameters would wait there for the "
            "launches of its kernels; --device cuda takes it all the same"
        )
    return device, f"device: {torch.cuda.get_device_name(device)}"


def parameters(model: str) -> int | None:
    """Parameters of a model in a folder, by its config.json; None of any other, or where that says nothing."""
    folder = Path(resolve_path(model))
    if not (folder / "config.json").is_file():
        return None
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError):
        return None  # whoever loads it says what is wrong
    if config.model_type not in ARCHITECTURES:
        return None
    return sum(map(prod, parameter_shapes(config).values()))
