"""Equations as curves, and what stands on their left: functions, events, derivatives."""

import re
from fractions import Fraction

from siri.rewards.grading.derivatives import QUOTIENT
from siri.rewards.grading.grammar import NotRead, Tree, read, symbols
from siri.rewards.grading.polynomials import Polynomial, common_divisor, polynomial
from siri.rewards.grading.structure import RELATION, enclosed, split, squeezed
from siri.rewards.grading.values import drawn_points, rational, same_value, same_zeros

_APPLIED = re.compile(
    r"\s*((?:[a-zA-Z]|\\?Pr)(?:_\{?\w+\}?)?'*(?:\^\{?-1\}?)?)\s*(?=[(\[])[(\[](.*)[)\]]\s*", re.DOTALL
)
_RISING = {">": "<", "\\ge ": "\\le "}
# Of the other variables, where polynomials in one of them are compared: no roots of what anybody writes.
_VALUES = ((1009, 97), (1013, 89), (1019, 83), (1021, 79))


def applied(side: str) -> tuple[str, str] | None:
    """The name of a function and what it is applied to, of `f(2)`, `P(X = 1)`, `f^{-1}(x)`; None for whatever else."""
    match = _APPLIED.fullmatch(side)
    return (squeezed(match[1]), match[2]) if match and enclosed(match[0][match.end(1) :].strip()) else None


def difference(left: Tree, right: Tree) -> Tree:
    return ("+", (left, ("neg", right)))


def is_solved(left: Tree, right: Tree) -> bool:
    """Whether an equation or inequality of one unknown says what it is: x = 2, but not 2x = 4 or x = 4 - x."""
    name = next((side for side in (left, right) if side[0] == "sym"), None)
    return (
        name is not None and {*symbols(left), *symbols(right)} == {name[1]} and not (symbols(left) and symbols(right))
    )


def same_sides(gold: list[Tree], answer: list[Tree]) -> bool:
    """Whether two equations have the same sides, in either order."""
    return any(all(map(same_value, gold, sides)) for sides in (answer, answer[::-1]))


def same_inequality(gold: str, answer: str) -> bool:
    """Whether two inequalities say the same; one that is to be solved is not its solution."""
    try:
        (sign, *sides), (other_sign, *others) = _ascending(gold), _ascending(answer)
    except NotRead:
        return False
    if sign != other_sign or is_solved(*sides) > is_solved(*others):
        return False
    if all(map(same_value, sides, others)):
        return True
    return same_zeros(difference(*sides), difference(*others), signed=sign != "\\ne ")


def _ascending(text: str) -> tuple[str, Tree, Tree]:
    """An inequality as its sign and its sides, the smaller one first."""
    sides, signs = RELATION.split(text), RELATION.findall(text)
    if len(signs) != 1:
        raise NotRead("no sign, or more than one")
    left, right = map(read, sides)
    return (_RISING[signs[0]], right, left) if signs[0] in _RISING else (signs[0], left, right)


def same_curves(gold: Tree, answer: Tree) -> bool:
    """Whether gold = 0 and answer = 0 are one equation, also when both are multiplied by their denominators: xy = 6 is
    y = 6/x. Of one unknown such an equation would be another one, and y/x = 1 lacks a point of y = x."""
    if same_zeros(gold, answer):
        return True
    (over, under), (other_over, other_under) = _fraction(gold), _fraction(answer)
    if len(symbols(gold)) < 2 or not (symbols(under) or symbols(other_under)):
        return False
    if not same_zeros(over, other_over) or any(_meets(other_over, part) for part in _factors(other_under)):
        return False
    if symbols(under) and ("num", Fraction(0)) in (gold[1][0], gold[1][1][1]):
        return False  # xy/(x + y) = 0 has no origin
    return all(not _meets(over, part) or _has_no_divisor(over, part) for part in _factors(under))


def _has_no_divisor(tree: Tree, factor: Tree) -> bool:
    """Whether a polynomial is without common divisors with a factor of the denominator, which multiplying would make
    another line: x^2 - y^2 = 2(x - y) holds for x = y, too. False where they are no polynomials."""
    for name in symbols(factor):
        point = {
            other: Fraction(*pair) for other, pair in zip(sorted({*symbols(tree)} - {name}), _VALUES, strict=False)
        }
        if len(point) < len({*symbols(tree)} - {name}):
            return False
        over, under = (_along(part, name, point) for part in (tree, factor))
        if not over or not under or len(common_divisor(over, under)) > 1:
            return False
    return True


def _along(tree: Tree, name: str, point: dict[str, Fraction]) -> Polynomial | None:
    return polynomial(lambda value: rational(tree, point | {name: value}))


def _factors(tree: Tree) -> list[Tree]:
    """The factors of a product that have variables."""
    if tree[0] == "*":
        return [factor for part in tree[1] for factor in _factors(part)]
    return [tree] if symbols(tree) else []


def _meets(tree: Tree, factor: Tree) -> bool:
    """Whether `tree` may be zero where this factor is: whether it is no number there but zero."""
    rest = _without(tree, factor)
    values = {rational(rest, point) for point in drawn_points(symbols(rest))}
    return len(values) != 1 or not values - {None, Fraction(0)}


def _without(tree: Tree, factor: Tree) -> Tree:
    """`tree` with zero for a part of it."""
    if tree == factor:
        return ("num", Fraction(0))
    return tuple(
        _without(part, factor)
        if isinstance(part, tuple) and part and isinstance(part[0], str)
        else tuple(_without(inner, factor) for inner in part)
        if isinstance(part, tuple)
        else part
        for part in tree
    )


def _fraction(tree: Tree) -> tuple[Tree, Tree]:
    """A value as one fraction, as far as it is made of sums, products and quotients."""
    kind = tree[0]
    if kind == "neg":
        over, under = _fraction(tree[1])
        return ("neg", over), under
    if kind == "/":
        (a, b), (c, d) = map(_fraction, tree[1:])
        return ("*", (a, d)), ("*", (b, c))
    if kind in ("+", "*"):
        fractions = [_fraction(part) for part in tree[1]]
        unders = [under for _, under in fractions]
        if kind == "*":
            return ("*", tuple(over for over, _ in fractions)), ("*", tuple(unders))
        others = [tuple(unders[:place] + unders[place + 1 :]) for place in range(len(unders))]
        terms = (("*", (over, *rest)) for (over, _), rest in zip(fractions, others, strict=True))
        return ("+", tuple(terms)), ("*", tuple(unders))
    return tree, ("num", Fraction(1))


def event(text: str) -> list[str] | None:
    """`P(X < 3)` and `1/2` of `P(X < 3) = 1/2`; None for whatever else."""
    sides = split(text, "=")
    if len(sides) != 2 or not RELATION.search(sides[0]) or RELATION.search(sides[1]):
        return None
    return sides if applied(sides[0]) else None


def is_graph(name: str, other: str) -> bool:
    """Whether one is y and the other a function of x: both say what is drawn over x; or x(t) and x."""
    if "y" in (name, other) and re.fullmatch(r"[fghy]\(x\)", other if name == "y" else name):
        return True
    short, long = sorted((name, other), key=len)
    return bool(re.fullmatch(r"[a-zA-Z]\([txnsuz]\)", long)) and long[0] == short


def is_derivative(side: str) -> bool:
    """Whether it is a derivative such as dy/dx: dx/dy is not the same, and no quotient either."""
    return bool(re.fullmatch(rf"\s*(?:{QUOTIENT}|d\s*[a-zA-Z]\s*/\s*d\s*[a-zA-Z]|[a-zA-Z]\s*'+)\s*", side))
