"""What a source of problems holds, whatever its form."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from siri.errors import InputError

_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Table:
    """What a source holds: the names of its columns, nested ones with dots, and its rows."""

    columns: Sequence[str]
    """All of them, or those of the first rows."""
    rows: Callable[[Sequence[str]], Iterator[Any]]
    """Rows with at least the named columns, in order."""
    count: int | None = None
    """How many rows, where that is known beforehand."""
    all_columns: Callable[[], Sequence[str]] | None = None
    """Looks through all rows for the names of columns, where `columns` are those of the first."""


class Unread:
    """A value of an Arrow type that is neither text nor a number."""

    def __init__(self, arrow: str):
        self.arrow = arrow


def listed(rows: Sequence[Any]) -> Table:
    """A table of rows that are there."""
    return Table(list(dict.fromkeys(chain.from_iterable(map(column_names, rows)))), lambda _: iter(rows), len(rows))


def column_names(row: dict, prefix: str = "") -> list[str]:
    """The columns of a row, those of objects with dots."""
    names = []
    for key, value in row.items():
        names += column_names(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return names


def refuse_pointer(path: Path, start: bytes) -> None:
    """InputError for a file that says where its content is."""
    if start.startswith(_POINTER):
        raise InputError(f"{path}: a pointer of Git LFS, not the file itself; fetch it with git lfs pull")
