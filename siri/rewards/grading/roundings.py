r"""Notes on how a decimal was rounded: "3.14 (to 2 decimal places)", "rounded to the nearest hundredth", "(2 d.p.)".

That is what a question asks for, and says nothing that the digits do not, if these are as many as the note says. Any
other note stays, as "approximately" does: nobody knows what the number was.
"""

import re

_NOTE = re.compile(
    r"\s*+(?:\\text\w*\s*+\{)?\s*+(?:(?P<bracket>\()|,)?\s*+(?:\\text\w*\s*+\{)?\s*+"
    r"(?P<said>(?:correct(?:ed)?|rounded(?:\s+off)?|accurate)\s+)?(?P<to>to\s+)?"
    r"(?:the\s+nearest\s+(?P<place>[a-z]+)(?:\s+number)?|(?:(?P<digit>[1-9])|(?P<word>one|two|three|four|five|six))\s*+"
    r"(?:(?P<decimal>decimal\s+(?:places?|digits?)|decimals|d\.?\s?p\.?)|significant\s+(?:figures?|digits?)|"
    r"s\.?\s?f\.?|sig\.?\s*+figs?\.?))[\s).}$]*\Z",
    re.IGNORECASE,
)
_UNIT = r"(?:\s|\\text\w*\s*\{[^{}\d]*\}?|\\[,;:!%$]|[%$\u00b0a-zA-Z/]|\^\s*\{?\s*(?:\\circ|[23])\s*\}?)*+"
_NUMBER = re.compile(rf"(?<![\d.,^_])(?<![\^_]\{{)(?P<whole>\d[\d,]*+)(?:\.(?P<part>\d++))?{_UNIT}\Z")
_WORDS = ("", "one", "two", "three", "four", "five", "six")
_PARTS = {"tenth": 1, "hundredth": 2, "cent": 2, "penny": 2, "thousandth": 3, "integer": 0, "whole": 0, "unit": 0}
_ZEROS = {"ten": 1, "hundred": 2, "thousand": 3}
_MOST_CHARS = 120


def without_rounding(text: str) -> str:
    """`text` without a note that its number is rounded as it looks."""
    start = max(0, len(text) - _MOST_CHARS)
    note = _NOTE.search(text, start)
    if note is None or not (note["bracket"] or note["to"]):
        return text
    before = text[: note.start()]
    number = _NUMBER.search(before, max(0, len(before) - _MOST_CHARS))
    if number is None or not _is_rounded(note, number["whole"].replace(",", ""), number["part"] or ""):
        return text
    before += "}" * (before.count("{") > before.count("}"))
    return before + "$" * ((before.count("$") - before.count("\\$")) % 2)


def _is_rounded(note: re.Match, whole: str, part: str) -> bool:
    if place := note["place"]:
        place = place.casefold()
        if place in _ZEROS:
            return not part and whole.endswith("0" * _ZEROS[place])
        return len(part) == _PARTS.get(place, -1)
    count = int(note["digit"] or _WORDS.index(note["word"].casefold()))
    if note["decimal"]:
        return len(part) == count
    digits = (whole + part).lstrip("0")
    return len(digits) == count if part else len(digits.rstrip("0")) <= count <= len(digits)
