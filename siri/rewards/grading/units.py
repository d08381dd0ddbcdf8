"""Units of measure behind a number: known ones have to agree, and nouns that are none are left out.

A noun says what was counted ("9 values"). Words that say more than that, a second answer or another number ("5 or
more", "5 tenths"), are no nouns, and what holds them is not the number alone.
"""

import re

from siri.rewards.grading.measures import COMPOUNDS, is_symbol, measure, unit_of
from siri.rewards.grading.products import with_product
from siri.rewards.grading.vocabulary import GREEK, PLAIN

# Without \text these are rather products: 2mg, 2ma.
_PRODUCTS = frozenset(
    re.findall(
        r"\w+",
        "ma pa kw kj hz ms nm dm pt qt mg ml um us ug ha ly kb mb gb tb cl dl ns ev sr gw wh mo pc kpc mpc hp dyn",
    )
)
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
        "dont wont arent ish odd fold probably likely presumably apparently arguably supposedly hopefully etc plus "
        "percentage bps invalid nonexistent",
    )
)
# twelfths, billionths: other numbers, whatever their root.
_ORDINAL = re.compile(
    r"(?:eleven|twelf|\w*teen|(?:twen|thir|for|fif|six|seven|eigh|nine)tie|hundred|thousand|\w*illion|dozen)ths?|"
    r"\w*fold"
)
_SHORT_NOUNS = frozenset(("of", "in", "is", "by", "no", "th", "st", "nd", "rd"))
_TEXT_UNIT = re.compile(r"(.*\d.*?)\s*\\text\{([^{}]*)\}\s*(?:\^\s*\{?([23])\}?)?")
_PLAIN_UNIT = re.compile(
    r"(.*(?:[\d})]|\\pi(?=\s)))\s*?(?<=[\d})\s])([a-zA-Z][a-zA-Z.][a-zA-Z. ]*|(?<=\s)[a-zA-Z]{1,6}/[a-zA-Z]{1,6})"
    r"(?:\^\s*\{?([23])\}?)?"
)
_POWER_IN_WORDS = re.compile(r"(.*[a-zA-Z])\s+(squared|cubed)\s*")
_ANGLE = re.compile(r"cis|sin|cos|tan|cot|sec|csc|tg")
_FUNCTION = re.compile(r"sqrt|cbrt|sin|cos|tan|cot|sec|csc|log|exp|arc|abs|theta|alpha|beta|gamma")


def without_unit(text: str) -> tuple[str, tuple | None]:
    """The quantity, and its unit where every word of it is a known measure. Other nouns ("9 values") are dropped."""
    text = text.strip()
    if (product := with_product(text)) and not (product[1] == ("degree",) and _ANGLE.search(product[0])):
        return product
    match = _TEXT_UNIT.fullmatch(text)
    in_text = match is not None
    match = match or _PLAIN_UNIT.fullmatch(text)
    if match is None:
        return text, None
    quantity, words, power = match.groups()
    if words == "degree" and _ANGLE.search(quantity):
        return text, None  # the sine of an angle is not one
    words = words.replace(".", "").replace("/", " per ").replace("\\cdot", " ")
    if said := _POWER_IN_WORDS.fullmatch(words):  # centimeters squared, meters per second squared
        words, power = said[1], {"squared": "2", "cubed": "3"}[said[2]]
    for pattern, unit in COMPOUNDS:
        words = pattern.sub(unit, words)
    words = words.split()
    others = [word for word in words if measure(word) is None]
    if others:
        apart = in_text or match.start(2) > match.end(1)
        dropped = apart and all(_is_a_noun(word, in_text=in_text) for word in others)
        return (quantity, unit_of(words, power)) if dropped else (text, None)
    if not in_text and any(word.casefold() in _PRODUCTS or is_symbol(word) for word in words):
        return text, None
    return quantity, unit_of(words, power) or ((*words, power) if words else None)


def counted(text: str) -> str:
    """The noun or unit behind a number, in the singular: what was counted; "" for none."""
    match = _TEXT_UNIT.fullmatch(text.strip()) or _PLAIN_UNIT.fullmatch(text.strip())
    if match is None or re.search(r"\\text\{(?!degree\})", match[1]):
        return ""
    words = [measure(word) or word.casefold().removesuffix("s") for word in re.findall(r"[a-zA-Z]+", match[2])]
    return " ".join(words) if without_unit(text)[0] != text.strip() else ""


def _is_a_noun(word: str, *, in_text: bool) -> bool:
    r"""Whether a word behind a number only says what was counted. Without \text it has to be one that cannot be a
    product of letters: 2xy is not 2, and neither is "2 abcd"."""
    word = word.lstrip("(").rstrip("),;:!").replace("'", "")
    last = word.rpartition("-")[2].casefold()  # ten-thousands, but two-digit numbers
    if last in _NO_NOUNS or last in GREEK or _ORDINAL.fullmatch(last):
        return False
    word = word.replace("-", "")
    if not word.isalpha() or not word.isascii():
        return False
    if in_text:
        return len(word) > 2 or word.casefold() in _SHORT_NOUNS
    if len(word) < 4 or not word[1:].islower() or word in PLAIN or _FUNCTION.match(word):
        return False
    return bool(re.search("[aeiouy]", word)) and list(word) != sorted(word)
