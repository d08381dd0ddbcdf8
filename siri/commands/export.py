"""`siri export CHECKPOINT FOLDER`: a model folder for transformers and vLLM, or an adapter for peft and vLLM."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from siri.config.settings import setting
from siri.errors import InputError
from siri.text import say


@dataclass(frozen=True)
class ExportOptions:
    """What is written."""

    checkpoint: str = setting("", positional=True)
    """A checkpoint folder, a name link such as checkpoints/siri-low-1, or a run folder (its newest checkpoint)."""
    folder: str = setting("", positional=True)
    """The folder to write."""
    merge: bool = False
    """Write a whole model, an adapter merged into its base: what is written without --adapter, too."""
    adapter: bool = False
    """Write the adapter of a LoRA run alone, as peft and vLLM load it beside its base."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights of a whole model: auto = that of its base, float32 = what was trained; 16 bits take half the
    room."""
    results: tuple[str, ...] = ()
    """Result files of siri eval --out, whose figures the model card shows with their protocol."""
    push: str = ""
    """OWNER/NAME: send the folder to this repository of the hub, which is made if it is not there."""
    private: bool = False
    """With --push: a repository that is made is private."""


def run_export(options: ExportOptions) -> int:
    from siri.store.export import export
    from siri.store.push import check_repository, push

    if options.merge and options.adapter:
        raise InputError("--merge writes a whole model and --adapter the adapter alone; give one of them")
    if options.private and not options.push:
        raise InputError("--private is of a repository on the hub; give --push OWNER/NAME, or leave it out")
    if options.push:
        check_repository(options.push)
    if options.adapter and options.dtype != "auto":
        raise InputError("--dtype is of a whole model; an adapter is written as it was trained, without --dtype")
    import torch

    dtype = None if options.dtype == "auto" else getattr(torch, options.dtype)
    how = {"adapter": options.adapter, "dtype": dtype, "results": [Path(path) for path in options.results]}
    folder = export(Path(options.checkpoint), Path(options.folder), **how, tell=say)
    say(folder)
    if options.push:
        say(push(folder, options.push, private=options.private))
    return 0
