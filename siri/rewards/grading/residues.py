"""Formulas whose values are too large to compute: x^2024 + 1 is 1 + x^2024, whatever x is.

They are compared modulo a prime at a few points, every part that is no sum, product, quotient or power by a whole
number being one more variable. Two that are the same in this way are the same; of others nothing is known. The prime
follows from the two formulas, so that no formula can be written for it.
"""

import hashlib
from dataclasses import dataclass, field
from fractions import Fraction

from siri.rewards.grading.grammar import Tree, parts

_POINTS = 4
_MAX_EXPONENT = 1 << 20


def same_residues(a: Tree, b: Tree) -> bool:
    """Whether two trees have the same parts and are the same as rational functions of these."""
    from sympy import nextprime  # takes its time to import, and is rarely needed

    prime = nextprime((1 << 120) + _digest(repr((a, b))))
    for point in range(_POINTS):
        places = _Place(prime, point), _Place(prime, point)
        try:
            values = [place.residue(tree) for place, tree in zip(places, (a, b), strict=True)]
        except (ZeroDivisionError, ValueError):
            return False
        if values[0] != values[1] or places[0].atoms != places[1].atoms:
            return False
    return True


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:15])


@dataclass
class _Place:
    """A point of the field modulo `prime`."""

    prime: int
    point: int
    atoms: set[str] = field(default_factory=set)
    """The parts that were variables."""

    def residue(self, tree: Tree) -> int:
        kind = tree[0]
        if kind == "num":
            return tree[1].numerator * self.inverse(tree[1].denominator) % self.prime
        if kind == "+":
            return sum(self.residue(part) for part in tree[1]) % self.prime
        if kind == "*":
            value = 1
            for part in tree[1]:
                value = value * self.residue(part) % self.prime
            return value
        if kind == "neg":
            return -self.residue(tree[1]) % self.prime
        if kind == "/":
            return self.residue(tree[1]) * self.inverse(self.residue(tree[2])) % self.prime
        if kind == "^" and (exponent := _whole(tree[2])) is not None:
            return pow(self.residue(tree[1]), exponent, self.prime)
        name = repr(self.shape(tree))
        self.atoms.add(name)
        return _digest(f"{self.point} {name}") % self.prime

    def shape(self, tree: Tree) -> tuple:
        """What makes a variable the same: its kind, and what its parts are as rational functions at this point."""
        names = tuple(part for part in tree if not isinstance(part, tuple))
        inner = _Place(self.prime, self.point)
        return names, tuple(inner.residue(part) for part in parts(tree))

    def inverse(self, value: int) -> int:
        if value % self.prime == 0:
            raise ZeroDivisionError
        return pow(value, -1, self.prime)


def _whole(tree: Tree) -> int | None:
    sign = -1 if tree[0] == "neg" else 1
    tree = tree[1] if tree[0] == "neg" else tree
    whole = tree[0] == "num" and tree[1].denominator == 1 and tree[1] <= _MAX_EXPONENT
    return sign * int(Fraction(tree[1])) if whole else None
