"""Where problems lie: files of the package, folders and patterns, and the names that tell sources apart."""

import glob
import os
import re
from collections.abc import Callable, Collection
from importlib.resources import files
from pathlib import Path

from siri.data.readers import read_parquet
from siri.data.table import Table
from siri.data.text_files import read_csv, read_json, read_jsonl
from siri.errors import InputError
from siri.sources import SUFFIXES

PACKAGE_SCHEME = "siri:"
READERS: dict[str, Callable[[Path], Table]] = {
    ".parquet": read_parquet,
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
}
KINDS = ".json, .jsonl, .csv (with .gz or .zst behind it, too) or .parquet"
_SPLITS = {"train": "train", "training": "train", "test": "test", "valid": "test", "validation": "test", "dev": "test"}
"""Words in names of files that must not be mixed, by what they mean."""


def resolve_path(source: str | Path) -> str:
    """Expands `siri:demo/...` to the demo's package data (`siri/demo/assets/...`), other `siri:PATH` to `siri/PATH`.

    Everything else (a path, a hub name) comes back unchanged but for `~`. Raises InputError when the package has no
    such file or folder.
    """
    source = str(source)
    if not source.startswith(PACKAGE_SCHEME):
        return str(Path(source).expanduser()) if source.startswith("~") else source
    inside = source.removeprefix(PACKAGE_SCHEME)
    if inside.startswith("demo/"):
        inside = "demo/assets/" + inside.removeprefix("demo/")
    path = Path(str(files("siri"))) / inside
    if not path.exists():
        names = ", ".join(sorted(p.name for p in path.parent.iterdir())) if path.parent.is_dir() else "nothing"
        raise InputError(f"{source}: the installed package has no such data (beside it there is: {names})")
    return str(path)


def short_names(sources: Collection[str]) -> dict[str, str]:
    """For each source the shortest end of its path that no other has, its file name at least."""
    short = {}
    for source in sources:
        parts = Path(source).parts
        others = [Path(other).parts for other in sources if other != source]
        ends = (parts[-length:] for length in range(1, len(parts)))
        shortest = next((end for end in ends if all(other[-len(end) :] != end for other in others)), parts)
        short[source] = str(Path(*shortest)) if shortest else source
    return short


def suffix_of(path: Path | str) -> str:
    """The suffix by which a data file is known, with .gz or .zst; "" where it is none."""
    name = Path(path).name.lower()
    return next((suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(suffix)), "")


def read_file(path: Path) -> Table:
    """The table of a data file."""
    suffix = suffix_of(path)
    kind = suffix.removesuffix(".gz").removesuffix(".zst")
    if kind == ".parquet" and suffix != kind:
        raise InputError(f"{path}: parquet is packed inside; unpack it, and leave out {suffix.removeprefix(kind)}")
    return READERS[kind](path)


def stem_of(path: Path) -> str:
    """The name of a data file without its suffix."""
    return path.name[: len(path.name) - len(suffix_of(path))] or path.name


def data_files(place: str, name: str) -> list[Path] | None:
    """The files that a place names, in order: itself, those in a folder or those that match a pattern; None where it is
    no path. InputError where there is none, or where they are not to be mixed. name: what the user wrote."""
    path = Path(place)
    if os.path.isdir(place):  # unlike Path's, it says no of a name that is none
        held = [each for each in path.iterdir() if each.is_file() and not each.name.startswith(".")]
        return _alike([each for each in held if suffix_of(each)], name, f"no {KINDS} file directly in this folder")
    if os.path.isfile(place) and suffix_of(path):
        return [path]
    if glob.has_magic(place):
        matching = [Path(each) for each in glob.glob(place, recursive=True)]
        return _alike([each for each in matching if each.is_file()], name, "no file matches this pattern")
    if suffix_of(path):
        raise InputError(f"{name}: no such file")
    return None


def _alike(paths: list[Path], name: str, none: str) -> list[Path]:
    if not paths:
        raise InputError(f"{name}: {none}")
    if strange := next((path for path in paths if not suffix_of(path)), None):
        raise InputError(f"{name}: {strange.name} is no {KINDS} file; give a pattern that leaves it out")
    kinds = sorted({suffix_of(path).split(".")[1] for path in paths})
    if len(kinds) > 1:
        raise InputError(f"{name}: holds {' and '.join(kinds)} files; name one kind by a pattern, as in *.{kinds[0]}")
    splits = {_SPLITS[word] for path in paths for word in re.split(r"[\W_]+", path.name.lower()) if word in _SPLITS}
    if len(splits) > 1:
        raise InputError(f"{name}: holds files of train and test; name one by a pattern, as in train-*.{kinds[0]}")
    return sorted(paths, key=lambda path: [_natural(part) for part in path.parts])


def _natural(text: str) -> list[tuple[int, int | str]]:
    """So that part-10 follows part-9."""
    return [(0, int(part)) if part.isdecimal() and len(part) < 18 else (1, part) for part in re.split(r"(\d+)", text)]
