"""Problems and their gold answers, read from files or the hub."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from siri.data.gold import MISSING, PLACEHOLDER, NoAnswer, gold_answer
from siri.data.messages import Messages, read_prompt, without_answer
from siri.data.readers import Table, read_hub, read_json, read_jsonl, read_parquet
from siri.errors import InputError

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
    left_out: dict[str, int] = field(default_factory=dict)
    """How many rows were dropped for which reason, in words that follow "rows"."""
    answered: int = 0
    """Conversations that ended with the assistant's turn, which was cut off."""


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
    table, stem = _open(path, name, split)
    prompt_key, answer_key = _choose_columns(name, table.columns, prompt_key, answer_key)
    problems: list[Problem] = []
    known: dict[Any, str | Messages] = {}
    left_out: Counter[str] = Counter()
    placeholders: Counter[str] = Counter()
    answered = count = 0
    for number, row in enumerate(table.rows((prompt_key, answer_key))):
        count += 1
        column = prompt_key
        try:
            prompt = read_prompt(_lookup(row, prompt_key))
            column = answer_key
            answer = gold_answer(_lookup(row, answer_key))
            asked = without_answer(prompt)
            if not asked:
                raise NoAnswer(MISSING)
            answered += len(asked) < len(prompt)
        except NoAnswer as error:
            left_out[error.why] += 1
            placeholders.update([error.value] if error.value else [])
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{name}: row {number}: {error} (column {column!r})") from None
        else:
            # prompts that repeat are one object: a file may hold the same ones a hundred times
            key = asked if isinstance(asked, str) else tuple((message["role"], message["content"]) for message in asked)
            problems.append(Problem(f"{stem}/{number}", known.setdefault(key, asked), answer))
    if not count:
        raise InputError(f"{name}: the data set is empty")
    if placeholders:
        words = ", ".join(f"{word} {times}" for word, times in placeholders.most_common(5))
        left_out = Counter({f"{why} ({words})" if why == PLACEHOLDER else why: n for why, n in left_out.items()})
    if not problems:
        reasons = "".join(f"; {n} {why}" for why, n in left_out.items() if why != MISSING)
        raise InputError(
            f"{name}: the data set is empty: none of {count} rows has both a {prompt_key!r} and an {answer_key!r}"
            f"{reasons}"
        )
    return ProblemSet(problems, count - len(problems), dict(left_out), answered)


def _open(path: Path, name: str, split: str) -> tuple[Table, str]:
    """The table of a source, and what the ids of its problems begin with."""
    readers = {".json": read_json, ".jsonl": read_jsonl, ".parquet": read_parquet}
    suffix = path.suffix.lower()
    if suffix in readers:
        if not path.is_file():
            raise InputError(f"{name}: no such file")
        return readers[suffix](path), path.stem
    if path.exists() or suffix[1:].isalpha() or not _HUB_NAME.fullmatch(name):
        raise InputError(
            f"{name}: cannot read this; data is a .json, .jsonl or .parquet file or the name of a hub dataset"
        )
    hub, _, chosen = name.partition("@")
    return read_hub(hub, chosen or split), name


def _lookup(row: dict, key: str) -> Any:
    """The value under a column name or a dotted path; None when the row does not have it."""
    if key in row:
        return row[key]
    value: Any = row
    for name in key.split("."):
        value = value.get(name, _MISSING) if isinstance(value, dict) else _MISSING
    return None if value is _MISSING else value


def _dots(name: str) -> list[int]:
    return [place for place, char in enumerate(name) if char == "."]


def _choose_columns(name: str, found_columns: Sequence[str], prompt_key: str, answer_key: str) -> tuple[str, str]:
    # a column of objects is there as well as what is in it
    columns = {name[:end] for name in found_columns for end in (*_dots(name), len(name))}
    for known_prompt, known_answer in KNOWN_COLUMNS:
        wanted = (prompt_key or known_prompt, answer_key or known_answer)
        if all(key in columns for key in wanted):
            return wanted
    there = f"; columns found: {', '.join(found_columns)}"
    for key, option in ((prompt_key, "--prompt-key"), (answer_key, "--answer-key")):
        if key and key not in columns:
            raise InputError(f"{name}: no column {key!r} ({option}){there}")
    unknown = [
        option
        for given, option, known in (
            (prompt_key, "--prompt-key", {prompt for prompt, _ in KNOWN_COLUMNS}),
            (answer_key, "--answer-key", {answer for _, answer in KNOWN_COLUMNS}),
        )
        if not given and not known & columns
    ]
    options = " and ".join(unknown or ["--prompt-key", "--answer-key"])
    raise InputError(f"{name}: no columns that are recognised as prompt and answer; name them with {options}{there}")
