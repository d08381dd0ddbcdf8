"""Antiderivatives: they differ by a constant, which the constant behind them takes up."""

from siri.rewards.grading.equations import difference
from siri.rewards.grading.grammar import NotRead, Tree, read, symbols
from siri.rewards.grading.names import integrated
from siri.rewards.grading.numbers import Setting, Undecided, Undefined, number
from siri.rewards.grading.structure import split
from siri.rewards.grading.values import at_point, drawn_points, same_value

_BITS = 64


def same_antiderivative(gold: str, answer: str) -> bool:
    """Whether both are functions of one variable with the same constant behind them, and differ by a number, wherever
    they are defined."""
    if gold[-1:] != answer[-1:] or not integrated(gold) or integrated(gold) != integrated(answer):
        return False
    names = [[name.strip() for name in split(text, "=")[:-1]] for text in (gold, answer)]
    if names[0] != names[1]:
        return False  # what stands on the left of one of them is looked at first
    try:
        trees = [read(split(text, "=")[-1].rstrip()[:-1].rstrip(" +")) for text in (gold, answer)]
        if symbols(trees[0]) != symbols(trees[1]):
            return False
        for point in drawn_points(symbols(trees[0])):
            fixed = [at_point(tree, point) for tree in trees]
            if all(map(_is_real, fixed)):
                return same_value(trees[0], ("+", (trees[1], difference(*fixed))))
    except (NotRead, Undefined, Undecided):
        pass
    return False


def _is_real(tree: Tree) -> bool:
    try:
        return number(tree, Setting(), _BITS).imag == 0
    except (Undefined, Undecided):
        return False
