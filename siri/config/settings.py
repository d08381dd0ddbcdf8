"""What a setting is: a field of a frozen dataclass whose default, bounds and roles stand beside each other.

    steps: int = setting(1920, least=1, free=True)

A class that inherits a field may give it another default; bounds and roles stay those of the section that declares it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from inspect import get_annotations
from typing import Any

from siri.errors import InputError


@dataclass(frozen=True)
class Meaning:
    """What is known of a setting beside its type and default. A bound holds for numbers: "auto" and None pass it."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    free: bool = False
    """May change when a run continues: how long it goes on, what is measured and written, and how the work is laid out
    in memory and over machines. What is learnt is the same but for the order in which sums are rounded."""
    machine: bool = False
    """Says how a run is carried out and not what it learns: no part of the hash of a study's configuration."""
    everyday: bool = False
    """Stands first in the help."""
    positional: bool = False
    """Given by its place on the command line and not by --KEY."""
    suffix: str = ""
    """Words that end so are meant, wherever they stand on the command line (of a positional setting)."""

    def rule(self) -> str:
        """The bounds in words: "at least 1", "0 or more", "above 0 and below 1"."""
        upper = {"at most": self.most, "below": self.below}
        if self.least is not None and self.most is not None:
            return f"from {self.least:g} to {self.most:g}"
        if self.least == 0 and not any(bound is not None for bound in upper.values()):
            return "0 or more"
        words = {"at least": self.least, "above": self.above, **upper}
        return " and ".join(f"{word} {bound:g}" for word, bound in words.items() if bound is not None)

    def admits(self, value: float) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )


def setting(default: Any, **meaning: Any) -> Any:
    """A field with a default and its `Meaning`."""
    return field(default=default, metadata={"meaning": Meaning(**meaning)})


@dataclass(frozen=True)
class Settings:
    """A section of settings, or what is made of several: all of them are checked when it is made."""

    def __post_init__(self) -> None:
        check_bounds(self)
        for section in type(self).__mro__:
            if "check" in vars(section):
                section.check(self)

    def check(self) -> None:
        """Raise InputError for what bounds cannot say; every section's own is called."""


@dataclass(frozen=True)
class Declared:
    """A setting as a class of options has it."""

    name: str
    section: type
    """The class that declares it."""
    meaning: Meaning
    default: Any


def declared(options: type, default: Any = None) -> Iterator[Declared]:
    """The settings of a class, section by section in the order in which its bases are listed. default: an instance
    whose values stand for the defaults."""
    known = {each.name: each for each in fields(options)}
    owners = {name: section for section in options.__mro__ for name in get_annotations(section) if name in known}
    for section in options.__mro__:
        for name in get_annotations(section):
            if owners.get(name) is section:
                meaning = section.__dataclass_fields__[name].metadata.get("meaning", Meaning())
                value = known[name].default if default is None else getattr(default, name)
                yield Declared(name, section, meaning, value)


def names(options: type, *, free: bool = False, machine: bool = False) -> list[str]:
    """Names of the settings of a class in their order; only those with the role, if one is asked for."""
    return [
        each.name
        for each in declared(options)
        if (each.meaning.free or not free) and (each.meaning.machine or not machine)
    ]


def check_bounds(options: Any, only: type | None = None) -> None:
    """InputError for the first number that is not finite or out of its bounds. only: the section to look at."""
    for each in declared(type(options)):
        value = getattr(options, each.name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or (only and each.section is not only):
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{each.name} is {value}; it must be a finite number")
        if not each.meaning.admits(value):
            auto = "'auto' or " if each.default == "auto" else ""
            raise InputError(f"{each.name} is {value}; it must be {auto}{each.meaning.rule()}")
