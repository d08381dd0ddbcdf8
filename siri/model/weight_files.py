"""Where a model's weights lie, and whether its head is its embedding: what the files hold decides.

config.json says by tie_word_embeddings whether lm_head and embedding are one tensor; the files may say otherwise.

config.json   lm_head.weight in the files           the model is
tied          none                                  tied
tied          the embedding, bit for bit in fp32    tied
tied          another                               untied, with the head of the files; a line says so
untied        any                                   untied
untied        none                                  refused: its head would be random

Checkpoints hold a tied tensor once, so a head in one is untied whatever its values. Without weights (to plan a run,
before a download) config.json is taken at its word. Whoever builds a model from a configuration settles it here first,
so that loading, training, checkpoints, exports and vLLM have the same model.
"""

import json
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch

from siri.data.table import refuse_pointer
from siri.errors import InputError, first_line

MANIFEST = "manifest.json"
WEIGHTS = "weights"
"""In a checkpoint: the list of its files, and the folder of its weights."""
HEAD = "lm_head.weight"
EMBEDDINGS = ("model.embed_tokens.weight", "embed_tokens.weight")
"""Names of the embedding in files; the second is that of a backbone saved by itself."""
ROWS = 4096
"""Of head and embedding that are compared at a time."""


def is_checkpoint(folder: str | Path) -> bool:
    """Whether the folder is a checkpoint of ours rather than a model folder."""
    return (Path(folder) / MANIFEST).is_file()


def weight_files(folder: str | Path, *, fetch: bool) -> list[Path]:
    """The safetensors files of a checkpoint, a model folder or a model of the hub, as transformers would read them;
    none where there are none, or not all of them. fetch: download them. InputError for an index that is no index."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

    if is_checkpoint(folder):
        return sorted((Path(folder) / WEIGHTS).glob("*.safetensors"))

    def find(name: str) -> Path | None:
        with suppress(OSError):  # not there, or not to be had; whoever reads the model says so
            path = cached_file(str(folder), name, local_files_only=not fetch)
            return None if path is None else Path(path)
        return None

    if whole := find(SAFE_WEIGHTS_NAME):
        return [whole]
    index = find(SAFE_WEIGHTS_INDEX_NAME)
    if index is None:
        return []
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        shards = [find(name) for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{index}: no index of weights ({first_line(error)}); copy the file again") from None
    if fetch and None in shards:
        raise InputError(f"{index}: names {names[shards.index(None)]}, which is not there; copy the file, too")
    return [] if None in shards else [shard for shard in shards if shard]


def places(paths: Iterable[Path]) -> dict[str, Path]:
    """Name of each tensor in safetensors files -> the last file that holds it, or a part of it. InputError names a
    file that cannot be read."""
    from safetensors import SafetensorError, safe_open

    held: dict[str, Path] = {}
    for path in paths:
        with suppress(OSError), path.open("rb") as file:
            refuse_pointer(path, file.read(64))
        try:
            with safe_open(path, framework="pt") as file:
                held |= dict.fromkeys(file.keys(), path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: not to be read as safetensors ({first_line(error)}); copy it again") from None
    return held


def _said(folder: str | Path) -> str:
    """What config.json says of tied embeddings where they are not; without the key it is transformers that says so."""
    try:
        said = json.loads((Path(folder) / "config.json").read_text())
    except (OSError, ValueError):
        said = {"tie_word_embeddings": False}
    return "false in its config.json" if "tie_word_embeddings" in said else "not in its config.json, which means false"


def settle_tying(config: Any, source: str, folder: str | Path, *, fetch: bool = True) -> str:
    """Make `config.tie_word_embeddings` what the weights in `folder` are; see above. Returns a line for the user where
    config.json said otherwise, else "". source: how the user called the model. fetch: whether the weights will be read,
    so that those of the hub are downloaded now. InputError where config.json asks for a head that is not there."""
    held = places(weight_files(folder, fetch=fetch))
    if not held:
        return ""
    if HEAD not in held:
        if odd := next((name for name in (f"model.{HEAD}", f"base_model.{HEAD}") if name in held), ""):
            raise InputError(f"model {source}: its files call the head {odd}, which nobody reads; rename it to {HEAD}")
        if config.tie_word_embeddings:
            return ""
        raise InputError(
            f"model {source}: tie_word_embeddings is {_said(folder)}, but its files hold no {HEAD}, which "
            "would be random; set tie_word_embeddings to true if the head is the embedding, or add the tensor"
        )
    embedding = next((name for name in EMBEDDINGS if name in held), None)
    if not config.tie_word_embeddings or embedding is None:
        return ""
    if not is_checkpoint(folder) and _same(held, HEAD, embedding):
        return ""
    config.tie_word_embeddings = False
    return (
        f"model {source}: tie_word_embeddings is true in its config.json, but its files hold an {HEAD} other than the "
        "embedding; that head is used, and config.json is written with false"
    )


def _same(held: dict[str, Path], first: str, second: str) -> bool:
    """Whether two tensors are the same bit for bit in fp32, which is what is trained."""
    from safetensors import safe_open

    with ExitStack() as stack:
        a, b = (stack.enter_context(safe_open(held[name], framework="pt")).get_slice(name) for name in (first, second))
        if a.get_shape() != b.get_shape():
            return False
        starts = range(0, a.get_shape()[0], ROWS)
        return all(torch.equal(_bits(a[row : row + ROWS]), _bits(b[row : row + ROWS])) for row in starts)


def _bits(values: torch.Tensor) -> torch.Tensor:
    return values.float().view(torch.int32)
