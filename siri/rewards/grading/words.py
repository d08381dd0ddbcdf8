r"""What answers say in words and in layout: "2.5 million", "twelve", "The answer is 5", formulas in rows."""

import re
from decimal import Decimal

from siri.data.decimals import plain

# Formulas in rows, of which none is a matrix: what they hold is a list.
_ROWS = re.compile(
    r"(?:\\left\s*\\\{\s*)?\\begin\s*\{(?P<kind>aligned|align\*?|equation\*?|gathered|gather\*?|split|center|cases)\}"
    r"(?P<rows>.*?)\\end\s*\{(?P=kind)\}(?:\s*\\right\s*\.)?",
    re.DOTALL,
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALED = re.compile(rf"(?<![\w.,])(\d+(?:,\d{{3}})*(?:\.\d+)?)\s*(\\text\{{\s*)?({'|'.join(_SCALES)})\b\s*")
_DIGIT_WORDS = "one two three four five six seven eight nine".split()  # noqa: SIM905
_NUMBER_WORDS = {
    word: value
    for value, word in enumerate(
        [
            "zero",
            *_DIGIT_WORDS,
            *[
                "ten",
                "eleven",
                "twelve",
                "thirteen",
                "fourteen",
                "fifteen",
                "sixteen",
                "seventeen",
                "eighteen",
                "nineteen",
            ],
        ]
    )
}
_NUMBER_WORDS |= {
    ten if digit == 0 else f"{ten}-{_DIGIT_WORDS[digit - 1]}": 10 * place + digit
    for place, ten in enumerate(["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], 2)
    for digit in range(10)
}
_NUMBER_WORDS |= {"one half": "1/2", "one-half": "1/2", "one third": "1/3", "one-third": "1/3", "infinity": "\\infty "}
_NUMBER_WORDS |= {"negative infinity": "-\\infty "}
_PHRASE = re.compile(
    r"^\s*(\\text\{\s*)?(?:(?:so|thus|hence|therefore),?\s+)?(?:the\s+)?(?:(?:final|correct)\s+)?answer\s*(?:is\s*:?|:|=)\s*"
    r"(?:(?<=\s)|(?<=[:=])|(?=\}))(?(1)(\}?))",
    re.IGNORECASE,
)


def without_words(text: str) -> str:
    """`text` with numbers for words, and without an announcement and rows of formulas."""
    if "\\begin" in text:
        text = _ROWS.sub(_listed, text)
    if "nswer" in text or "NSWER" in text:
        text = _PHRASE.sub(lambda match: "" if not match[1] or match[2] else match[1], text, count=1)
    if "illion" in text or "hundred" in text or "thousand" in text:
        text = _SCALED.sub(_scaled, text)
    inner = re.fullmatch(r"\s*(?:\\text\{\s*)?([a-zA-Z]+(?:[- ][a-z]+)?)\s*\.?\s*\}?\s*", text)
    if inner and (number := _NUMBER_WORDS.get(inner[1].lower(), _NUMBER_WORDS.get(inner[1].lower().replace(" ", "-")))):
        return str(number)
    return text


def _listed(match: re.Match) -> str:
    """Rows with commas for the ends of lines. A function given by cases is left alone."""
    rows = [row.strip(" ,;\n") for row in re.split(r"\\\\(?:\[[^\[\]]*\])?", match["rows"]) if row.strip()]
    if match["kind"] == "cases":
        solutions = all(re.fullmatch(r"\s*[a-zA-Z](?:_\w)?\s*&?\s*=[^&=,]*", row) for row in rows)
        return ", ".join(row.replace("&", "") for row in rows) if solutions else match[0]
    return ", ".join(row.replace("&", "") for row in rows)


def _scaled(match: re.Match) -> str:
    number, opened, scale = match.groups()
    value = Decimal(number.replace(",", "")).scaleb(_SCALES[scale])
    return plain(value) + (opened or "")
