"""What `data` and `eval_data` name: a source of problems, which of its rows, under which columns, and how often.

    PLACE[@SPLIT][@[FIRST:LAST]][@PROMPT,ANSWER][@weight=2]        @[...] may follow the split without another @

PLACE is a file, a folder, a pattern or a name of the hub. In TOML a table says the same with the keys of `Source`.
"""

import difflib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from siri.errors import InputError

SUFFIXES = tuple(
    f"{kind}{packed}" for kind in (".parquet", ".jsonl", ".json", ".csv") for packed in ("", ".gz", ".zst")
)
"""Names of data files end so."""
_ROWS = re.compile(r"(?P<split>[\w.-]+(\+[\w.-]+)*)?(?P<rows>\[[^\[\]@]*\])?")
_OPTIONS = ("prompt_key", "answer_key", "weight")


@dataclass(frozen=True)
class Source:
    """A source of problems, as a word of `data` or a table of TOML names it."""

    source: str
    """File, folder, pattern, name of the hub, or siri:demo/..."""
    split: str = ""
    """Of a data set of the hub."""
    rows: str = ""
    """[FIRST:LAST], counted from 0 and without the last, of what is left of the split or of the files."""
    prompt_key: str = ""
    answer_key: str = ""
    weight: float = 1.0
    """How often each problem is drawn in an epoch."""

    def text(self) -> str:
        """The word that `read_source` makes this of."""
        parts = [self.source]
        if self.split or self.rows:
            parts.append(self.split + self.rows)
        named = {"prompt_key": self.prompt_key, "answer_key": self.answer_key}
        options = [f"{name.removesuffix('_key')}={value}" for name, value in named.items() if value]
        if all(named.values()):
            options = [f"{self.prompt_key},{self.answer_key}"]
        if self.weight != 1:
            options.append(f"weight={self.weight:g}")
        return "@".join([*parts, *([",".join(options)] if options else [])])

    def bounds(self) -> tuple[int, int | None]:
        """`rows` as numbers: the first, and the one after the last (None = to the end)."""
        if not self.rows:
            return 0, None
        match = re.fullmatch(r"\[(\d{0,15}):(\d{0,15})\]", self.rows)
        if match is None:
            raise InputError(f"data {self.text()!r}: rows of files are counted, as in [:100] or [100:200]")
        first, last = int(match[1] or 0), int(match[2]) if match[2] else None
        if last is not None and last <= first:
            raise InputError(f"data {self.text()!r}: {self.rows} holds no row")
        return first, last


def read_source(word: str) -> Source:
    """What a word names. InputError for parts behind an @ that mean nothing."""
    place, parts = word, dict[str, Any]()
    while "@" in place and not place.lower().endswith(SUFFIXES) and not os.path.exists(os.path.expanduser(place)):
        head, _, part = place.rpartition("@")
        if not head:
            break
        options = "," in part or "=" in part
        fields = _options(word, part) if options and "[" not in part else _split(word, part)
        if twice := parts.keys() & fields.keys():
            raise InputError(f"data {word!r}: gives {min(twice)} twice")
        parts, place = {**parts, **fields}, head
    return _checked(Source(place, **parts), word)


def source_of_table(table: Mapping[str, Any], where: str) -> Source:
    """What a table of TOML names. where: for InputErrors."""
    kinds = {each.name: (int, float) if each.name == "weight" else str for each in fields(Source)}
    for key, value in table.items():
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, n=1, cutoff=0.5)
            hint = f", did you mean {near[0]}?" if near else ""
            raise InputError(f"{where}: unknown key {key!r}{hint}; a table of data has {', '.join(kinds)}")
        if not isinstance(value, kinds[key]) or isinstance(value, bool):
            raise InputError(f"{where}: {key} is {value!r}; it must be {'a number' if key == 'weight' else 'text'}")
    if not table.get("source"):
        raise InputError(f"{where}: a table of data needs a source")
    source = Source(**table)
    try:
        same = read_source(_checked(source, source.text()).text()) == source
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if not same:
        raise InputError(
            f"{where}: {source.text()!r} cannot be told from another source; write it without @ and commas"
        )
    return source


def check_sources(name: str, words: tuple[str, ...], *, weighted: bool) -> None:
    """InputError for a setting whose words do not make sense, each or together."""
    sources = [read_source(word) for word in words]
    for word, source in zip(words, sources, strict=True):
        if source.weight != 1 and not weighted:
            raise InputError(f"{name}: {word!r} has a weight, but what is measured counts once; leave it out")
    if twice := next((word for word in words if words.count(word) > 1), ""):
        instead = f"; give it a weight, as in {twice}@weight=2" if weighted else ""
        raise InputError(f"{name} names {twice!r} twice{instead}")


def _checked(source: Source, word: str) -> Source:
    if not (source.weight > 0 and math.isfinite(source.weight)):
        raise InputError(f"data {word!r}: weight is {source.weight:g}; it must be a number above 0")
    return source


def _split(word: str, part: str) -> dict[str, str]:
    match = _ROWS.fullmatch(part)
    if match is None or not part:
        raise InputError(
            f"data {word!r}: {part!r} is no split with rows (train[:100], [:100]) and no columns (problem,answer or "
            "weight=2)"
        )
    return {name: value for name, value in match.groupdict().items() if value}


def _options(word: str, part: str) -> dict[str, Any]:
    options, names = dict[str, Any](), []
    for piece in part.split(","):
        key, equals, value = piece.partition("=")
        key = {"prompt": "prompt_key", "answer": "answer_key"}.get(key, key)
        if not equals:
            names.append(piece)
        elif key not in _OPTIONS or not value:
            raise InputError(
                f"data {word!r}: {piece!r} is unknown; write prompt=COLUMN, answer=COLUMN or weight=NUMBER"
            )
        elif key in options:
            raise InputError(f"data {word!r}: gives {key} twice")
        else:
            options[key] = value
    if len(names) not in (0, 2) or not all(names) or (names and options.keys() & {"prompt_key", "answer_key"}):
        raise InputError(f"data {word!r}: columns are named two, the prompt's and the answer's, as in @problem,answer")
    if names:
        options |= {"prompt_key": names[0], "answer_key": names[1]}
    if "weight" in options:
        try:
            options["weight"] = float(options["weight"])
        except ValueError:
            raise InputError(f"data {word!r}: weight is {options['weight']!r}; it must be a number above 0") from None
    return options
