"""Rows of JSON, JSON lines and CSV, packed with gzip or zstd or not. Every error is an InputError in one line."""

import codecs
import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from decimal import Decimal, InvalidOperation
from itertools import islice
from pathlib import Path
from typing import Any

from siri.data.decimals import LONGEST
from siri.data.gold import kind
from siri.data.table import Table, column_names, listed, refuse_pointer
from siri.errors import InputError, first_line, parse_json

FIRST = 1024
"""Rows that are looked at for the names of columns before all are."""
LONGEST_LINE = 2**26
"""Bytes; a longer one is refused before it fills the memory."""
_NO_NEWLINES = "a carriage return alone ends no line; end each with a newline"
LARGEST_JSON = 2**31
"""Bytes of a packed .json, unpacked, which is read as a whole."""


# ---------------------------------------------------------------- bytes and lines


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The bytes of a file, unpacked."""
    import pyarrow

    try:
        with path.open("rb") as file:
            head = file.read(64)
        refuse_pointer(path, head)
        if path.suffix.lower() not in (".gz", ".zst"):
            _refuse_other(path, head)
        match path.suffix.lower():
            case ".gz":
                stream = gzip.open(path)  # noqa: SIM115 - closed below, as the others
            case ".zst":
                stream = pyarrow.input_stream(str(path), compression="zstd")
            case _:
                stream = path.open("rb")
        with stream:
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile, pyarrow.ArrowException) as error:
        raise InputError(f"{path}: cannot be unpacked ({first_line(error)})") from None
    except OSError as error:
        if path.suffix.lower() == ".zst" and error.strerror is None:  # Arrow's own
            raise InputError(f"{path}: cannot be unpacked ({first_line(error)})") from None
        raise InputError(f"{path}: {error.strerror or first_line(error)}") from None


# How files begin that are no text, and what to do with them.
_OTHER = (
    (b"\x1f\x8b", "packed with gzip: name it .gz"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd: name it .zst"),
    (b"PK\x03\x04", "a zip archive: unpack it"),
    (b"PAR1", "a parquet file: name it .parquet"),
    (codecs.BOM_UTF16_LE, "text in UTF-16: write it in UTF-8"),
    (codecs.BOM_UTF16_BE, "text in UTF-16: write it in UTF-8"),
)


def _refuse_other(path: Path, head: bytes) -> None:
    for magic, what in _OTHER:
        if head.startswith(magic):
            raise InputError(f"{path}: {what}")


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text in UTF-8, with their ends. Only newlines end lines, not U+2028, which JSON may hold."""
    place, before = 0, b""
    with _opened(path) as stream:
        while block := stream.read(2**20):
            *whole, before = (before + block).split(b"\n")
            for line in whole:
                yield _text(path, line + b"\n", place)
                place += len(line) + 1
            if len(before) > LONGEST_LINE:
                raise InputError(f"{path}: a line of more than {LONGEST_LINE:,} bytes (from byte {place} on)")
        if before:
            yield _text(path, before, place)


def _text(path: Path, line: bytes, place: int) -> str:
    if place == 0:  # a byte-order mark, which some Windows tools write, is not part of the data
        line = line.removeprefix(codecs.BOM_UTF8)
    if (nul := line.find(b"\0")) >= 0:
        raise InputError(f"{path}: not UTF-8 text (a zero at byte {place + nul}; UTF-16 has such)")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {place + error.start})") from None


# ---------------------------------------------------------------- JSON


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"an object has the key {twice!r} twice")
    return members


def _parse(text: str) -> Any:
    """JSON whose numbers keep every digit they are written with, and whose objects have each key once."""
    return parse_json(text, parse_float=_decimal, parse_int=_integer, object_pairs_hook=_object)


def _decimal(digits: str) -> Decimal:
    try:
        return Decimal(digits)
    except InvalidOperation:  # an exponent of more than 18 digits
        raise ValueError(f"a number of more than {LONGEST} digits") from None


def _integer(digits: str) -> int:
    if len(digits) > LONGEST:
        raise ValueError(f"a number of more than {LONGEST} digits")
    return int(digits)


def read_json(path: Path) -> Table:
    """An array of rows, or an object that holds one under `data`."""
    parts, size = [], 0
    for line in _lines(path):
        parts.append(line)
        size += len(line)
        if size > LARGEST_JSON and path.suffix.lower() != ".json":
            raise InputError(f"{path}: more than {LARGEST_JSON:,} bytes in one piece; write it as .jsonl")
    text = "".join(parts)
    if not text.strip():
        raise InputError(f"{path}: the data set is empty")
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
    for number, row in enumerate(rows):
        _check_row(path, number, row)
    if not rows:
        raise InputError(f"{path}: the data set is empty")
    try:
        return listed(rows)
    except RecursionError:
        raise InputError(f"{path}: objects nested too deeply") from None


def read_jsonl(path: Path) -> Table:
    """One row a line; blank lines are none. Read as it is asked for: no more than a line is held."""
    return _streamed(path, lambda: _json_rows(path))


def _json_rows(path: Path) -> Iterator[dict]:
    whole, count = "", 0
    for number, line in enumerate(_lines(path), start=1):
        line = line.removesuffix("\n")
        if not line.strip():
            continue
        if not count and line.lstrip().startswith("["):
            whole = "; a file that is one array is named .json"
        try:
            row = _parse(line)
        except json.JSONDecodeError as error:
            comma = line[error.pos :].strip() == "," and error.msg == "Extra data"
            if "\r" in line[:-1].strip():
                whole = f"; {_NO_NEWLINES}"
            hint = whole or ("; no comma stands between lines" if comma else "")
            if not hint and _is_unfinished(line, error.pos):
                hint = "; write each object on a line of its own, or name the file .json if it is an array of them"
            raise InputError(
                f"{path}: malformed JSON at line {number}, column {error.colno}: {error.msg}{hint}"
            ) from None
        except ValueError as error:
            raise InputError(f"{path}: JSON at line {number} cannot be read: {first_line(error)}") from None
        if whole and isinstance(row, list):
            raise InputError(f"{path}: line {number} is an array, not an object{whole}")
        _check_row(path, count, row)
        count += 1
        yield row
    if not count:
        raise InputError(f"{path}: the data set is empty")


def _is_unfinished(line: str, place: int) -> bool:
    """Whether a line is a piece of an object that is spread over several."""
    return line.lstrip()[:1] in ("{", '"', "}") and not line[place:].strip()


def _check_row(path: Path, number: int, row: Any) -> None:
    if not isinstance(row, dict):
        raise InputError(f"{path}: row {number} is {kind(row)}, not an object with a prompt and an answer")


# ---------------------------------------------------------------- CSV


def read_csv(path: Path) -> Table:
    """Comma-separated values as RFC 4180 has them, the first line naming the columns. Every value is text; an empty one
    is none."""
    return _streamed(path, lambda: _csv_rows(path))


def _csv_rows(path: Path) -> Iterator[dict]:
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(_lines(path), strict=True)
    try:
        names = next(reader, None)
        if not names:
            raise InputError(f"{path}: the data set is empty")
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise InputError(f"{path}: has two columns {twice!r}; leave one of them out")
        if len(names) == 1 and any(mark in names[0] for mark in ";\t"):
            raise InputError(f"{path}: its columns are not separated by commas; write it with commas, or as .jsonl")
        count = 0
        for values in reader:
            if not values:
                continue
            if len(values) != len(names):
                raise InputError(
                    f"{path}: line {reader.line_num} has {len(values)} values for {len(names)} columns; quote values "
                    "that hold a comma"
                )
            count += 1
            yield {name: value or None for name, value in zip(names, values, strict=True)}
    except csv.Error as error:
        why = _NO_NEWLINES if "new-line" in str(error) else first_line(error)
        raise InputError(f"{path}: malformed CSV at line {reader.line_num}: {why}") from None
    if not count:
        raise InputError(f"{path}: the data set is empty")


# ---------------------------------------------------------------- tables


def _streamed(path: Path, rows: Any) -> Table:
    """A table whose rows are read anew each time."""

    def names(some: Iterator[dict]) -> Sequence[str]:
        columns: dict[str, None] = {}
        try:
            for row in some:
                columns.update(dict.fromkeys(column_names(row)))
        except RecursionError:
            raise InputError(f"{path}: objects nested too deeply") from None
        return list(columns)

    with closing(rows()) as first:
        columns = names(islice(first, FIRST))
    return Table(columns, lambda _: rows(), all_columns=lambda: names(rows()))
