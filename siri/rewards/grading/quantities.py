"""Amounts in one unit and in another: 1.5 hours are 90 minutes. Only what is said in both units is converted."""

import re
from collections.abc import Callable
from fractions import Fraction

from siri.rewards.grading.grammar import NotRead, read
from siri.rewards.grading.units import without_unit
from siri.rewards.grading.values import rational

Same = Callable[[str, str], bool]

_SCALES = {
    "time": {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "week": 604_800, "millisecond": Fraction(1, 1000)},
    "length": {"millimeter": 1, "centimeter": 10, "decimeter": 100, "meter": 1000, "kilometer": 1_000_000},
    "feet": {"inch": 1, "foot": 12, "yard": 36, "mile": 63_360},
    "mass": {"milligram": 1, "gram": 1000, "kilogram": 1_000_000},
    "weight": {"ounce": 1, "pound": 16},
    "volume": {"milliliter": 1, "centiliter": 10, "deciliter": 100, "liter": 1000},
    "money": {"cent": 1, "dollar": 100},
    "years": {"month": 1, "year": 12},
}
_UNITS = {unit: (kind, Fraction(scale)) for kind, units in _SCALES.items() for unit, scale in units.items()}
_NAME = re.compile(r"\s*[a-zA-Z](?:_\w)?\s*")


def same_quantity(a: str, b: str) -> bool:
    """Whether two amounts with units of one kind are the same amount."""
    amounts = _amount(a), _amount(b)
    return None not in amounts and amounts[0] == amounts[1]


def differ_in_units(a: str, b: str) -> bool:
    """Whether two quantities that are spelled alike but for spaces are in two units, as m s and ms."""
    units = [without_unit(text)[1] for text in (a, b) if "\\text{" in text]
    return len(units) == 2 and None not in units and units[0] != units[1]


def same_amount(sides: list[str], value: str, same: Same) -> bool | None:
    """Whether `value` is one of the amounts that a chain of equations says are the same, in several units; None where
    the chain is none of amounts."""
    sides = sides[1:] if len(sides) > 2 and _NAME.fullmatch(sides[0]) else sides
    amounts = [_amount(side) for side in sides]
    if len(amounts) < 2 or None in amounts:
        return None
    return len(set(amounts)) == 1 and any(same(value, side) for side in sides)


def _amount(text: str) -> tuple[str, Fraction] | None:
    """What is measured, and how much of it in the smallest unit."""
    quantity, unit = without_unit(text)
    if unit is None or len(unit) != 1 or unit[0] not in _UNITS:
        return None
    kind, scale = _UNITS[unit[0]]
    try:
        value = rational(read(quantity))
    except NotRead:
        return None
    return None if value is None else (kind, value * scale)
