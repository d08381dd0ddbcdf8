r"""How far \text reaches: a comma or "and" within it, between a value with its unit and the label of the next one.

"3\text{ cm, }4\text{ cm}" and "\text{center }(1,2)\text{ and radius }3" are lists as "3\text{ cm}, 4\text{ cm}" is, and
"\text{Alice: 5, Bob: 3}" holds values that may as well stand outside of it. Where words behind the comma go on with the
sentence, "so", "where" or "not", nothing is moved.
"""

import re

_TEXT = re.compile(r"(?P<open>\\(?:text(?:rm|normal)?|mathrm|mbox)\s*+\{)(?P<words>[^{}]*+)\}")
_BETWEEN = re.compile(r"(?<!\s)(\s*+,\s*+(?:(?:and|or)(?![a-zA-Z])\s*+)?|\s++(?:and|or)(?:\s++|\Z))")
_VALUE_BEFORE = re.compile(r"[\w)\]}|%'$]\Z")
_VALUE_AFTER = re.compile(r"\s*+\$?(?![\s,;.:)\]}$]).")
# What goes on with the sentence, or takes something back.
_NO_LABELS = frozenset(
    re.findall(
        r"\w+",
        "where when which that if for so thus hence therefore since because with as but not no or and nor only about "
        "approximately roughly nearly maybe perhaps possibly either neither except respectively more less fewer at up "
        "down over under then than to in by of on",
    )
)
_WORDS = re.compile(r"\(?[A-Za-z\d][\w )(:'./-]*")
_ITEM = re.compile(r"\s*([A-Za-z][A-Za-z ]*+):\s*(-?\d[\d./]*)\s*([A-Za-z][A-Za-z ]*)?\s*")
_OR_BRACKET = re.compile(r"\s*\(\s*(?:or|=)\s*")
_MOST_TEXTS = 64


def apart(text: str) -> str:
    r"""`text` with commas, "and" and "or" between values, and the bracket of "(or ...)", outside of \text."""
    if "{" not in text or text.count("\\") > 16 * _MOST_TEXTS:
        return text
    if whole := _TEXT.fullmatch(text.strip()):
        return _items(whole["words"]) or text
    pieces, start = [], 0
    for match in list(_TEXT.finditer(text))[:_MOST_TEXTS]:
        pieces += [text[start : match.start()], _divided(match, text)]
        start = match.end()
    return "".join([*pieces, text[start:]])


def _items(words: str) -> str:
    """The values of "Alice: 5, Bob: 3" outside of the words; "" for whatever else."""
    items = [_ITEM.fullmatch(part) for part in re.split(r"[,;]", words)]
    if len(items) < 2 or not all(items):
        return ""
    return ", ".join(
        f"\\text{{{item[1].strip()}: }}{item[2]}" + (f"\\text{{ {item[3].strip()}}}" if item[3] else "")
        for item in items
        if item
    )


def _divided(match: re.Match, text: str) -> str:
    words, opened = match["words"], match["open"]
    if words.strip() == ")":
        return ")"
    if _OR_BRACKET.fullmatch(words):
        return f"({opened}{words.replace('(', '', 1)}}}"
    before, after = text[max(0, match.start() - 9) : match.start()].rstrip(" ~"), text[match.end() : match.end() + 9]
    pieces = _BETWEEN.split(words)
    if len(pieces) != 3 or not _VALUE_BEFORE.search(before) or not _VALUE_AFTER.match(after):
        return match[0]
    unit, between, label = pieces
    first = re.match(r"\W*(\w*)", label)
    if (unit.strip() and not _WORDS.fullmatch(unit.strip())) or (
        label.strip() and (not _WORDS.fullmatch(label.strip()) or (first and first[1].casefold() in _NO_LABELS))
    ):
        return match[0]
    if not label.strip() and (not unit.strip() or "dollar" in unit):  # dollars and cents are one amount
        return match[0]
    word = between.strip(" ,")
    join = ", " if not word or (label.strip() and word == "and") else f"\\text{{ {word} }}"
    return (f"{opened}{unit}}}" if unit.strip() else "") + join + (f"{opened}{label}}}" if label.strip() else "")
