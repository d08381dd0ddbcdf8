r"""Vectors as the other side writes them: a column for \langle 1,2\rangle and \binom12, an arrow for bold letters.

Angle brackets hold nothing but vectors, while (1,2) may be a point and [1,2] an interval; bold is decoration elsewhere,
so that it is an arrow only beside arrows.
"""

import re

_ANGLES = re.compile(
    r"\s*\$?\s*(?:\\left\s*)?(?:\\langle(?![a-zA-Z])|[⟨〈])((?:[^<>⟨〉\\]|\\(?!langle|rangle))*,"
    r"(?:[^<>⟨〉\\]|\\(?!langle|rangle))*?)(?:\\right\s*)?(?:\\rangle(?![a-zA-Z])|[⟩〉])\s*\$?\s*"
)
_ENTRY = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
_BINOMIAL = re.compile(rf"\\[dt]?binom\s*{_ENTRY}\s*{_ENTRY}")
_NUMBERS = re.compile(r"\s*(\d{1,6})\s*,\s*(\d{1,6})\s*")
_COLUMN = re.compile(r"\\begin\s*\{[pb]?(?:small)?matrix\}[^&]*\\\\[^&]*\\end|\\begin\s*\{array\}\s*\{[clr]\}")
_ARROW = re.compile(r"\\(?:vec|overrightarrow)\s*(?:\{\s*[a-zA-Z0]\s*\}|\s[a-zA-Z])")
_BOLD = re.compile(r"\\(?:mathbf|boldsymbol|bm|bold|pmb)\s*(?:\{\s*([a-zA-Z0])\s*\}|\s([a-zA-Z])(?![a-zA-Z]))")
_MOST_CHARS = 512


def as_vector(text: str, other: str) -> str:
    """`text` with its vectors in the spelling of `other`; unchanged where they have one."""
    if len(text) > _MOST_CHARS or len(other) > _MOST_CHARS:
        return text
    if _COLUMN.search(other) and "\\begin" not in text:
        if match := _ANGLES.fullmatch(text):
            return f"({match[1]})^T"
        return _BINOMIAL.sub(r"\\begin{pmatrix}\1\\\\\2\\end{pmatrix}", text)
    if _ARROW.search(other) and not _ARROW.search(text):
        return _BOLD.sub(lambda match: f"\\vec{{{match[1] or match[2]}}}", text)
    return text


def as_gold_vector(gold: str, answer: str) -> str:
    """`gold` with its vectors in the spelling of `answer`. Of whole numbers it may be a binomial coefficient, and
    stays."""
    pairs = [",".join(pair) for pair in _BINOMIAL.findall(gold)]
    if any((match := _NUMBERS.fullmatch(pair)) and int(match[1]) >= int(match[2]) for pair in pairs):
        return gold
    return as_vector(gold, answer)
