"""Rows of data files: JSON, JSON lines, parquet, and data sets of the hub. Every error is an InputError in one line."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from siri.data.gold import Single, kind
from siri.errors import InputError, first_line, parse_json

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 1024
"""Rows of a parquet file that are read at once."""
MOST_EXPANSION = 200
"""A parquet file that takes more memory than so many times its own size, and LEAST_REFUSED, is refused."""
LEAST_REFUSED = 2**28
ROW_BYTES, VALUE_BYTES = 300, 32
"""What a row, and a value of a column, take in memory besides their text."""


@dataclass(frozen=True)
class Table:
    """What a source holds: the names of its columns, nested ones with dots, and its rows."""

    columns: Sequence[str]
    rows: Callable[[Sequence[str]], Iterator[Any]]
    """Rows with at least the named columns, in order."""


class Unread:
    """A value of an Arrow type that is neither text nor a number."""

    def __init__(self, arrow: str):
        self.arrow = arrow


def _listed(rows: Sequence[Any]) -> Table:
    columns = dict.fromkeys(column for row in rows for column in _column_names(row))
    return Table(list(columns), lambda _: iter(rows))


def _column_names(row: dict, prefix: str = "") -> list[str]:
    names = []
    for key, value in row.items():
        names += _column_names(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return names


# ---------------------------------------------------------------- JSON


def _read_text(path: Path) -> str:
    try:
        # utf-8-sig: a byte-order mark, which some Windows tools write, is not part of the data
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"an object has the key {twice!r} twice")
    return members


def _parse(text: str) -> Any:
    """JSON whose numbers keep every digit they are written with, and whose objects have each key once."""
    return parse_json(text, parse_float=Decimal, object_pairs_hook=_object)


def read_json(path: Path) -> Table:
    """An array of rows, or an object that holds one under `data`."""
    text = _read_text(path)
    try:
        data = _parse(text)
    except json.JSONDecodeError as error:
        hint = ""
        if error.msg == "Extra data":
            hint = "; if every line is an object of its own, name the file .jsonl"
        elif text[: error.pos].rstrip().endswith(","):
            hint = " after a comma"
        raise InputError(
            f"{path}: malformed JSON at line {error.lineno}, column {error.colno}: {error.msg}{hint}"
        ) from None
    except ValueError as error:  # JSON, but beyond what Python reads: nesting, digits
        raise InputError(f"{path}: JSON that cannot be read: {first_line(error)}") from None
    rows = data.get("data") if isinstance(data, dict) else data
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected an array of problems or an object with such an array under 'data'")
    return _table(path, rows)


def read_jsonl(path: Path) -> Table:
    """One row a line; blank lines are none."""
    rows = []
    text = _read_text(path)
    whole = "; a file that is one array is named .json" if text.lstrip().startswith("[") else ""
    # not splitlines(): that also breaks at U+2028, which JSON strings may hold
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = _parse(line)
        except json.JSONDecodeError as error:
            comma = line[error.pos :].strip() == "," and error.msg == "Extra data"
            hint = whole or ("; no comma stands between lines" if comma else "")
            raise InputError(
                f"{path}: malformed JSON at line {number}, column {error.colno}: {error.msg}{hint}"
            ) from None
        except ValueError as error:
            raise InputError(f"{path}: JSON at line {number} cannot be read: {first_line(error)}") from None
        if whole and isinstance(row, list):
            raise InputError(f"{path}: line {number} is an array, not an object{whole}")
        rows.append(row)
    return _table(path, rows)


def _table(path: Path, rows: list) -> Table:
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(f"{path}: row {number} is {kind(row)}, not an object with a prompt and an answer")
    if not rows:
        raise InputError(f"{path}: the data set is empty")
    try:
        return _listed(rows)
    except RecursionError:
        raise InputError(f"{path}: objects nested too deeply") from None


# ---------------------------------------------------------------- Arrow


def read_parquet(path: Path) -> Table:
    """The columns that are asked for, in batches. Values that repeat are held once."""
    import pyarrow
    import pyarrow.parquet

    faults = (pyarrow.ArrowException, OSError, ValueError, TypeError, OverflowError, MemoryError)

    def unreadable(error: BaseException) -> InputError:
        return InputError(f"{path}: unreadable parquet: {first_line(error)}")

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns, about = _schema_columns(file.schema_arrow), file.metadata
            twice = [name for name, count in Counter(file.schema_arrow.names).items() if count > 1]
    except faults as error:
        raise unreadable(error) from None

    if twice:
        raise InputError(f"{path}: has two columns {twice[0]!r}; leave one of them out")

    def rows(wanted: Sequence[str]) -> Iterator[Any]:
        leaves = _leaves(about, wanted)
        _check_expansion(path, about, leaves)
        texts = [name for name, physical in leaves.items() if physical == "BYTE_ARRAY"]
        try:
            with pyarrow.parquet.ParquetFile(path, read_dictionary=texts) as file:
                for batch in file.iter_batches(BATCH, columns=list(leaves)):
                    yield from _batch_rows(batch)
        except faults as error:
            raise unreadable(error) from None

    return Table(columns, rows)


def _schema_columns(fields: Any, prefix: str = "") -> list[str]:
    """Names of columns, those of a struct with dots, as `_column_names` gives them of rows."""
    import pyarrow as pa

    names = []
    for field in fields:
        nested = pa.types.is_struct(field.type) and field.type.num_fields
        inner = [field.type.field(i) for i in range(field.type.num_fields)] if nested else []
        names += _schema_columns(inner, f"{prefix}{field.name}.") if nested else [f"{prefix}{field.name}"]
    return names


def _leaves(about: Any, wanted: Sequence[str]) -> dict[str, str]:
    """Path and physical type of the parquet columns that make up the wanted ones."""
    schema = about.schema
    columns = [schema.column(i) for i in range(len(schema))]
    return {
        column.path: column.physical_type
        for column in columns
        if any(column.path == name or column.path.startswith(f"{name}.") for name in wanted)
    }


def _check_expansion(path: Path, about: Any, leaves: dict[str, str]) -> None:
    """Refuse a file that is made to fill the memory."""
    size = about.num_rows * ROW_BYTES
    for group in map(about.row_group, range(about.num_row_groups)):
        parts = map(group.column, range(group.num_columns))
        read = [chunk for chunk in parts if chunk.path_in_schema in leaves]
        size += sum(max(0, chunk.total_uncompressed_size) + VALUE_BYTES * chunk.num_values for chunk in read)
    if size > max(LEAST_REFUSED, MOST_EXPANSION * path.stat().st_size):
        raise InputError(
            f"{path}: {about.num_rows:,} rows that would take {size / 2**30:.1f} GiB in a file of "
            f"{path.stat().st_size / 2**20:.2f} MiB; if that is meant, write it as .jsonl"
        )


def _batch_rows(batch: "pa.RecordBatch | pa.Table") -> Iterator[dict[str, Any]]:
    columns = [_values(column) for column in batch.columns]
    for row in zip(*columns, strict=True):
        yield dict(zip(batch.schema.names, row, strict=True))


def _values(array: Any) -> list[Any]:
    """The values of an Arrow array: equal entries of a dictionary are one object, floats of 32 bits and types that are
    neither text nor number say so (`Single`, `Unread`)."""
    import pyarrow as pa

    if isinstance(array, pa.ChunkedArray):
        return [value for chunk in array.chunks for value in _values(chunk)]
    arrow = array.type
    is_a = pa.types
    if isinstance(array, pa.ExtensionArray):
        return _values(array.storage) if is_a.is_string(array.storage.type) else _unread(array)
    if is_a.is_dictionary(arrow):
        entries = _values(array.dictionary)
        return [None if index is None else entries[index] for index in array.indices.to_pylist()]
    if is_a.is_struct(arrow):
        names = [arrow.field(i).name for i in range(arrow.num_fields)]
        parts = zip(*(_values(part) for part in array.flatten()), strict=True) if names else iter([()] * len(array))
        valid = array.is_valid().to_pylist()
        return [
            dict(zip(names, part, strict=True)) if there else None for part, there in zip(parts, valid, strict=True)
        ]
    if is_a.is_list(arrow) or is_a.is_large_list(arrow) or is_a.is_fixed_size_list(arrow):
        flat = iter(_values(array.flatten()))
        return [None if n is None else [next(flat) for _ in range(n)] for n in array.value_lengths().to_pylist()]
    if is_a.is_float32(arrow):
        return [None if value is None else Single(value) for value in array.to_pylist()]
    if is_a.is_float16(arrow):
        return [None if value is None else float(str(np.float16(value))) for value in array.to_pylist()]
    if is_a.is_binary(arrow) or is_a.is_large_binary(arrow) or is_a.is_binary_view(arrow):
        return [value if value is None else _decoded(value, arrow) for value in array.to_pylist()]
    read = (is_a.is_string, is_a.is_large_string, is_a.is_string_view, is_a.is_integer, is_a.is_floating)
    if any(test(arrow) for test in (*read, is_a.is_decimal, is_a.is_boolean, is_a.is_null)):
        return array.to_pylist()
    return _unread(array)


def _unread(array: Any) -> list[Any]:
    unread = Unread(str(array.type).partition("<")[0])
    return [unread if there else None for there in array.is_valid().to_pylist()]


def _decoded(value: bytes, kind: Any) -> Any:
    """Bytes as the text they are: old writers of parquet do not mark text."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return Unread(str(kind))


# ---------------------------------------------------------------- the hub


def read_hub(name: str, split: str) -> Table:
    """A split of a data set of the hub, `name` or `name:configuration`."""
    import datasets

    repository, _, configuration = name.partition(":")
    try:
        dataset = datasets.load_dataset(repository, configuration or None, split=split)
        if not isinstance(dataset, datasets.Dataset):
            return _listed(list(dataset))
    except Exception as error:  # the hub client raises a dozen unrelated types; none of them is our bug
        raise InputError(
            f"{name}: no such file, and as a hub dataset (split {split!r}) it cannot be loaded: {first_line(error)}"
        ) from None

    def rows(wanted: Sequence[str]) -> Iterator[Any]:
        tops = [column for column in dataset.column_names if any(f"{key}.".startswith(f"{column}.") for key in wanted)]
        for table in dataset.select_columns(tops).with_format("arrow").iter(BATCH):
            yield from _batch_rows(table)

    return Table(_schema_columns(dataset.features.arrow_schema), rows)
