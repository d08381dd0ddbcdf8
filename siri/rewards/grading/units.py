"""Units of measure behind a number: known ones have to agree, and nouns that are none are left out.

A noun says what was counted ("9 values"). Words that say more than that, a second answer or another number ("5 or
more", "5 tenths"), are no nouns, and what holds them is not the number alone.
"""

import re

from siri.rewards.grading.vocabulary import PLAIN

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
        "kilohm": "kohm kiloohm",
        "megohm": "mohm megaohm",
        "pascal": "pa",
        "kilopascal": "kpa",
        "kelvin": "k",
        "celsius": "c",
        "fahrenheit": "f",
        "mole": "mol",
        "micrometer": "um microm micrometre micron",
        "microsecond": "us micros",
        "microgram": "ug microg",
        "rupee": "",
        "yen": "",
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
_PRODUCTS = frozenset(("ma", "pa", "kw", "kj", "hz", "ms", "nm", "dm", "pt", "qt", "mg", "ml", "um", "us", "ug"))
# Of one letter, these are written as capitals; small ones are variables.
_CAPITALS = frozenset("njwvkcf")
_NO_NOUNS = frozenset(
    re.findall(
        r"\w+",
        "or and nor not but plus minus than least most to half halves over under squared cubed factorial mod "
        "modulo pi third thirds fourth fourths fifth fifths sixth sixths seventh sevenths eighth eighths "
        "ninth ninths tenth tenths hundred hundreds thousand thousands million millions billion billions "
        "trillion trillions dozen dozens hundredth hundredths thousandth thousandths millionth millionths if "
        "otherwise unless except maybe perhaps possibly base approximately about between divided multiplied "
        "power choose infinity negative false wrong incorrect one two three four five six seven eight nine "
        "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty "
        "sixty seventy eighty ninety zero lakh lakhs crore crores quadrillion quintillion gross score scores kilo "
        "mega giga milli micro nano double doubled twice triple tripled thrice times root roots inverse reciprocal "
        "reciprocals binary octal hexadecimal decimal more less fewer above below beyond rejected extraneous "
        "impossible excluded unknown undefined none never without larger greater smaller bigger lower higher "
        "repeating recurring halved prime conjugate inverted negated opposite "
        # other numbers
        "tens sextillion septillion octillion zillion myriad myriads googol grand mil mill mille permille ppm ppb "
        "basis percent hecto deca deci centi tera pico quadruple quadrupled quintuple quintupled factorials primorial "
        "imaginary conjugates permute ncr npr halfway reversed backwards hex "
        # no number, or not this one
        "approx roughly around nearly almost circa upward upwards onward onwards downward downwards exclusive through "
        "thru till until versus vs into against else elsewhere another fail fails failed cannot too isnt doesnt cant "
        "dont wont arent",
    )
)
_SHORT_NOUNS = frozenset(("of", "in", "is", "by", "no", "th", "st", "nd", "rd"))
_TEXT_UNIT = re.compile(r"(.*\d.*?)\s*\\text\{([^{}]*)\}\s*(?:\^\s*\{?([23])\}?)?")
_PLAIN_UNIT = re.compile(
    r"(.*[\d})])\s*?(?<=[\d})\s])([a-zA-Z][a-zA-Z.][a-zA-Z. ]*|(?<=\s)[a-zA-Z]{1,6}/[a-zA-Z]{1,6})"
    r"(?:\^\s*\{?([23])\}?)?"
)
_ANGLE = re.compile(r"cis|sin|cos|tan|cot|sec|csc|tg")
_FUNCTION = re.compile(r"sqrt|cbrt|sin|cos|tan|cot|sec|csc|log|exp|arc|abs|theta|alpha|beta|gamma")
_CURRENCIES = {
    currency: re.compile(pattern, re.IGNORECASE)
    for currency, pattern in (
        ("dollar", r"\\\$|\\textdollar|\bdollars?\b|\bUSD\b"),
        ("cent", r"\d\s*(?:\\\w+\{)?\s*(?:cents?\b|¢)"),
        ("euro", r"€|\beuros?\b|\bEUR\b"),
        ("pound", r"£|\bpounds?\b|\bGBP\b"),
        ("yen", r"[¥￥]|\byen\b|\byuan\b"),
        ("rupee", r"₹|\brupees?\b|\bINR\b"),
    )
}


def currencies(text: str) -> set[str]:
    """The currencies that `text`, as it was written, names by sign or word."""
    return {currency for currency, pattern in _CURRENCIES.items() if pattern.search(text)}


def without_unit(text: str) -> tuple[str, tuple | None]:
    """The quantity, and its unit where every word of it is a known measure. Other nouns ("9 values") are dropped."""
    text = text.strip()
    match = _TEXT_UNIT.fullmatch(text)
    in_text = match is not None
    match = match or _PLAIN_UNIT.fullmatch(text)
    if match is None:
        return text, None
    quantity, words, power = match.groups()
    if words == "degree" and _ANGLE.search(quantity):
        return text, None  # the sine of an angle is not one
    words = words.replace(".", "").replace("/", " per ")
    for short, unit in (("mph", "mile"), ("k(?:m|p|mp)h", "kilometer")):
        words = re.sub(rf"\b{short}\b", f"{unit} per hour", words)
    words = words.split()
    measures = [measure(word) for word in words]
    unit = [measure for measure in measures if measure is not None]
    unit += [{"2": "square", "3": "cubic"}[power]] if power else []
    others = [word for word, measure in zip(words, measures, strict=True) if measure is None]
    if others:
        apart = in_text or match.start(2) > match.end(1)
        dropped = apart and all(_is_a_noun(word, in_text=in_text) for word in others)
        return (quantity, None) if dropped else (text, None)
    if not in_text and any(word.casefold() in _PRODUCTS for word in words):
        return text, None
    place = unit.index("per") if "per" in unit else len(unit)
    return quantity, (*sorted(unit[:place]), *unit[place : place + 1], *sorted(unit[place + 1 :]))


def counted(text: str) -> str:
    """The noun or unit behind a number, in the singular: what was counted; "" for none."""
    match = _TEXT_UNIT.fullmatch(text.strip()) or _PLAIN_UNIT.fullmatch(text.strip())
    if match is None or re.search(r"\\text\{(?!degree\})", match[1]):
        return ""
    words = [measure(word) or word.casefold().removesuffix("s") for word in re.findall(r"[a-zA-Z]+", match[2])]
    return " ".join(words) if without_unit(text)[0] != text.strip() else ""


def measure(word: str) -> str | None:
    """The name of a unit in any of its spellings; None for another word."""
    if word in _CAPITALS:
        return None
    word = word.casefold()
    return _UNITS.get(word, _UNITS.get(word.removesuffix("s")))


def _is_a_noun(word: str, *, in_text: bool) -> bool:
    r"""Whether a word behind a number only says what was counted. Without \text it has to be one that cannot be a
    product of letters: 2xy is not 2, and neither is "2 abcd"."""
    word = word.lstrip("(").rstrip("),;:!").replace("'", "")
    if word.rpartition("-")[2].casefold() in _NO_NOUNS:  # ten-thousands, but two-digit numbers
        return False
    word = word.replace("-", "")
    if not word.isalpha() or not word.isascii():
        return False
    if in_text:
        return len(word) > 2 or word.casefold() in _SHORT_NOUNS
    if len(word) < 4 or not word[1:].islower() or word in PLAIN or _FUNCTION.match(word):
        return False
    return bool(re.search("[aeiouy]", word)) and list(word) != sorted(word)
