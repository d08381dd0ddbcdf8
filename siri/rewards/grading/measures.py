"""Units of measure: the names of each, in the singular; units of one name are the same."""

import re

_TABLE = """
millimeter: mm millimetre
centimeter: cm centimetre
meter: m metre
kilometer: km kilometre
inch: in inches
foot: ft feet
yard: yd
mile: mi
second: s sec secs
minute: min mins
hour: h hr hrs
day:
week: wk wks
month: mo mos
year: yr yrs
nanometer: nm nanometre
decimeter: dm decimetre
millisecond: ms
milligram: mg
ton: tonne t
milliliter: ml millilitre
quart: qt
pint: pt
newton: n
joule: j
kilojoule: kj
watt: w
kilowatt: kw
megawatt:
hertz: hz
kilohertz: khz
megahertz: mhz
volt: v
ampere: a amp
milliampere: ma
ohm:
kilohm: kohm kiloohm
megohm: mohm megaohm
pascal: pa
kilopascal: kpa
kelvin: k
celsius: c centigrade
fahrenheit: f
mole: mol
micrometer: um microm micrometre micron
microsecond: us micros
microgram: ug microg
rupee:
yen:
pence:
radian: rad
gram: g
kilogram: kg
ounce: oz
pound: lb
liter: l litre
gallon: gal
acre:
bit:
byte:
kilobyte: kb
megabyte: mb
gigabyte: gb
terabyte: tb
kilobit: kbit
gigabit: gbit
megabit: mbit
kilowatthour: kwh
watthour: wh
megawatthour: mwh
milliwatt:
gigawatt: gw
cup:
teaspoon: tsp
tablespoon: tbsp
fluidounce: floz
deciliter: dl decilitre
centiliter: cl centilitre
hectare: ha
furlong:
lightyear: ly
atmosphere: atm
bar:
psi:
torr: mmhg
erg:
dyne: dyn
horsepower: hp
btu:
parsec: pc
sievert: sv
becquerel: bq
curie:
slug:
poise:
kip:
megapascal: mpa
hectopascal: hpa
decade:
century: centuries
millennium: millennia
fortnight:
nanosecond: ns
calorie: cal
kilocalorie: kcal
electronvolt: ev
coulomb:
farad:
tesla:
weber:
henry: henries
lux: lx
lumen:
candela:
knot:
barrel: bbl
gigawatthour: gwh
terawatthour: twh
gigahertz: ghz
angstrom:
steradian: sr
nickel:
dime:
penny: pennies
yuan: rmb cny
jiao:
fen:
ruble: rouble rubles
peso:
franc:
shilling:
centime:
kopeck: kopek
cent:
dollar: usd
euro: eur
per:
degree: deg
am:
pm:
square: sq
cubic: cu
nautical:
unit:
erg:
dyne: dyn
gauss:
maxwell:
oersted:
siemens:
becquerel:
sievert:
curie:
decibel:
dalton:
horsepower: hp
btu:
parsec: pc
kiloparsec: kpc
megaparsec: mpc
carat:
bushel:
peck:
fathom:
hogshead: hogsheads
league:
chain:
stone:
grain:
slug:
astronomicalunit:
"""
NAMES = {variant: unit for unit, variants in re.findall(r"(\w+):(.*)", _TABLE) for variant in (unit, *variants.split())}
"""Each spelling, in small letters, and the unit."""
# As one word: none of their parts is the unit.
COMPOUNDS = tuple(
    (re.compile(rf"\b{pattern}\b", re.IGNORECASE), unit)
    for pattern, unit in (
        ("light[- ]?years?", "lightyear"),
        (r"(kilo|mega|giga|milli|micro)?[- ]?electron[- ]volts?", r"\1electronvolt"),
        ("astronomical[- ]units?", "astronomicalunit"),
        ("fl(?:uid)?[- ]?(?:ounces?|oz)", "fluidounce"),
        ("kilowatt[- ]?hours?|kw[- ]h", "kilowatthour"),
        ("watt[- ]?hours?", "watthour"),
        ("kbps", "kilobit per second"),
        ("mbps", "megabit per second"),
        ("gbps", "gigabit per second"),
        ("mph", "mile per hour"),
        ("k(?:m|p|mp)h", "kilometer per hour"),
        ("rpm", "revolutions per minute"),
        ("rps", "revolutions per second"),
        ("bpm", "beats per minute"),
        ("cc", "cubic centimeter"),
        ("degrees? (?=celsius|fahrenheit|centigrade|[CF]$)", ""),
    )
)
# Symbols of one or two letters that mean something else in small ones; C and F are degrees, or charge and capacity.
_CAPITALS = {"T": "tesla", "H": "henry", "Wb": "weber", "S": "siemens", "G": "gauss", "lm": "lumen", "C": "C", "F": "F"}
_MEANINGS = {"C": {"celsius", "coulomb"}, "F": {"fahrenheit", "farad"}}
_PREFIXES = {
    "T": "tera",
    "G": "giga",
    "M": "mega",
    "k": "kilo",
    "h": "hecto",
    "d": "deci",
    "c": "centi",
    "m": "milli",
    "u": "micro",
    "n": "nano",
    "p": "pico",
}
_SYMBOLS = {
    "eV": "electronvolt",
    "mol": "mole",
    "bar": "bar",
    "Pa": "pascal",
    "Hz": "hertz",
    "Wh": "watthour",
    "ohm": "ohm",
    "rad": "radian",
    "cal": "calorie",
    "V": "volt",
    "A": "ampere",
    "W": "watt",
    "N": "newton",
    "J": "joule",
    "C": "coulomb",
    "F": "farad",
    "T": "tesla",
    "S": "siemens",
    "K": "kelvin",
    "L": "liter",
    "l": "liter",
    "g": "gram",
    "m": "meter",
    "s": "second",
    "B": "byte",
}
_SYMBOL = re.compile(
    r"([MkGmunp])(eV|mol|bar|Pa|Hz|Wh|ohm|rad|cal|[VAWNJCFTKS])|([Mkmun])([Lgms])|([mu])(l)|([cdh])([Llgm])|(h)(Pa)|"
    r"(T)(eV|Hz|Wh|W|J|B)|([MkG])(B)"
)
_NAME = re.compile(r"(tera|peta|giga|mega|kilo|hecto|de[ck]a|deci|centi|milli|micro|nano|pico|femto)(\w{3,})")
_WITH_A_DEGREE = frozenset(("celsius", "fahrenheit", "C", "F"))
_POWERS = {"square": 2, "cubic": 3}
_BEFORE_A_UNIT = frozenset(("", "per", "square", "cubic", "sq", "cu"))
# Words as well, where others stand beside them.
_WORDS = frozenset(("in", "a", "am", "pm", "are"))


def measure(word: str) -> str | None:
    """The name of a unit in any of its spellings; None for another word."""
    if re.fullmatch("[njwvkcf]", word):  # of one letter, these are written as capitals; small ones are variables
        return None
    if re.fullmatch("[kKMG]b", word):
        return {"k": "kilobit", "m": "megabit", "g": "gigabit"}[word[0].lower()]
    if word in _CAPITALS:
        return _CAPITALS[word]
    if word == "M":  # of molarity, or millions; never a meter
        return None
    if unit := _with_prefix(word):
        return unit
    word = word.casefold()
    return NAMES.get(word, NAMES.get(word.removesuffix("s")))


def _with_prefix(word: str) -> str | None:
    """The unit of a symbol with a prefix, by case (mPa and MPa), or of a name with one; None for whatever else."""
    if match := _SYMBOL.fullmatch(word):
        prefix, symbol = filter(None, match.groups())
        unit = _PREFIXES[prefix] + _SYMBOLS[symbol]
        return NAMES.get(unit, unit)
    match = _NAME.fullmatch(word.casefold())
    if match is None or match[0] in NAMES or match[0].removesuffix("s") in NAMES:
        return None
    unit = NAMES.get(match[2], NAMES.get(match[2].removesuffix("s")))
    return match[1].replace("deka", "deca") + unit if unit else None


def is_symbol(word: str) -> bool:
    r"""Whether it is a symbol with a prefix that is a unit in \text only: elsewhere mV is a product."""
    return bool(_SYMBOL.fullmatch(word)) and word.casefold() not in NAMES


def unit_of(words: list[str], power: str | None) -> tuple[str, ...] | None:
    """The unit that words behind a number say, in one order of its parts; None where no measure is among them. Of
    other words, as in "pages per minute", nothing is kept."""
    measures = [measure(word) for word in words]
    if None in measures:
        behind = ["", *(word.casefold() for word in words)]
        sure = [len(word) > 2 or before in _BEFORE_A_UNIT for word, before in zip(words, behind, strict=False)]
        measures = [
            unit if is_sure and word.casefold() not in _WORDS else None
            for word, unit, is_sure in zip(words, measures, sure, strict=True)
        ]
    exponents: dict[str, int] = {}
    sign, raised, last = 1, 1, ""
    for name in measures:
        if name == "per":
            sign = -1
            exponents.setdefault("per", 0)
        elif name in _POWERS:
            raised = _POWERS[name]
        elif name == "nautical":
            last = "nautical "
        elif name is not None:
            name, last = f"{last}{name}" if last == "nautical " else name, name
            exponents[name] = exponents.get(name, 0) + sign * raised
            raised = 1
    raised = {"2": 2, "3": 3}[power] if power else raised
    if raised > 1 and last in exponents:  # meters squared
        exponents[last] *= raised
    return in_order(exponents) if set(exponents) - {"per"} else None


def in_order(exponents: dict[str, int]) -> tuple[str, ...]:
    """The names of a unit, each as often as its exponent says, and behind "per" those that are divided by."""
    names = sorted(set(exponents) - {"per"})
    over = [name for name in names for _ in range(exponents[name])]
    under = [name for name in names for _ in range(-exponents[name])]
    return (*over, "per", *under) if under else tuple(over)


def same_unit(unit: tuple[str, ...] | None, other: tuple[str, ...] | None) -> bool:
    """Whether two units, the first the gold answer's, do not contradict each other: none says nothing, nor does what is
    left out before "per"."""
    if unit is None or other is None or unit == other:
        return True
    if len(unit) == len(other) and all(
        a == b or a in _MEANINGS.get(b, ()) or b in _MEANINGS.get(a, ()) for a, b in zip(unit, other, strict=True)
    ):
        return True
    if other == ("degree",) and unit[0] in _WITH_A_DEGREE:
        return len(unit) == 1
    if "unit" in unit or "unit" in other:  # square units are some square measure
        powers = [len(names) for names in (unit, other)]
        return 1 in powers or powers[0] == powers[1]
    (over, *under), (other_over, *other_under) = _quotient(unit), _quotient(other)
    return under == other_under != [()] and not (over and other_over)


def _quotient(unit: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    place = unit.index("per") if "per" in unit else len(unit)
    return unit[:place], unit[place + 1 :]
