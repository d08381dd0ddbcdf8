"""Whether a model's files hold the tensors that its config.json asks for, told from their headers alone."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from siri.errors import InputError
from siri.model.weight_files import EMBEDDINGS, HEAD, is_checkpoint, places, weight_files

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
"""What safetensors calls the dtypes of weights as they are; others need scales that a plain model does not have."""
LEFT_OUT = (".rotary_emb.inv_freq", ".masked_bias", ".attn.bias")
"""Ends of names that older versions of transformers saved, and that are no weights."""


def check_fit(model: Any, source: str, folder: str | Path, *, fetch: bool) -> str:
    """Compare the names, shapes and dtypes of the tensors in `folder` with those of `model`, which may be on the meta
    device. Returns a line for the user where the files hold weights that the model does not have, or others that nobody
    reads lie beside them, else "".

    source: how the user called the model. fetch: download files that are not here. Raises InputError with the first
    tensor that has another shape, is no floating-point number or is not there, and for a local folder that holds no
    weights. A checkpoint has a check of its own.
    """
    if is_checkpoint(folder):
        return ""
    files = weight_files(folder, fetch=fetch)
    if not files:
        if Path(folder).is_dir():
            weight_files(folder, fetch=True)  # names a file of the index that is not there
            raise InputError(f"model {source}: {_without_weights(Path(folder))}")
        return ""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    held = {_name(name, wanted): seen for name, seen in _headers(places(files)).items()}
    for name, (shape, dtype) in held.items():
        if name in wanted and shape != wanted[name]:
            raise InputError(
                f"model {source}: {name} is {_by(shape)} in its files and {_by(wanted[name])} by its config.json; copy "
                "the config.json that belongs to these weights"
            )
        if name in wanted and dtype not in FLOATS:
            raise InputError(f"model {source}: {name} is {dtype} in its files; give weights in F32, BF16 or F16")
    unknown = sorted(name for name in held if name not in wanted and not name.endswith(LEFT_OUT))
    either = {HEAD, EMBEDDINGS[0]} if model.config.tie_word_embeddings else set()
    missing = sorted(wanted.keys() - held.keys() - (either if either & held.keys() else set()))
    if missing and not _translated(model, unknown):
        raise InputError(
            f"model {source}: its files hold no {missing[0]}{_more(missing)}, which would be random; copy all of its "
            "files, or mend its config.json"
        )
    if unknown and not missing:
        return f"model {source}: {unknown[0]}{_more(unknown)} in its files is no part of the model, and is not used"
    if unread := _second_set(Path(folder)):
        return f"model {source}: {WHOLE} is read; {INDEX} beside it names {unread}, which is not"
    return ""


def _second_set(folder: Path) -> str:
    """A file of weights that an index names beside the whole file, which comes first, as in transformers."""
    if not ((folder / WHOLE).is_file() and (folder / INDEX).is_file()):
        return ""
    try:
        names = set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()) - {WHOLE}
        return min((name for name in names if (folder / name).is_file()), default="")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""  # nobody reads this index


def _name(name: str, wanted: Mapping[str, Any]) -> str:
    """What the model calls a tensor: that of a backbone saved by itself has no prefix."""
    return f"model.{name}" if name not in wanted and f"model.{name}" in wanted else name


def _translated(model: Any, names: Iterable[str]) -> bool:
    """Whether transformers gives any of these names another when it reads weights: older names, experts one by one.
    What comes of them is for whoever reads them to say."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    changes = get_model_conversion_mapping(model)
    return any(change.rename_source_key(name)[0] != name for change in changes for name in names)


def _headers(held: Mapping[str, Path]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each tensor."""
    from safetensors import safe_open

    seen = {}
    for path in sorted(set(held.values())):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                part = file.get_slice(name)
                seen[name] = tuple(part.get_shape()), part.get_dtype()
    return seen


def _without_weights(folder: Path) -> str:
    """What to do about a folder whose weights cannot be read."""
    if any(folder.glob("adapter_model.*")):
        return "holds an adapter and no weights; give the folder of its base, merged with it"
    if any(folder.glob("*-of-*.safetensors")):
        return "its weights are in several files, but model.safetensors.index.json is not there; copy it, too"
    if others := sorted(path.name for path in folder.glob("*.safetensors")):
        return f"holds {others[0]}, which nobody reads; name it model.safetensors, if these are its weights"
    if any(folder.glob("pytorch_model*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        return "its weights would have to be unpickled, which runs code; save it as safetensors (save_pretrained does)"
    return "holds no weights; copy model.safetensors, or all files that model.safetensors.index.json names"


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" * (len(names) > 1)
