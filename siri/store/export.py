"""What leaves a run: a folder that transformers, vLLM or peft loads."""

import contextlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from siri.data.problems import resolve_path
from siri.errors import InputError, first_line
from siri.model.adapters import Adapter
from siri.model.policy import trainable_config
from siri.model.weight_files import is_checkpoint
from siri.store.about import ABOUT, DTYPES, read_about
from siri.store.card import CARD, model_card
from siri.store.checkpoint import (
    TRAINING_FILES,
    model_weights,
    newest_good,
    read_state,
    remove,
    verify,
    whole_weights,
)


def export(
    source: Path,
    target: Path,
    *,
    adapter: bool = False,
    dtype: torch.dtype | None = None,
    tell: Callable[[str], None] = lambda line: None,
    results: Sequence[Path] = (),
) -> Path:
    """Write the model and tokenizer of a checkpoint to a folder that transformers and vLLM load, an adapter merged into
    its base, or the adapter alone as peft and vLLM load it; the training state stays.

    source: a checkpoint folder, a name link such as checkpoints/siri-low-1, or a run folder (its newest checkpoint).
    dtype: of the weights of a whole model, to which they are rounded once, merged in fp32; None = that of its base's
    files; an adapter stays fp32. tell: gets a line on that, and where the checkpoint's config.json does not fit its
    weights. results: files of `siri eval --out` for the model card. InputError names what keeps it from being written;
    the target is whole or not there.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    checkpoint = good_checkpoint(source)
    lora = Adapter.read(checkpoint)
    if adapter and lora is None:
        raise InputError(f"{source}: holds whole weights and no adapter; export it without --adapter")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target}: exists and is no empty folder; choose a new one")
    base = Path(resolve_path(lora.base)) if lora else None
    if adapter and base and is_checkpoint(base):
        raise InputError(f"{source}: the base of its adapter is a checkpoint, which peft cannot load; export it merged")
    config, note = trainable_config(str(checkpoint), fetch=base is not None, checkpoint=base)
    if note:
        tell(note)
    dtype = dtype or (torch.float32 if adapter else _dtype_of_base(checkpoint, tell))
    card = model_card(
        checkpoint,
        read_state(checkpoint),
        title=target.absolute().name,
        adapter=adapter,
        dtype=str(dtype).removeprefix("torch."),
        results=results,
    )
    part = target.parent / f".{target.name}.part"
    try:
        remove(part)
        part.mkdir(parents=True)
        if adapter and lora and base:
            _write_adapter(part, checkpoint, lora, str(base))
        else:
            _write_model(part, config, model_weights(checkpoint, config), dtype)
        for path in checkpoint.iterdir():  # the rest as it is
            if path.name not in (*TRAINING_FILES, "config.json", *(["generation_config.json"] if adapter else [])):
                shutil.copyfile(path, part / path.name)
        _write_progress(part, checkpoint)
        (part / CARD).write_text(card, encoding="utf-8")
        if target.exists():
            target.rmdir()
        part.rename(target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror or first_line(error)})") from None
    finally:
        with contextlib.suppress(OSError):
            remove(part)
    return target


def _dtype_of_base(checkpoint: Path, tell: Callable[[str], None]) -> torch.dtype:
    name = read_about(checkpoint).get("base_dtype")
    if name not in DTYPES:
        tell("the type of the base's weights is not known: float32, as they were trained; see --dtype")
        return torch.float32
    if name != "float32":
        tell(f"weights: {name}, as its base's files have them; --dtype float32 keeps what was trained")
    return getattr(torch, name)


def good_checkpoint(source: Path) -> Path:
    """The checkpoint that is meant by a folder, a name link or a run. InputError where there is none that verifies."""
    checkpoint = source
    if (source / "checkpoints").is_dir():
        newest, damaged = newest_good(source / "checkpoints")
        if newest is None:
            raise InputError(f"{source}: no good checkpoint in this run" + "".join(f"; {line}" for line in damaged))
        checkpoint = newest
    if not is_checkpoint(checkpoint):
        raise InputError(f"{source}: no checkpoint there; give a run folder or one of its checkpoints")
    checkpoint = checkpoint.resolve()
    if fault := verify(checkpoint):
        raise InputError(f"{source}: damaged, {fault}; choose another checkpoint")
    return checkpoint


def _write_model(part: Path, config: Any, weights: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    rounded = {name: tensor.to(dtype) for name, tensor in weights.items()}
    model.load_state_dict(rounded, strict=False, assign=True)  # a tied head is there once
    model.tie_weights()
    model.save_pretrained(part)


def _write_progress(part: Path, checkpoint: Path) -> None:
    """Have siri.json say after how many steps the weights were written, for runs that go on from them."""
    if about := read_about(checkpoint):
        state = read_state(checkpoint)
        progress = {key: state[key] for key in ("steps_done", "train_tokens")}
        (part / ABOUT).write_text(json.dumps({**about, **progress}, indent=1))


def _write_adapter(part: Path, checkpoint: Path, adapter: Adapter, base: str) -> None:
    from safetensors.torch import save_file

    save_file(whole_weights(checkpoint), part / "adapter_model.safetensors", metadata={"format": "pt"})
    (part / "adapter_config.json").write_text(json.dumps(adapter.peft_config(base), indent=1, sort_keys=True))
