"""Rows of parquet files and of data sets of the hub. Every error is an InputError in one line."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from siri.data.gold import Half, Single
from siri.data.parquet_footer import Chunk, chunks
from siri.data.table import Table, Unread, listed, refuse_pointer
from siri.errors import InputError, first_line

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 1024
"""Rows of a parquet file that are read at once."""
MOST_EXPANSION = 200
"""A parquet file that takes more memory than so many times its own size, and LEAST_REFUSED, is refused."""
LEAST_REFUSED = 2**28
ROW_BYTES, VALUE_BYTES = 300, 32
"""What a row, and a value of a column, take in memory besides their text."""


def read_parquet(path: Path) -> Table:
    """The columns that are asked for, in batches. Values that repeat are held once."""
    import pyarrow
    import pyarrow.parquet

    # what Arrow's C++ throws and does not know by a status is a RuntimeError
    faults = (pyarrow.ArrowException, OSError, ValueError, TypeError, OverflowError, MemoryError, RuntimeError)

    def unreadable(error: BaseException) -> InputError:
        return InputError(f"{path}: unreadable parquet: {first_line(error)}")

    try:
        with path.open("rb") as file:
            refuse_pointer(path, file.read(64))
        with pyarrow.parquet.ParquetFile(path) as file:
            columns, about = _schema_columns(file.schema_arrow), file.metadata
            twice = [name for name, count in Counter(file.schema_arrow.names).items() if count > 1]
    except faults as error:
        raise unreadable(error) from None

    if twice:
        raise InputError(f"{path}: has two columns {twice[0]!r}; leave one of them out")

    @cache
    def sizes() -> list[Chunk]:
        try:
            return chunks(path)
        except ValueError as error:
            raise unreadable(error) from None

    def rows(wanted: Sequence[str]) -> Iterator[Any]:
        leaves = _leaves(about, wanted)
        _check_expansion(path, about.num_rows, [chunk for chunk in sizes() if chunk.path in leaves])
        texts = [name for name, physical in leaves.items() if physical == "BYTE_ARRAY"]
        flat, done = [name for name in texts if "." not in name], 0
        # Arrow cannot give a nested column's texts as a dictionary where the writer gave that up within a row group
        for held_once in (texts, flat):
            try:
                with pyarrow.parquet.ParquetFile(path, read_dictionary=held_once) as file:
                    for row in islice(_file_rows(file, list(leaves)), done, None):
                        yield row
                        done += 1
                return
            except pyarrow.ArrowNotImplementedError as error:
                if held_once == flat:
                    raise unreadable(error) from None
            except faults as error:
                raise unreadable(error) from None

    return Table(columns, rows, about.num_rows)


def _file_rows(file: Any, columns: list[str]) -> Iterator[Any]:
    for batch in file.iter_batches(BATCH, columns=columns):
        batch.validate(full=True)  # indices lie in their dictionary, and offsets in their values
        yield from _batch_rows(batch)


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


def _check_expansion(path: Path, rows: int, columns: Sequence[Chunk]) -> None:
    """Refuse a file that is made to fill the memory."""
    size = rows * ROW_BYTES
    size += sum(max(0, chunk.uncompressed) + VALUE_BYTES * max(0, chunk.values) for chunk in columns)
    if size > max(LEAST_REFUSED, MOST_EXPANSION * path.stat().st_size):
        raise InputError(
            f"{path}: {rows:,} rows that would take {size / 2**30:.1f} GiB in a file of "
            f"{path.stat().st_size / 2**20:.2f} MiB; if that is meant, write it as .jsonl"
        )


def _batch_rows(batch: "pa.RecordBatch | pa.Table") -> Iterator[dict[str, Any]]:
    columns = [_values(column) for column in batch.columns]
    for row in zip(*columns, strict=True):
        yield dict(zip(batch.schema.names, row, strict=True))


def _values(array: Any) -> list[Any]:
    """The values of an Arrow array: equal entries of a dictionary are one object, floats of 32 bits and types that are
    neither text nor number say so (`Single`, `Half`, `Unread`)."""
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
        return [None if value is None else Half(str(np.float16(value))) for value in array.to_pylist()]
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
            return listed(list(dataset))
    except Exception as error:  # the hub client raises a dozen unrelated types; none of them is our bug
        raise InputError(
            f"{name}: no such file, and as a hub dataset (split {split!r}) it cannot be loaded: {first_line(error)}"
        ) from None

    def rows(wanted: Sequence[str]) -> Iterator[Any]:
        tops = [column for column in dataset.column_names if any(f"{key}.".startswith(f"{column}.") for key in wanted)]
        for table in dataset.select_columns(tops).with_format("arrow").iter(BATCH):
            yield from _batch_rows(table)

    return Table(_schema_columns(dataset.features.arrow_schema), rows, len(dataset))
