"""What an equation says: a value by its name, or something to be solved."""

import re

from siri.rewards.grading.grammar import NotRead, read, symbols
from siri.rewards.grading.numbers import Setting, Undecided, Undefined, number
from siri.rewards.grading.values import rational, same_value

# What is between equals signs and is more than a name: operations, a logarithm, the amount of one unknown.
_TO_BE_SOLVED = re.compile(
    r"[-+*/^\d!%]|\\(?:sqrt|cdot|times|pm|l?dots|ln|lg|log|exp|[lr]floor|[lr]ceil|binom)(?![a-zA-Z])|"
    r"\b(?:ln|lg|log|exp)\b|^\|\s*[a-vxy]\s*\|$|\\lvert\s*[a-vxy]\s*\\rvert"
)
_ROUNDING = 0.02
_BITS = 64


def names_a_value(sides: list[str], *, as_answer: bool) -> bool:
    r"""Whether an equation only says what its right side is: `x = 5` is 5, and so is `f(2) = 5`; `1/2 = 0.5` is 0.5.

    As an answer, `a + b = 17` is 17, too: two unknowns say nothing else than what the question asked for. `2x = 17`,
    `\ln x = 17` and `|x| = 17` are equations to be solved, `x + y = 0` is the equation of a line, and a gold answer of
    that kind wants the equation. Of `x = 6 = 5` nobody knows what it says.
    """
    name = re.sub(r"_(?:\w|\{[^{}]*\})|'|\^\{?\\prime\}?", "", sides[0]).strip()
    name = re.sub(r"^([a-zA-Z])\s*(?:\^\{-1\}\s*)?\([^()]*\)$", r"\1", name)
    if not _TO_BE_SOLVED.search(name):
        return _close_together(sides[1:])
    plain = re.sub(r"\\[a-zA-Z]+|(?<![a-zA-Z])(?:ln|lg|log|exp|e)(?![a-zA-Z])", "", name)
    letters = set(re.findall(r"[a-zA-Z]", re.sub(r"[a-zA-Z]\s*\([^()]*\)", "f", plain)))
    if not letters:
        return _both_closed_and_equal(sides)
    if not as_answer or len(letters) < 2:
        return False
    try:
        return rational(read(sides[-1])) != 0 and not symbols(read(sides[-1])) and _close_together(sides[1:])
    except NotRead:
        return False


def _close_together(sides: list[str]) -> bool:
    """Whether the numbers in a chain of equations are one, but for rounding."""
    values = []
    for side in sides[:-1] and sides:
        try:
            tree = read(side)
            value = rational(tree)
            values += [] if symbols(tree) else [number(tree, Setting(), _BITS) if value is None else value]
        except (NotRead, Undefined, Undecided):
            pass
    try:
        numbers = [complex(value) for value in values]
    except OverflowError:
        return False
    return all(abs(value - numbers[-1]) <= _ROUNDING * abs(numbers[-1]) for value in numbers)


def _both_closed_and_equal(sides: list[str]) -> bool:
    """1/2 = 0.5 is a value, 2 + 2 = 5 is none. What is not read is let through, as it always was."""
    try:
        trees = [read(re.sub(r"\\text\{[^{}]*\}", "", side)) for side in sides]
    except NotRead:
        return True
    return all(same_value(trees[0], tree) for tree in trees[1:])
