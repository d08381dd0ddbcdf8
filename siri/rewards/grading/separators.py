r"""What stands between two numbers: a space within one number, as in 10\,000, or a break between two of them.

A space inside of a number is one thin or plain space. Whatever is wider, ends a formula or a line, or belongs to the
markup stands between two numbers, and so does a comma that any space but a negative one follows: `1,\!000` is a
thousand, `(100,\,101)` is a pair.
"""

import re

# No character of any answer: the only space between digits, before it is known whether they are one number.
MARK = "\ue000"
_THIN = re.compile(r"(?<![\d.])(\d{1,3})((?:(?:[ ~]|\\[ ;:])\d{3})+)(?![\d/]|\s*/)")
# A number all by itself, or with a name before it or a unit behind.
_SPACED = re.compile(
    rf"(?:[a-zA-Z] *= *|\\text\{{ *)?[-+]?\d{{1,3}}(?:{MARK}\d{{3}})+(?:\.\d+)?"
    r"(?: *(?:\\%|\\text\{[a-zA-Z. ]+\}(?:\^[23])?)| *\})?"
)
_BREAK = re.compile(
    r"\\(?:q?quad|enskip|enspace|newline|linebreak|par|hfill?|hskip\s*-?[\d.]+\s*[a-z]{2}|[hm]space\*?\s*\{[^{}]*\}"
    r"|kern\s*-?[\d.]+\s*[a-z]{2})(?![a-zA-Z])"
    r"|\\\\(?:\[[^\[\]]*\])?|\n|\t|</?(?:br|p|li|td|tr|div)\b[^<>]*>|\$\s*\$+|\\\)\s*\\\(|\\\]\s*\\\["
    r"|(?<=[\d`*_])(?:\*\*|__|[*`])\s+(?:\*\*|__|[*`])(?=-?\d)|(?<=[\d}])\s*(?<!\$)\\\$(?=\d)"
    r"|\\text\w*\{\s*\}|(?:\\[;: ]|\\,|[ ~]){2,}"
)
_WIDE = re.compile("[\u2000-\u2003\u3000]|&e[mn]sp;")
# A number, fraction or root, without anything that would go on with it.
_FRACTION = r"\\[dt]?frac\s*(?:\{\s*\d+\s*\}|\d)\s*(?:\{\s*\d+\s*\}|\d)"
_ROOT = r"\\sqrt\s*(?:\{\s*\d+\s*\}|\d)"
_VALUE = re.compile(
    rf"[\s$]*(?:\\[,;: !(\[])?[\s*_`]*\\?\$?-?(?:\d+(?:\.\d+|,\d{{3}}|/\d+)*|\d*(?:{_FRACTION}|{_ROOT}|\\pi))"
    r"[\s*_`$]*(?:\\[,;: !)\]])?[\s$]*"
)


def separated(text: str) -> str:
    r"""`text` with commas for the breaks between numbers that it is all of, as in `98 \quad 118` and `$98$ $118$`."""
    text = _WIDE.sub(r"\\quad ", text)
    if len(text) > 512 or not _BREAK.search(text):
        return text
    parts = [part for part in _BREAK.split(text) if part.strip(" ,;")]
    if len(parts) < 2 or not all(_VALUE.fullmatch(part.strip(" ,;")) for part in parts):
        return text
    return ", ".join(re.sub(r"\\[()\[\]]|[$*_`]", "", part).strip(" ,;") for part in parts)


def marked(text: str) -> str:
    """`text` with a mark for each single space between digits that may be one number."""
    return _THIN.sub(lambda match: match[1] + re.sub(r"(?:[ ~]|\\[ ;:])(?=\d)", MARK, match[2]), text)


def joined(text: str) -> str:
    """`text` as one number, if all of it is digits with marks between them; with spaces for marks elsewhere."""
    return text.replace(MARK, "" if _SPACED.fullmatch(text) else " ")
