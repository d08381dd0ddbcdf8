"""Problems and their gold answers, read from files or the hub."""

import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from siri.data.columns import Gold, Wanted, plain_value
from siri.data.escapes import restored
from siri.data.gold import MISSING, PLACEHOLDER, NoAnswer, gold_answer
from siri.data.messages import NOT_TEXT, PICTURES, Messages, has_placeholder, read_prompt, without_answer
from siri.data.places import KINDS, data_files, read_file, stem_of
from siri.data.places import PACKAGE_SCHEME as PACKAGE_SCHEME
from siri.data.places import resolve_path as resolve_path
from siri.data.places import short_names as short_names
from siri.data.prose import without_prose
from siri.data.readers import read_hub
from siri.data.repeated import Repeated
from siri.data.table import Table
from siri.errors import InputError
from siri.sources import Source, read_source

# (prompt, answer) columns that are recognised without being named, in order of preference:
# verl, DeepScaleR, GSM8K-like, and the plainest of all.
KNOWN_COLUMNS = (
    ("prompt", "reward_model.ground_truth"),
    ("problem", "answer"),
    ("question", "answer"),
    ("prompt", "answer"),
)
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")
_MISSING = object()
TICK = 1024
"""Rows between two words on the progress."""

RowsRead = Callable[[int, int | None], None]
"""Called with the rows that were read so far, and how many there are, where that is known."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem and its gold answer."""

    id: str
    """Where it came from: file stem or hub name, and row number counted from 0 (`math500/17`)."""
    prompt: str | list[dict[str, str]]
    """Plain text, or chat messages with `role` and `content`."""
    answer: str
    """The gold answer as text. Several accepted answers are one JSON list of strings, as in `["1/2", "0.5"]`."""


class Pair(NamedTuple):
    """What a problem says, wherever it stands."""

    prompt: str | Messages
    answer: str


class Problems(Sequence[Problem]):
    """Problems in the order of their rows. Those that say the same are held once: a row takes 12 bytes."""

    def __init__(self, pairs: Repeated[Pair], stems: Repeated[str], rows: Any) -> None:
        """rows: numbers [N] of the rows; -1 where the stem is the whole id."""
        self.pairs, self.stems, self.rows = pairs, stems, np.asarray(rows, np.int32)

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> "Problems":
        if isinstance(problems, Problems):
            return problems
        pairs = [Pair(problem.prompt, problem.answer) for problem in problems]
        return cls(Repeated(pairs), Repeated([problem.id for problem in problems]), np.full(len(problems), -1))

    def chosen(self, places: Any) -> "Problems":
        """The problems at these places, as numpy takes them."""
        return Problems(self.pairs.chosen(places), self.stems.chosen(places), self.rows[places])

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, place: int) -> Problem: ...
    @overload
    def __getitem__(self, place: slice) -> list[Problem]: ...
    def __getitem__(self, place: int | slice) -> Problem | list[Problem]:
        if isinstance(place, slice):
            return list(self.chosen(place))
        row = int(self.rows[place])
        return Problem(self.stems[place] + (f"/{row}" if row >= 0 else ""), *self.pairs[place])

    def __iter__(self) -> Iterator[Problem]:
        for place in range(len(self)):
            yield self[place]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """What `load_problems` found: the usable problems, and how many rows had no prompt or no answer."""

    problems: Problems
    dropped: int
    left_out: dict[str, int] = field(default_factory=dict)
    """How many rows were dropped for which reason, in words that follow "rows"."""
    answered: int = 0
    """Conversations that ended with the assistant's turn, which was cut off."""
    files: int = 1
    """How many files were read."""
    restored: int = 0
    """Rows whose LaTeX had lost backslashes that are restored (`siri.data.escapes`)."""


def load_problems(
    source: str | Path | Source,
    *,
    prompt_key: str = "",
    answer_key: str = "",
    split: str = "train",
    prose: bool = True,
    wanted: Wanted | None = None,
    told: RowsRead | None = None,
) -> ProblemSet:
    """Reads problems from .json (an array, or an object with `data`), .jsonl, .csv and .parquet files, a folder or a
    pattern of them, or from the hub (`siri.sources`).

    `prompt_key` and `answer_key` name the columns where the source itself does not; dots reach into nested ones
    (`reward_model.ground_truth`). Left empty they are recognised (`KNOWN_COLUMNS`). A hub source is `name`,
    `name:configuration` or either with `@split`; without it `split` is read. Files have no splits. Without `prose`,
    answers that are proofs and explanations are left out. wanted: columns that a reward asks for, which go with the
    answer. Raises InputError, in one line, for anything that cannot be read.
    """
    given = source if isinstance(source, Source) else read_source(str(source))
    name = given.text()
    reading = _Reading(
        name, given.prompt_key or prompt_key, given.answer_key or answer_key, prose, wanted or Wanted(), told
    )
    tables = _tables(given, name, split)
    first, last = (0, None) if tables[0].hub else given.bounds()
    seen = 0
    for table in tables:
        if last is not None and seen >= last:
            break
        seen += reading.read(table, max(0, first - seen), None if last is None else last - seen)
    if not seen:
        raise InputError(f"{name}: the data set is empty")
    if not reading.count:
        raise InputError(f"{name}: the data set is empty: it has {seen} rows")
    return reading.problem_set(len(tables))


class _Open(NamedTuple):
    """A table with what the ids of its problems begin with."""

    table: Table
    stem: str
    path: str
    hub: bool = False


def _tables(source: Source, name: str, split: str) -> list[_Open]:
    place = resolve_path(source.source)
    paths = data_files(place, name)
    if paths is not None:
        if source.split:
            raise InputError(
                f"{name}: files have no split {source.split!r}; rows are named @[:100], columns @problem,answer"
            )
        source.bounds()
        return [_Open(read_file(path), stem_of(path), str(path)) for path in paths]
    suffix = Path(place).suffix
    if os.path.exists(place) or suffix[1:].isalpha() or not _HUB_NAME.fullmatch(source.source):
        raise InputError(
            f"{name}: cannot read this; data is a {KINDS} file, a folder or a pattern of them, or the name of a hub "
            "dataset"
        )
    table = read_hub(source.source, (source.split or split) + source.rows)
    return [_Open(table, source.source + (f"@{source.split}{source.rows}" if source.split or source.rows else ""),
                  name, hub=True)]  # fmt: skip


class _Reading:
    """Rows become problems, table by table."""

    def __init__(self, name: str, prompt_key: str, answer_key: str, prose: bool, wanted: Wanted, told: RowsRead | None):
        self.name, self.keys, self.prose, self.wanted, self.told = name, (prompt_key, answer_key), prose, wanted, told
        self.pairs: list[Pair] = []
        self.which: list[np.ndarray] = []
        self.rows: list[np.ndarray] = []
        self.starts: list[int] = []
        self.stems: list[str] = []
        self.chosen = ("", "")
        self.left_out, self.placeholders = Counter[str](), Counter[str]()
        self.answered = self.restored = self.count = 0
        self.pictured = False
        self._raw: dict[Hashable, tuple[int, bool, bool]] = {}
        self._places: dict[Hashable, int] = {}
        self._prompts: dict[Hashable, str | Messages] = {}

    def read(self, opened: _Open, first: int, last: int | None) -> int:
        """Take the rows from `first` to `last` of a table; returns how many it has, up to there."""
        table = opened.table
        where = self.name if opened.hub or opened.path == self.name else f"{self.name}: {opened.path}"
        prompt_key, answer_key = _choose_columns(where, table, *self.keys)
        self.chosen = (prompt_key, answer_key)
        columns = self.wanted.of(table.columns, table.all_columns, where)
        self.stems.append(opened.stem)
        pictured = any(name.partition(".")[0].casefold() in PICTURES for name in table.columns)
        if pictured != self.pictured:  # what was kept of a file without images may not be kept of this one
            self.pictured = pictured
            self._raw.clear()
        which, rows = array("i"), array("i")
        number = -1
        for number, row in enumerate(islice(table.rows((prompt_key, answer_key, *columns)), last)):
            if self.told and number % TICK == 0:
                self.told(self.count + number, table.count)
            if number < first:
                continue
            place = self._place(where, number, row, prompt_key, answer_key, columns)
            if place is not None:
                which.append(place)
                rows.append(number)
        self.which.append(np.array(which, np.int32))
        self.rows.append(np.array(rows, np.int32))
        self.starts.append(len(rows))
        self.count += max(0, number + 1 - first)
        return number + 1

    def _place(
        self, where: str, number: int, row: Any, prompt_key: str, answer_key: str, columns: Sequence[str]
    ) -> int | None:
        """Which of the pairs a row says; None where it is left out."""
        prompt, gold = _lookup(row, prompt_key), _lookup(row, answer_key)
        raw = (_key(prompt), gold) if type(gold) is str and not columns else None
        if raw is not None and raw[0] is not None and (known := self._raw.get(raw)):
            self.answered += known[1]
            self.restored += known[2]
            return known[0]
        column, before = prompt_key, restored.count
        try:
            asked_of = read_prompt(prompt)
            column = answer_key
            answer = gold_answer(gold)
            answer = answer if self.prose else without_prose(answer)
            asked = without_answer(asked_of)
            if not asked:
                raise NoAnswer(MISSING)
            if self.pictured and has_placeholder(asked):
                raise NoAnswer(NOT_TEXT)
            values = {}
            for column in columns:
                values[column] = plain_value(_lookup(row, column))
            if values:
                answer = Gold(answer, values)
        except NoAnswer as error:
            self.left_out[error.why] += 1
            self.placeholders.update([error.value] if error.value else [])
            return None
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{where}: row {number}: {error} (column {column!r})") from None
        cut = len(asked) < len(asked_of)
        mended = restored.count > before
        self.answered += cut
        self.restored += mended
        # what repeats is one object: a file may hold the same problems a hundred times
        said = asked if isinstance(asked, str) else tuple((message["role"], message["content"]) for message in asked)
        key = (said, answer, answer.written() if isinstance(answer, Gold) else "")
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = len(self.pairs)
            self.pairs.append(Pair(self._prompts.setdefault(said, asked), answer))
        if raw is not None and raw[0] is not None:
            self._raw[raw] = (place, cut, mended)
        return place

    def problem_set(self, files: int) -> ProblemSet:
        left_out = self.left_out
        if self.placeholders:
            words = ", ".join(f"{word} {times}" for word, times in self.placeholders.most_common(5))
            left_out = Counter({f"{why} ({words})" if why == PLACEHOLDER else why: n for why, n in left_out.items()})
        if not self.pairs:
            reasons = "".join(f"; {n} {why}" for why, n in left_out.items() if why != MISSING)
            prompt_key, answer_key = self.chosen
            raise InputError(
                f"{self.name}: the data set is empty: none of {self.count} rows has both a {prompt_key!r} and an "
                f"{answer_key!r}{reasons}"
            )
        stems = Repeated(self.stems, np.repeat(np.arange(len(self.starts)), self.starts))
        problems = Problems(Repeated(self.pairs, np.concatenate(self.which)), stems, np.concatenate(self.rows))
        dropped = self.count - len(problems)
        return ProblemSet(problems, dropped, dict(left_out), self.answered, files, self.restored)


def _key(prompt: Any) -> Hashable | None:
    """What tells a raw prompt from others; None for one of an unusual form."""
    if type(prompt) is str:
        return prompt
    if type(prompt) is list and all(type(part) is dict for part in prompt):
        flat = tuple(item for part in prompt for pair in part.items() for item in pair)
        if all(type(item) is str for item in flat):
            return (len(prompt), *flat)
    return None


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


def with_parts(columns: Sequence[str]) -> set[str]:
    """The columns, and those of objects that hold them."""
    return {name[:end] for name in columns for end in (*_dots(name), len(name))}


def _choose_columns(name: str, table: Table, prompt_key: str, answer_key: str) -> tuple[str, str]:
    chosen = _known(with_parts(table.columns), prompt_key, answer_key)
    if chosen is not None:
        return chosen
    found_columns = table.all_columns() if table.all_columns else table.columns
    columns = with_parts(found_columns)
    chosen = _known(columns, prompt_key, answer_key)
    if chosen is not None:
        return chosen
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
    here = f"{name.partition('@')[0]}@PROMPT,ANSWER"
    raise InputError(
        f"{name}: no columns that are recognised as prompt and answer; name them as {here}, or for all sets with "
        f"{options}{there}"
    )


def _known(columns: set[str], prompt_key: str, answer_key: str) -> tuple[str, str] | None:
    for known_prompt, known_answer in KNOWN_COLUMNS:
        wanted = (prompt_key or known_prompt, answer_key or known_answer)
        if all(key in columns for key in wanted):
            return wanted
    return None
