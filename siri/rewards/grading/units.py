"""Units of measure behind a number: known ones have to agree, and nouns that are none are left out."""

import re

_UNITS = {
    variant: unit
    for unit, variants in {
        "millimeter": "mm millimetre",
        "centimeter": "cm centimetre",
        "meter": "m metre",
        "kilometer": "km kilometre",
        "inch": "in inches",
        "foot": "ft feet",
        "yard": "yd",
        "mile": "mi",
        "second": "s sec",
        "minute": "min",
        "hour": "h hr",
        "day": "",
        "week": "",
        "month": "",
        "year": "yr",
        "nanometer": "nm nanometre",
        "decimeter": "dm decimetre",
        "millisecond": "ms",
        "milligram": "mg",
        "ton": "tonne",
        "milliliter": "ml millilitre",
        "quart": "qt",
        "pint": "pt",
        "newton": "n",
        "joule": "j",
        "kilojoule": "kj",
        "watt": "w",
        "kilowatt": "kw",
        "megawatt": "",
        "hertz": "hz",
        "kilohertz": "khz",
        "megahertz": "mhz",
        "volt": "v",
        "ampere": "a amp",
        "milliampere": "ma",
        "ohm": "",
        "pascal": "pa",
        "kilopascal": "kpa",
        "kelvin": "k",
        "celsius": "c",
        "fahrenheit": "f",
        "mole": "mol",
        "rupee": "",
        "pence": "",
        "radian": "rad",
        "gram": "g",
        "kilogram": "kg",
        "ounce": "oz",
        "pound": "lb",
        "liter": "l litre",
        "gallon": "gal",
        "acre": "",
        "cent": "",
        "dollar": "usd",
        "euro": "",
        "per": "",
        "degree": "",
        "am": "",
        "pm": "",
        "square": "sq",
        "cubic": "cu",
    }.items()
    for variant in (unit, *variants.split())
}

# Without \text these are rather products: 2mg, 2ma.
_PRODUCTS = frozenset(("ma", "pa", "kw", "kj", "hz", "ms", "nm", "dm", "pt", "qt", "mg", "ml"))
_TEXT_UNIT = re.compile(r"(.*\d.*?)\s*\\text\{([^{}]*)\}\s*(?:\^\s*\{?([23])\}?)?")
_PLAIN_UNIT = re.compile(r"(.*[\d})])\s*?(?<=[\d})\s])([a-zA-Z][a-zA-Z.][a-zA-Z. ]*)(?:\^\s*\{?([23])\}?)?")
_ANGLE = re.compile(r"sin|cos|tan|cot|sec|csc|tg")


def without_unit(text: str) -> tuple[str, tuple | None]:
    """The quantity, and its unit where every word of it is a known measure. Unknown nouns ("9 values") are dropped."""
    text = text.strip()
    match = _TEXT_UNIT.fullmatch(text)
    known_only = match is None
    match = match or _PLAIN_UNIT.fullmatch(text)
    if match is None:
        return text, None
    quantity, words, power = match.groups()
    if words == "degree" and _ANGLE.search(quantity):
        return text, None  # the sine of an angle is not one
    words = re.sub(r"\bmph\b", "mile per hour", words.replace(".", "").casefold().replace("/", " per ")).split()
    measures = [_UNITS.get(word, _UNITS.get(word.removesuffix("s"))) for word in words]
    unit = [measure for measure in measures if measure is not None]
    unit += [{"2": "square", "3": "cubic"}[power]] if power else []
    if None in measures or (known_only and any(word in _PRODUCTS for word in words)):
        # without \text, letters after a number are a unit only if we know it (and single ones never): 2xy is not 2
        return (text, None) if known_only else (quantity, None)
    place = unit.index("per") if "per" in unit else len(unit)
    return quantity, (*sorted(unit[:place]), *unit[place : place + 1], *sorted(unit[place + 1 :]))
