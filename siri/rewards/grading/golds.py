r"""What a gold answer lost, or got twice, on its way into a data set: "\\frac" for \frac, a brace at its end, commas
between functions. Only what can be read in no other way is mended."""

import re

from siri.data.braces import missing_braces

# A command whose backslash was escaped: as a row break followed by these letters nobody would read it.
_COMMANDS = (
    "[dtc]?frac|sqrt|pi|text\\w*|math\\w+|operatorname|cdot|times|div|left|right|infty|pm|mp|[lc]?dots|cup|cap|in|notin|"
    "leq?|geq?|neq?|lt|gt|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|ln|log|exp|alpha|beta|gamma|delta|theta|lambda|mu|"
    "sigma|omega|phi|varphi|rho|circ|binom|boxed|overline|bar|vec|hat|angle|triangle|emptyset|varnothing|setminus|mid|to|"
    "approx|equiv|pmod|q?quad|displaystyle|sum|int|lim|prod|parallel|perp|langle|rangle|begin|end|sim|forall|partial"
)
_BACKSLASHES = re.compile(r"\\+")
_ESCAPED = re.compile(rf"\\\\(?:(?:{_COMMANDS})(?![a-zA-Z])|[%$]|\{{.*\\\\\}})", re.DOTALL)
_AFTER = re.compile(rf"(?:{_COMMANDS})(?![a-zA-Z])|[{{}}%$,;:!|]")
_DEFINED = re.compile(r"\s*([a-zA-Z])\(([a-z])\)\s*=")
_LISTED = re.compile(r"[,;]|\\\\|\\text|\b(?:and|or)\b")


def unescaped(text: str) -> str:
    """`text` with one backslash for two, where all of its commands have two."""
    if not _ESCAPED.search(text):
        return text
    for run in _BACKSLASHES.finditer(text):
        row = len(run[0]) == 4  # between the rows of a matrix
        if not row and (len(run[0]) != 2 or not _AFTER.match(text, run.end())):
            return text
    return text.replace("\\\\", "\\")


def mended(gold: str) -> str:
    """A gold answer with what it lost."""
    return _separated(_closed(unescaped(gold)))


def _closed(text: str) -> str:
    """With the braces that are missing at its end."""
    return text + "}" * (missing_braces(text) or 0) if "{" in text else text


def _separated(text: str) -> str:
    """With commas between functions that follow one another by the same name: "f(x) = 0f(x) = x" holds two."""
    name = _DEFINED.match(text)
    if name is None or _LISTED.search(text):
        return text
    parts = re.split(rf"{name[1]}\({name[2]}\)\s*=", text)
    if len(parts) < 3 or not all(part.strip() and "=" not in part for part in parts[1:]):
        return text
    return ", ".join(f"{name[1]}({name[2]})={part}" for part in parts[1:])
