"""Problems and their gold answers, read from files or the hub."""

import json
import math
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from siri.errors import InputError, first_line, parse_json

PACKAGE_SCHEME = "siri:"
# (prompt, answer) columns that are recognised without being named, in order of preference:
# verl, DeepScaleR, GSM8K-like, and the plainest of all.
KNOWN_COLUMNS = (
    ("prompt", "reward_model.ground_truth"),
    ("problem", "answer"),
    ("question", "answer"),
    ("prompt", "answer"),
)
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?(@[\w.-]+)?")
_MISSING = object()


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem and its gold answer."""

    id: str
    """Where it came from: file stem or hub name, and row number counted from 0 (`math500/17`)."""
    prompt: str | list[dict[str, str]]
    """Plain text, or chat messages with `role` and `content`."""
    answer: str
    """The gold answer as text. Several accepted answers are one JSON list of strings, as in `["1/2", "0.5"]`."""


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """What `load_problems` found: the usable problems, and how many rows had no prompt or no answer."""

    problems: list[Problem]
    dropped: int


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
        found = ", ".join(sorted(p.name for p in path.parent.iterdir())) if path.parent.is_dir() else "nothing"
        raise InputError(f"{source}: the installed package has no such data (beside it there is: {found})")
    return str(path)


def load_problems(
    source: str | Path, *, prompt_key: str = "", answer_key: str = "", split: str = "train"
) -> ProblemSet:
    """Reads problems from a .json (array, or an object with `data`), .jsonl or .parquet file, or from the hub.

    `prompt_key` and `answer_key` name the columns; dots reach into nested ones (`reward_model.ground_truth`). Left
    empty they are recognised (`KNOWN_COLUMNS`). A hub source is `name`, `name:configuration` or either with `@split`;
    without it `split` is read. Files have no splits. Raises InputError, in one line, for anything that cannot be read.
    """
    path = Path(resolve_path(source))
    name = str(source)
    readers = {".json": _read_json, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    suffix = path.suffix.lower()
    if suffix in readers:
        if not path.is_file():
            raise InputError(f"{name}: no such file")
        rows = readers[suffix](path)
    elif path.exists() or suffix[1:].isalpha() or not _HUB_NAME.fullmatch(name):
        raise InputError(
            f"{name}: cannot read this; data is a .json, .jsonl or .parquet file or the name of a hub dataset"
        )
    else:
        hub, _, chosen = name.partition("@")
        rows = _read_hub(hub, chosen or split)
    if not rows:
        raise InputError(f"{name}: the data set is empty")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(f"{name}: row {number} is {_kind(row)}, not an object with a prompt and an answer")

    try:
        prompt_key, answer_key = _choose_columns(name, rows, prompt_key, answer_key)
    except RecursionError:
        raise InputError(f"{name}: objects nested too deeply") from None
    problems = []
    for number, row in enumerate(rows):
        try:
            prompt = _prompt(_lookup(row, prompt_key))
            answer = _answer(_lookup(row, answer_key))
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{name}: row {number}: {error}") from None
        if prompt and answer:
            problems.append(Problem(f"{path.stem if suffix in readers else name}/{number}", prompt, answer))
    if not problems:
        raise InputError(
            f"{name}: the data set is empty: none of {len(rows)} rows has both a {prompt_key!r} and an {answer_key!r}"
        )
    return ProblemSet(problems, len(rows) - len(problems))


def _read_text(path: Path) -> str:
    try:
        # utf-8-sig: a byte-order mark, which some Windows tools write, is not part of the data
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def _read_json(path: Path) -> list:
    try:
        data = parse_json(_read_text(path))
    except json.JSONDecodeError as error:
        hint = "; if every line is an object of its own, name the file .jsonl" if error.msg == "Extra data" else ""
        raise InputError(
            f"{path}: malformed JSON at line {error.lineno}, column {error.colno}: {error.msg}{hint}"
        ) from None
    except ValueError as error:  # JSON, but beyond what Python reads: nesting, digits
        raise InputError(f"{path}: JSON that cannot be read: {first_line(error)}") from None
    rows = data.get("data") if isinstance(data, dict) else data
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected an array of problems or an object with such an array under 'data'")
    return rows


def _read_jsonl(path: Path) -> list:
    rows = []
    # not splitlines(): that also breaks at U+2028, which JSON strings may hold
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(parse_json(line))
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: malformed JSON at line {number}, column {error.colno}: {error.msg}") from None
        except ValueError as error:
            raise InputError(f"{path}: JSON at line {number} cannot be read: {first_line(error)}") from None
    return rows


def _read_parquet(path: Path) -> list:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise InputError(f"{path}: unreadable parquet: {first_line(error)}") from None


def _read_hub(name: str, split: str) -> list:
    import datasets

    repository, _, configuration = name.partition(":")
    try:
        return list(datasets.load_dataset(repository, configuration or None, split=split))
    except Exception as error:  # the hub client raises a dozen unrelated types; none of them is our bug
        raise InputError(
            f"{name}: no such file, and as a hub dataset (split {split!r}) it cannot be loaded: {first_line(error)}"
        ) from None


def _kind(value: Any) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"


def _lookup(row: dict, key: str) -> Any:
    """The value under a column name or a dotted path; None when the row does not have it."""
    if key in row:
        return row[key]
    value: Any = row
    for part in key.split("."):
        value = value.get(part, _MISSING) if isinstance(value, dict) else _MISSING
    return None if value is _MISSING else value


def _column_names(row: dict, prefix: str = "") -> list[str]:
    names = []
    for key, value in row.items():
        names += _column_names(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return names


def _choose_columns(name: str, rows: list[dict], prompt_key: str, answer_key: str) -> tuple[str, str]:
    columns = dict.fromkeys(column for row in rows for column in _column_names(row))
    for known_prompt, known_answer in KNOWN_COLUMNS:
        wanted = (prompt_key or known_prompt, answer_key or known_answer)
        if all(key in columns for key in wanted):
            return wanted
    found = f"; columns found: {', '.join(columns)}"
    for key, option in ((prompt_key, "--prompt-key"), (answer_key, "--answer-key")):
        if key and key not in columns:
            raise InputError(f"{name}: no column {key!r} ({option}){found}")
    unknown = [
        option
        for given, option, known in (
            (prompt_key, "--prompt-key", {prompt for prompt, _ in KNOWN_COLUMNS}),
            (answer_key, "--answer-key", {answer for _, answer in KNOWN_COLUMNS}),
        )
        if not given and not known & columns.keys()
    ]
    options = " and ".join(unknown or ["--prompt-key", "--answer-key"])
    raise InputError(f"{name}: no columns that are recognised as prompt and answer; name them with {options}{found}")


def _prompt(value: Any) -> str | list[dict[str, str]]:
    if value is None or isinstance(value, str):
        return _text(value or "")
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(value, list):
        raise TypeError(f"the prompt is {_kind(value)}, not text or chat messages")
    messages = []
    for message in value:
        role, content = (message.get(key) for key in ("role", "content")) if isinstance(message, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise TypeError("a chat message needs a 'role' and a 'content', both text")
        messages.append({"role": _text(role), "content": _text(content, strip=False)})
    return messages


def _text(value: str, *, strip: bool = True) -> str:
    """`value`, which must be text that can be written down: JSON may hold halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise TypeError(f"half of a surrogate pair (\\u{ord(value[error.start]):04x}) is no text") from None
    return value.strip() if strip else value


def _answer(value: Any) -> str:
    """The answer as text; empty when there is none."""
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        value = value.tolist()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        return _text(value.rpartition("####")[2])  # GSM8K: the worked solution, then "#### 42"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, list):
        accepted = [text for text in map(_answer, value) if text]
        return accepted[0] if len(accepted) == 1 else json.dumps(accepted, ensure_ascii=False) if accepted else ""
    if isinstance(value, int | float):
        return str(value)
    raise TypeError(f"the answer is {_kind(value)}, not text or a number")
