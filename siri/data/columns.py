"""Columns of the data beside prompt and answer, which a reward function asks for by name."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from siri.errors import InputError

PLAIN = (str, int, float, bool, type(None))


class Gold(str):
    """A gold answer together with the columns that a reward asks for."""

    columns: dict[str, Any]

    def __new__(cls, answer: str, columns: dict[str, Any]) -> "Gold":
        gold = super().__new__(cls, answer)
        gold.columns = columns
        return gold

    def written(self) -> str:
        """The columns as JSON."""
        return json.dumps(self.columns, sort_keys=True)

    def __reduce__(self) -> tuple[type, tuple[str, dict[str, Any]]]:
        return Gold, (str(self), self.columns)


@dataclass(frozen=True)
class Wanted:
    """The columns that a reward asks for: parameters by name, those without a default and those with one."""

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def of(
        self, columns: Sequence[str], all_columns: Callable[[], Sequence[str]] | None, where: str
    ) -> tuple[str, ...]:
        """Those that a source has. InputError where a required one is not among its columns."""
        wanted = (*self.required, *self.optional)
        if not wanted:
            return ()
        there = _top_level(columns)
        if all_columns and not there.issuperset(wanted):
            there = _top_level(all_columns())
        for name in self.required:
            if name not in there:
                raise InputError(
                    f"{where}: no column {name!r}, which the reward function asks for; columns found: "
                    f"{', '.join(sorted(there))}"
                )
        return tuple(name for name in wanted if name in there)


def _top_level(columns: Sequence[str]) -> set[str]:
    """A parameter cannot have dots: of nested columns the outermost."""
    return {column.partition(".")[0] for column in columns} | set(columns)


def plain_value(value: Any) -> Any:
    """A value of a column as JSON holds it. TypeError for what is neither text, number, list nor object."""
    import numpy as np  # graders read this file and start without it

    from siri.data.gold import kind

    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Decimal):
        return int(value) if value.is_finite() and value == value.to_integral_value() else float(value)
    if isinstance(value, list):
        return [plain_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain_value(item) for key, item in value.items()}
    if not isinstance(value, PLAIN):
        raise TypeError(f"the value is {kind(value)}, which a reward function cannot be handed")
    return float(value) if isinstance(value, float) else value
