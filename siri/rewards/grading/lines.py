"""Lines and curves beside one another: x - 2 = 0 beside another line, all of several, the product of their
equations."""

import re

from siri.rewards.grading.equations import difference
from siri.rewards.grading.grammar import NotRead, read, symbols
from siri.rewards.grading.joins import AND_OR, JUST_OR
from siri.rewards.grading.names import letters_of
from siri.rewards.grading.structure import split
from siri.rewards.grading.values import same_zeros

_BETWEEN = re.compile(rf"({AND_OR.pattern}|[,;])")
_VERTICAL = re.compile(r"\s*([xy])\s*([-+])\s*([^-+=<>]+?)\s*=\s*0\s*")
_MOST_LINES = 8


def with_lines(text: str) -> str:
    """`text` with x = 2 for x - 2 = 0 where that stands beside a line, or another curve, in x and y: there it is the
    equation of a line, and alone, or in a system, it is to be solved. So it is where "or" joins lines in x and in y."""
    if text.count("=") < 2 or not re.search(r"[xy]\s*[-+][^=]*=\s*0(?![\d.])", text):
        return text
    parts = _BETWEEN.split(text)
    equations = parts[::2]
    if not 2 <= len(equations) <= _MOST_LINES or any(part.count("=") != 1 for part in equations):
        return text
    letters = [letters_of(part) & {"x", "y"} for part in equations]
    joined = all("or" in between.casefold() for between in parts[1::2])
    if not any(len(each) == 2 for each in letters) and not (joined and set().union(*letters) == {"x", "y"}):
        return text
    return "".join(part if place % 2 else _solved(part) for place, part in enumerate(parts))


def _solved(equation: str) -> str:
    match = _VERTICAL.fullmatch(equation)
    if match is None:
        return equation
    try:
        if symbols(read(match[3])):
            return equation
    except NotRead:
        return equation
    return f" {match[1]}={'-' if match[2] == '+' else ''}{match[3]} "


def same_union(gold: str, answer: str) -> bool | None:
    """Curves joined by "or" and the product of their equations; None for whatever else."""
    if "or" not in gold + answer:
        return None
    parts = [[split(part, "=") for part in JUST_OR.split(text) if part.strip(" ,")] for text in (gold, answer)]
    if min(map(len, parts)) != 1 or max(map(len, parts)) < 2 or any(len(sides) != 2 for sides in parts[0] + parts[1]):
        return None
    try:
        trees = [[difference(*map(read, sides)) for sides in each] for each in parts]
    except NotRead:
        return None
    products = [("*", tuple(each)) if len(each) > 1 else each[0] for each in trees]
    return len(symbols(products[0])) > 1 and same_zeros(*products)
