"""Ratios and sets under names: "a : b : c = 1 : 2 : 3", "D = (0, 1) and R = (2, 3)".

Read as a quotient, a : b : c would be a : c : b; read as sets alone, an interval would be anybody's. Each value is
compared under its name, in whatever order the names are written.
"""

import re
from collections.abc import Callable

from siri.rewards.grading.joins import AND_OR, says_or
from siri.rewards.grading.labels import label, name_key
from siri.rewards.grading.structure import ratio, split

Same = Callable[[str, str], bool]

_SET = re.compile(r"\s*(?:[(\[]|\\\{|\\mathbb|\\emptyset)")


def same_ratio(golds: list[str], answers: list[str], same: Same) -> bool | None:
    """Whether two equations of ratios give the same parts to the same names; None where they are no such equations, or
    have two parts, of which quotients say the same."""
    sides = _named_ratio(golds), _named_ratio(answers)
    if not all(sides):
        return False if any(len(side) > 2 for side in sides) else None
    gold, answer = sides
    if sorted(gold) != sorted(answer):
        return False if max(len(gold), len(answer)) > 2 else None
    return all(same(value, answer[name]) for name, value in gold.items())


def _named_ratio(sides: list[str]) -> dict[str, str]:
    """The parts by their names; empty for whatever else."""
    ratios = [parts[1] for parts in map(ratio, sides) if parts]
    if len(sides) != 2 or len(ratios) != 2 or len(ratios[0]) != len(ratios[1]):
        return {}
    names, values = ratios if re.search("[a-zA-Z]", sides[0]) else ratios[::-1]
    named = dict(zip(map(name_key, names), values, strict=True))
    return named if len(named) == len(names) else {}


def same_named_sets(gold: str, answer: str, same: Same) -> bool | None:
    """Whether several sets under different names are the same under these; None where they are no such sets."""
    golds, answers = _named_sets(gold), _named_sets(answer)
    if not golds or not answers:
        return None
    if says_or(gold) != says_or(answer) or sorted(golds) != sorted(answers):
        return False
    return all(same(value, answers[name]) for name, value in golds.items())


def _named_sets(text: str) -> dict[str, str]:
    parts = [part.strip() for part in split(AND_OR.sub(",", text), ",;") if part.strip()]
    named = dict(map(label, parts))
    if len(parts) < 2 or len(named) < len(parts) or "" in named or any("_" in name for name in named):
        return {}
    return named if all(map(_SET.match, named.values())) else {}
