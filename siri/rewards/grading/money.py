"""Amounts of one currency in two units: 75 cents are $0.75."""

from fractions import Fraction

from siri.rewards.grading.grammar import NotRead, read
from siri.rewards.grading.numbers import Undecided, Undefined
from siri.rewards.grading.readings import readings
from siri.rewards.grading.spelling import clean
from siri.rewards.grading.units import without_unit
from siri.rewards.grading.values import same_value


def same_money(gold: str, answer: str) -> bool:
    """Whether two texts are the same number of dollars or cents."""
    amounts, rests = [], []
    for text in (gold, answer):
        amount, unit = without_unit(clean(text))
        scale = ("num", Fraction(100 if unit and unit[0] == "cent" else 1))
        rests.append([name for name in unit or () if name not in ("cent", "dollar")])
        try:
            amounts.append(("/", read(readings(amount)[-1]), scale))
        except NotRead:
            return False
    try:
        return rests[0] == rests[1] and same_value(*amounts)
    except (Undecided, Undefined):
        return False
