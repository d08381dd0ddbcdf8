"""Sizes of a parquet file's columns, read from its footer.

pyarrow's objects for them cannot be asked for this: where a hostile file's statistics do not fit its schema, they throw
through Python and end the process. The format: https://parquet.apache.org/docs/file-format/metadata/ in the compact
protocol of Thrift (https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md).
"""

from operator import index
from pathlib import Path
from typing import Any, NamedTuple

DEEPEST = 32
"""Structs and lists in each other; a footer has nine."""
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 11, 12
_INTEGERS = (4, 5, 6)


class Chunk(NamedTuple):
    """A column of a row group, by what the file says of it."""

    path: str
    """Names of the column and those that it lies in, joined by dots."""
    values: int
    uncompressed: int
    """Bytes."""


def chunks(path: Path) -> list[Chunk]:
    """All columns of all row groups. ValueError where the file has no footer that can be read."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 8))
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != b"PAR1" or length > size - 8:
            raise ValueError("it has no footer")
        file.seek(size - 8 - length)
        footer = file.read(length)
    try:
        about, _ = _struct(footer, 0, 0)
        columns = [column[3] for group in about.get(4, []) for column in group.get(1, [])]
        return [Chunk(b".".join(each[3]).decode(), index(each[5]), index(each[6])) for each in columns]
    except (IndexError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"its footer is damaged ({type(error).__name__})") from None


def _struct(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """The fields of a struct by their numbers, and where it ends."""
    _check_depth(depth)
    fields: dict[int, Any] = {}
    number = 0
    while (head := data[at]) & 15 != _STOP:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _integer(data, at)
        kind = head & 15
        if kind in (_TRUE, _FALSE):
            fields[number] = kind == _TRUE
        else:
            fields[number], at = _value(data, at, kind, depth)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in _INTEGERS:
        return _integer(data, at)
    if kind == _STRUCT:
        return _struct(data, at, depth + 1)
    if kind in (_TRUE, _FALSE, _BYTE):  # of a list
        return data[at], at + 1
    if kind == _DOUBLE:
        return None, at + 8
    if kind == _BINARY:
        length, at = _unsigned(data, at)
        return data[at : at + length], at + length
    if kind in (_LIST, _SET):
        head, at = data[at], at + 1
        count, at = _unsigned(data, at) if head >> 4 == 15 else (head >> 4, at)
        return _values(data, at, count, (head & 15,), depth)
    if kind == _MAP:
        count, at = _unsigned(data, at)
        head, at = (data[at], at + 1) if count else (0, at)
        return _values(data, at, 2 * count, (head >> 4, head & 15), depth)
    raise ValueError(f"its footer has a field of the unknown type {kind}")


def _values(data: bytes, at: int, count: int, kinds: tuple[int, ...], depth: int) -> tuple[list[Any], int]:
    """So many values of these types in turn: none takes less than a byte."""
    _check_depth(depth)
    values = []
    for number in range(count):
        value, at = _value(data, at, kinds[number % len(kinds)], depth + 1)
        if at > len(data):
            raise IndexError
        values.append(value)
    return values, at


def _check_depth(depth: int) -> None:
    if depth > DEEPEST:
        raise ValueError("its footer is nested too deeply")


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("its footer has an integer without an end")


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """Zigzag: the sign is the lowest bit."""
    value, at = _unsigned(data, at)
    return (value >> 1) ^ -(value & 1), at
