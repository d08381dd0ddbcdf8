r"""Products and quotients of units in any usual spelling: kg m^2/s, kg\cdot m^2 s^{-1}, J/(kg K), newton meters, Nm.

They are brought to the names of units with their exponents, and nothing is converted: a newton meter is no joule. What
stands behind a stroke is divided by, as far as the next one: W/m K is W/(m K), as everybody writes it.
"""

import re
from collections.abc import Iterable

from siri.rewards.grading.measures import COMPOUNDS, in_order, measure

_FIRST = re.compile(r"\\frac\s*\{\s*(?=\\text\{(?!degree\}))|\\text\{(?!degree\})")
_FRACTION = re.compile(r"\\frac\s*\{(?P<over>.*\\text\{.*)\}\s*\{(?P<under>.*\\text\{.*)\}")
# Without \text the first of several has to be a symbol that is no variable, behind a space.
_PLAIN = re.compile(
    r"(?P<number>.*(?:[\d)}]|\\pi))\s+(?P<unit>(?:kg|cm|mm|km|mol|[kM]?Pa|[kM]?Hz|eV|[kM]?[NJWV]|mg|ft|lb)(?![a-zA-Z])"
    r"(?:[\sa-zA-Z/()*^{}\d-]|\\cdot(?![a-zA-Z]))*)"
)
_EXPONENT = re.compile(r"\^\s*(?:\{\s*([-+]?\d)\s*\}|([-+]?\d))")
_TOKEN = re.compile(r"\s*(?:(?P<word>[a-zA-Z\u00c5]+)|\^(?P<power>[-+]?\d)|(?P<sign>[*/()]))")
# Two symbols without a space between them, by case: Nm is no nm.
_TOGETHER = re.compile(r"(kN|N|J|V|Pa|mA|A|W|kW|C)(cm|m|s|h|A)")
_NEVER_TOGETHER = frozenset(("Wh", "kWh", "As", "Am", "Cs", "Ch", "CA", "Nh", "NA"))
_MOST_TOKENS = 40
_WRITTEN = re.compile(r"[a-zA-Z]+-[a-zA-Z]+")

Exponents = dict[str, int]


def is_product(word: str) -> bool:
    """Whether it is two symbols of units in one word: Nm, but not nm."""
    return word not in _NEVER_TOGETHER and bool(_TOGETHER.fullmatch(word))


def with_product(text: str) -> tuple[str, tuple[str, ...]] | None:
    """A quantity and its unit, where that is made of several or has an exponent; None for whatever else."""
    if "\\text{" in text:
        first = _FIRST.search(text)
        if first is None:
            return None
        number, unit = text[: first.start()].rstrip(), text[first.start() :]
        number = re.sub(r"\s*(?:\\cdot|\*)$", "", number)
    elif match := _PLAIN.fullmatch(text):
        number, unit = match["number"], match["unit"]
        if not re.search(r"[ /*^]|\\cdot", unit.strip()) and not is_product(unit.strip()):
            return None
    else:
        return None
    if not re.search(r"\d|\\pi", number):
        return None
    exponents = _exponents(unit)
    return None if not exponents else (number, in_order(exponents))


def _exponents(unit: str) -> Exponents | None:
    """What each unit is raised to; None where something else stands there."""
    if fraction := _FRACTION.fullmatch(unit.strip()):
        over, under = _exponents(fraction["over"]), _exponents(fraction["under"])
        return None if over is None or under is None else _multiplied(over, under, -1)
    unit = re.sub(r"\\text\{((?:[^{}]|\{[^{}]*\})*)\}", r" \1 ", unit).replace("\\cdot", "*").replace("\\%", "%")
    unit = _EXPONENT.sub(lambda match: f"^{match[1] or match[2]}", unit).replace("\\", " ")
    for pattern, name in COMPOUNDS:
        unit = pattern.sub(name, unit)
    unit = _WRITTEN.sub(lambda match: match[0].replace("-", "*"), unit)
    tokens: list[tuple[str, str]] = []
    place = 0
    while unit[place:].strip():
        token = _TOKEN.match(unit, place)
        if token is None or len(tokens) > _MOST_TOKENS:
            return None
        kind = token.lastgroup or ""
        tokens.append((kind, token[kind]))
        place = token.end()
    exponents, rest = _read(tokens)
    return exponents if not rest else None


def _read(tokens: list[tuple[str, str]]) -> tuple[Exponents | None, list[tuple[str, str]]]:
    """The exponents up to a closing bracket, and the tokens from there on."""
    total: Exponents = {}
    sign, power, last = 1, 1, None
    while tokens and tokens[0] != ("sign", ")"):
        (kind, text), *tokens = tokens
        if text == "(":
            inner, tokens = _read(tokens)
            if inner is None or not tokens:
                return None, tokens
            tokens, factor = tokens[1:], inner
        elif text in ("/", "per"):
            sign, last = -1, None
            continue
        elif text == "*":
            continue
        elif kind == "power" or text in ("squared", "cubed"):
            if last is None:
                return None, tokens
            total = _multiplied(total, last, sign * ({"squared": 2, "cubed": 3}.get(text) or int(text)) - sign)
            last = None
            continue
        elif text in ("square", "cubic", "sq", "cu"):
            power = 2 if text.startswith("sq") else 3
            continue
        elif (names := _units(text)) is None:
            return None, tokens
        else:
            factor = dict.fromkeys(names, power)
        last = factor if power == 1 and len(factor) == 1 else None
        total, power = _multiplied(total, factor, sign), 1
        if len(factor) > 1 and text != "(":
            last = {list(factor)[-1]: 1}  # of Nm^2 the last
    return (total if power == 1 else None), tokens


def _units(word: str) -> Iterable[str] | None:
    if is_product(word):
        match = _TOGETHER.fullmatch(word)
        names = [measure(symbol) for symbol in match.groups()] if match else []
    else:
        names = [measure(word)]
    known = [name for name in names if name is not None]
    return known if len(known) == len(names) and not {"square", "cubic", "per", "am", "pm"} & set(known) else None


def _multiplied(exponents: Exponents, other: Exponents, power: int) -> Exponents:
    total = dict(exponents)
    for name, exponent in other.items():
        total[name] = total.get(name, 0) + power * exponent
    return {name: exponent for name, exponent in total.items() if exponent}
