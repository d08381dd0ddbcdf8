"""Lists of values with names: "x = 1, y = 2", "12 boys, 15 girls", A(1,2), several solutions of a system."""

import re

from siri.rewards.grading.structure import bracketed, split

_NAME = re.compile(r"[a-zA-Z](?:_\w)?|\\[a-z]+")
_INDEXED = re.compile(r"\s*([a-zA-Z])_\{?(\d)\}?\s*=([^=]+)")


def named_members(text: str) -> list[str]:
    """`x = 1` and `y = 2` of `(x, y) = (1, 2)`; empty for whatever else."""
    sides = [side for side in map(bracketed, split(text, "=")) if side is not None]
    if text.count("=") != 1 or len(sides) != 2 or sides[0][0] != sides[1][0] or sides[0][0][:2] != ("(", ")"):
        return []
    names, values = sides[0][1], sides[1][1]
    if not all(_NAME.fullmatch(name.strip()) for name in names):
        return []
    return [f"{name.strip()}={value.strip()}" for name, value in zip(names, values, strict=True)]


def chained(text: str) -> list[str]:
    """`x = 1` and `y = 1` of `x = y = 1`; empty for whatever else."""
    *names, value = split(text, "=")
    if len({name.strip() for name in names}) < max(len(names), 2) or _NAME.fullmatch(value.strip()):
        return []
    return [f"{name}={value}" for name in names] if all(_NAME.fullmatch(name.strip()) for name in names) else []


def without_index(parts: list[str], others: list[str]) -> list[str]:
    """`x_1 = 1`, `x_2 = 2` as `x = 1`, `x = 2` where the others say x: solutions of one equation in any order."""
    indexed = [match.groups() for part in parts if (match := _INDEXED.fullmatch(part))]
    letters, indices = {letter for letter, _, _ in indexed}, {index for _, index, _ in indexed}
    if len(indices) < max(len(parts), 2) or len(letters) > 1:
        return parts
    [letter] = letters
    plain = all(re.fullmatch(rf"\s*{letter}\s*=[^=]+", other) for other in others)
    return [f"{letter}={value}" for _, _, value in indexed] if plain else parts


def named_values(parts: list[str]) -> list[str]:
    """The values of `x = 1`, `y = 2` in the order of their names; empty if the parts are not all like that."""
    pairs = [pair for part in parts if (pair := re.fullmatch(rf"\s*({_NAME.pattern})\s*=([^=]+)", part))]
    if len({pair[1] for pair in pairs}) < len(parts):
        return []
    return [pair[2] for pair in sorted(pairs, key=lambda pair: pair[1].strip("\\"))]
