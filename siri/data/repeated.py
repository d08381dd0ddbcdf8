"""Values that repeat, held once: of two million rows there may be twenty thousand problems."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, overload

import numpy as np

T = TypeVar("T")
S = TypeVar("S")


class Repeated(Sequence[T]):
    """The sequence values[which[0]], values[which[1]], ...; four bytes a place. Equal to any sequence with the same
    items."""

    def __init__(self, values: Sequence[T], which: Any = None) -> None:
        """which: whole numbers [N]; None = each value once."""
        self.values = values
        self.which = np.arange(len(values), dtype=np.int32) if which is None else np.asarray(which, np.int32)

    @classmethod
    def of(cls, items: Sequence[T]) -> "Repeated[T]":
        return items if isinstance(items, Repeated) else cls(items)

    @classmethod
    def joined(cls, parts: Iterable["Repeated[T]"]) -> "Repeated[T]":
        """One after the other."""
        values, which = list[T](), [np.empty(0, np.int32)]
        for part in parts:
            which.append(part.which + np.int32(len(values)))
            values += part.values
        return cls(values, np.concatenate(which))

    def mapped(self, function: Callable[[T], S]) -> "Repeated[S]":
        """function of every item, called once a value."""
        return Repeated([function(value) for value in self.values], self.which)

    def chosen(self, places: Any) -> "Repeated[T]":
        """The items at these places, as numpy takes them."""
        return Repeated(self.values, self.which[places])

    def used(self) -> Iterator[T]:
        """Each value that is there at least once."""
        return (self.values[index] for index in np.unique(self.which).tolist())

    def __len__(self) -> int:
        return len(self.which)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            return [self.values[index] for index in self.which[place].tolist()]
        return self.values[self.which[place]]

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self.which), 4096):
            for index in self.which[start : start + 4096].tolist():
                yield self.values[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(item == other_item for item, other_item in zip(self, other, strict=True))

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        return f"Repeated({list(self[:8])}{'...' if len(self) > 8 else ''}, {len(self)} items)"
