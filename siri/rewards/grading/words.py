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
# One brace before an array is what cases are.
_BRACED = re.compile(
    r"\\left\s*\\\{\s*\\begin\s*\{(?P<kind>array|matrix)\}(?:\s*\{[lcr|\s]*\})?(?P<rows>.*?)\\end\s*\{(?P=kind)\}"
    r"\s*\\right\s*\.",
    re.DOTALL,
)
# A system without a brace: each row is an equation.
_ARRAY = re.compile(r"\s*\\begin\s*\{array\}(?:\s*\{[lcr|\s]*\})?(.*?)\\end\s*\{array\}\s*", re.DOTALL)
_BREAK = re.compile(r"\\\\(?:\[[^\[\]]*\])?")
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALED = re.compile(rf"(?<![\w.,])(\d+(?:,\d{{3}})*(?:\.\d+)?)\s*(\\text\{{\s*)?({'|'.join(_SCALES)})\b\s*")
_DOLLARS_AND_CENTS = re.compile(
    r"\\?\$?\s*(\d+)\s*(?:\\text\{\s*)?dollars?\s*(?:,|,?\s*and)?\s*\}?\s*(\d{1,2})\s*(?:\\text\{\s*)?cents?\s*\}?"
)
_MILLIONS = re.compile(r"\\\$\s*(\d+(?:\.\d+)?)\s*(\\text\w*\{\s*)?([kKMB])\s*(?(2)\})\s*")
_SMALL = {
    word: value
    for value, word in enumerate(
        re.findall(
            r"\w+",
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
            "seventeen eighteen nineteen",
        )
    )
}
_TENS = {
    word: 10 * place
    for place, word in enumerate(re.findall(r"\w+", "twenty thirty forty fifty sixty seventy eighty ninety"), 2)
}
_PARTS = {"half": 2, "halves": 2, "quarter": 4, "quarters": 4}
_PARTS |= {
    name + ending: value
    for value, name in enumerate(re.findall(r"\w+", "third fourth fifth sixth seventh eighth ninth tenth"), 3)
    for ending in ("", "s")
}
_INFINITIES = {"infinity": "\\infty ", "positive infinity": "\\infty ", "negative infinity": "-\\infty "}
_WITHOUT_END = re.compile(
    r"(?:there are |there is |it has )?(?:infinitely many|(?:an )?infinite(?: number of| amount of)?)"
    r"(?: (?:possible |different )?(?:solutions?|values?|ways|possibilities))?"
)
_SIGN = re.compile(
    r"^\s*\\text\w*\s*\{\s*(?:minus|negative)\s+(\d[\d.,/]*)\s*\}|"
    r"^\s*(?:\\text\w*\s*\{)?\s*(?:minus|negative)(?:\s*\}\s*|\s+|~|\\ )(?=[\d.(\\])",
    re.IGNORECASE,
)
_MOST_NOUNS = 2
_IN_WORDS = re.compile(
    r"\s*+(\\(?:text\w*|mbox|mathrm|emph)\s*+\{)?\s*+([a-zA-Z]+(?:[- ,]++[a-zA-Z]+){0,15})"
    r"\s*+\.?\s*+(?(1)\})\s*+\.?\s*+"  # no blank is given back: five hundred would be tried in every division
)
_ANNOUNCED = re.compile("nswer|NSWER|\\{\\s*(?:[Ss]o|[Tt]hus|[Hh]ence|[Tt]herefore)\\b")
_THERE_ARE = re.compile(r"^\s*(?:\\text\{\s*)?There are (?:exactly )?(\d[\d,]*) ([a-z]+)\s*\}?\s*$")
_VALUE_OF = re.compile(r"^\s*\\text\{\s*[Tt]he value of\s*\}\s*[^\s{}=]{1,12}\s*\\text\{\s*is:?\s*\}")
_EDGE = re.compile(r"^(?:[\s$~]|\\[][,;:!() ])+|(?:[\s$~]|\\[][,;:!() ])+$")
_PHRASE = re.compile(
    r"^\s*(\\text\w*\{\s*)?(?:(?:(?:so|thus|hence|therefore),?\s+)?(?:the\s+)?(?:(?:final|correct)\s+)?answer\s*"
    r"(?:is\s*:?|:|=)\s*(?:(?<=\s)|(?<=[:=])|(?=\}))|(?(1)(?:so|thus|hence|therefore)\s*,?\s*(?=\})))(?(1)(\}?))",
    re.IGNORECASE,
)


def without_words(text: str) -> str:
    """`text` with numbers for words, and without an announcement and rows of formulas."""
    if "\\begin" in text:
        text = _BRACED.sub(r"\\begin{cases}\g<rows>\\end{cases}", text)
        text = _ROWS.sub(_listed, text)
        if (rows := _ARRAY.fullmatch(text)) and all(
            row.count("=") == 1 for row in _BREAK.split(rows[1]) if row.strip()
        ):
            text = ", ".join(row.replace("&", "").strip(" ,;\n") for row in _BREAK.split(rows[1]) if row.strip())
    if _ANNOUNCED.search(text):
        text = _PHRASE.sub(lambda match: "" if not match[1] or match[2] else match[1], text, count=1)
    if "here are" in text or "value of" in text:
        text = _VALUE_OF.sub("", _THERE_ARE.sub(r"\1\\text{ \2}", text))
    if "inus" in text or "egative" in text:
        text = _SIGN.sub(lambda match: "-" + (match[1] or ""), text)
    if "illion" in text or "hundred" in text or "thousand" in text:
        text = _SCALED.sub(_scaled, text)
    if money := _MILLIONS.fullmatch(text):
        text = plain(Decimal(money[1]).scaleb({"k": 3, "m": 6, "b": 9}[money[3].lower()]))
    if "dollar" in text and "cent" in text:
        text = _DOLLARS_AND_CENTS.sub(lambda match: f"{match[1]}.{match[2]:0>2}\\text{{ dollars}}", text)
    inner = _IN_WORDS.fullmatch(_EDGE.sub("", text))
    return _in_digits(inner[2]) or text if inner else text


def _in_digits(phrase: str) -> str:
    """ "two hundred and fifty", "two thirds", "fifty percent" with digits; empty where no number begins the phrase."""
    words = re.findall("[a-z]+", phrase.lower())
    if words[0] == "a" and words[1:2] and (words[1] in _PARTS or words[1] == "dozen"):
        words = words[1:]
    if words[0] == "a" and words[1:2] and words[1] in _SCALES:
        words[0] = "one"
    if words[-3:] == ["and", "a", "half"]:
        number, rest = _counted(words[:-3])
        return "" if number is None or rest else f"{number}.5"
    if len(words) == 1 and words[0] in ("half", "dozen"):
        return {"half": "1/2", "dozen": "12"}[words[0]]
    if len(words) == 1 and phrase.lower().startswith("a ") and words[0] in _PARTS:
        return f"1/{_PARTS[words[0]]}"
    if infinite := _INFINITIES.get(" ".join(words)):
        return infinite
    if _WITHOUT_END.fullmatch(" ".join(words)):
        return "\\infty "
    sign = "-" if words[0] in ("minus", "negative") and len(words) > 1 else ""
    number, rest = _counted(words[1:] if sign else words)
    if number is None or len(rest) > _MOST_NOUNS:
        return ""
    if len(rest) == 1 and rest[0] in _PARTS:
        return f"{sign}{number}/{_PARTS[rest[0]]}"
    return f"{sign}{number}" + ("\\text{ " + " ".join(rest) + "}" if rest else "")


def _counted(words: list[str]) -> tuple[int | None, list[str]]:
    """The number that the first words spell, None for none, and the words behind it."""
    total, part, last = 0, 0, ""
    for place, word in enumerate(words):
        after = words[place + 1] if place + 1 < len(words) else ""
        if word in _SMALL and last in ("", "ten", "scale") and not (last == "ten" and not 0 < _SMALL[word] < 10):
            part, last = part + _SMALL[word], "small"
        elif word in _TENS and last in ("", "scale"):
            part, last = part + _TENS[word], "ten"
        elif word == "hundred" and last == "small" and 0 < part < 100:
            part, last = 100 * part, "scale"
        elif word in _SCALES and word != "hundred" and last and part:
            total, part, last = total + part * 10 ** _SCALES[word], 0, "scale"
        elif not (word == "and" and last == "scale" and (after in _SMALL or after in _TENS)):
            return (total + part if last else None), words[place:]
    return (total + part if last else None), []


def _listed(match: re.Match) -> str:
    """Rows with commas for the ends of lines. A function given by cases is left alone."""
    rows = [row.strip(" ,;\n") for row in re.split(r"\\\\(?:\[[^\[\]]*\])?", match["rows"]) if row.strip()]
    if any(row.lstrip("& ").startswith("=") for row in rows[1:]):  # one chain over several lines
        lines = [row.replace("&", "").strip() for row in rows]
        return "".join(line if line.startswith("=") or not place else f", {line}" for place, line in enumerate(lines))
    if match["kind"] == "cases":
        solutions = all(re.fullmatch(r"\s*[a-zA-Z](?:_\w)?\s*&?\s*=[^&=,]*", row) for row in rows)
        return ", ".join(row.replace("&", "") for row in rows) if solutions else match[0]
    return ", ".join(row.replace("&", "") for row in rows)


def _scaled(match: re.Match) -> str:
    number, opened, scale = match.groups()
    value = Decimal(number.replace(",", "")).scaleb(_SCALES[scale])
    return plain(value) + (opened or "")
