"""Which model a run began with: its files by their content, so that another one of the same name is told from it."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from siri.data.problems import resolve_path
from siri.errors import InputError, parse_json

NAMES = ("config.json", "generation_config.json")
"""What says how the weights compute and where a response ends; the tokenizer is known by `siri.data.content`."""
SHAPE = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SHAPE += ("num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "rope_parameters")
"""What two must agree on in config.json, settled, if one has to take the other's weights."""


@dataclass(frozen=True)
class ModelIdentity:
    """A model by its content."""

    source: str
    revision: str
    """Commit of the hub's snapshot; "" of a folder."""
    files: dict[str, str]
    """SHA-256 of its configuration and of each file of its weights, by the path in its folder."""

    @classmethod
    def of(cls, source: str) -> "ModelIdentity":
        """Of a folder, the package or the hub, whose snapshot has to be there already."""
        folder = _folder(source)
        names = [name for name in NAMES if (folder / name).is_file()]
        weights = [*folder.glob("*.safetensors"), *folder.glob("weights/*.safetensors")]
        names += sorted(path.relative_to(folder).as_posix() for path in weights)
        try:
            with ThreadPoolExecutor(8) as pool:
                digests = list(pool.map(lambda name: _sha256(folder / name), names))
        except OSError as error:
            raise InputError(f"model {source}: cannot be read ({error.strerror})") from None
        revision = folder.name if folder.parent.name == "snapshots" else ""
        return cls(source, revision, dict(zip(names, digests, strict=True)))

    @classmethod
    def read(cls, path: Path) -> "ModelIdentity | None":
        """What `written` wrote; None where there is no such file, as in the folders of older releases."""
        try:
            held = parse_json(path.read_bytes())
            digests = {str(name): str(digest) for name, digest in held["files"].items()}
            return cls(str(held["source"]), str(held["revision"]), digests)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{path}: cannot be read ({type(error).__name__}); restore it, or delete it if the model is the same"
            ) from None

    def written(self) -> bytes:
        """JSON: source, revision and files."""
        return json.dumps({"source": self.source, "revision": self.revision, "files": self.files}, indent=1).encode()

    def change(self, before: "ModelIdentity") -> str:
        """What is not as it was, in words; "" where all is."""
        if before.files == self.files or (self.revision and self.revision == before.revision):
            return ""  # of a revision, a machine that only continues may not have the weights
        names = [name for name in before.files | self.files if before.files.get(name) != self.files.get(name)]
        revision = f", revision {self.revision[:12]} instead of {before.revision[:12]}" * (
            self.revision != before.revision
        )
        return f"model: {names[0]} of {self.source} is not the one that the run began with{revision}"


def _folder(source: str) -> Path:
    folder = Path(resolve_path(source))
    if folder.is_dir():
        return folder
    from transformers.utils import cached_file

    config_file = cached_file(source, "config.json", local_files_only=True)
    if config_file is None:
        raise InputError(f"model {source}: its config.json is not in the hub's cache")
    return Path(config_file).parent


def _sha256(path: Path) -> str:
    about = path.stat()
    return _digest(path, about.st_size, about.st_mtime_ns)


@cache
def _digest(path: Path, _size: int, _changed: int) -> str:
    """Weights are read once in a process, as long as they stay what they are."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
