r"""What layout says before anything is read: what stands apart is two answers, and {} is nothing.

Digits that are no more than a blank apart may be one number, with a space at its thousands. Two formulas, two lines, a
wide space or a comma with a space behind it never are.
"""

import html
import re

_APART = re.compile(
    r"(?<=[\d}])\s*(?:\\q+uad(?![a-zA-Z])|\\[hv]space\*?\s*\{[^{}]*\}|\$\s*\$|\\\)\s*\\\(|<br\s*/?>|\n+(?=\s*\d)|"
    r"\\newline(?![a-zA-Z])|"
    r"\\text\s*\{(?:,\s+|\s+)\}|,\s*\\,|[\u3001\uff0c])(?:\s|\\q+uad(?![a-zA-Z]))*(?=-?\d)"
)
# But no argument of a command, no script, and no base of one.
_EMPTY_GROUP = re.compile(r"(\\[a-zA-Z]+\s*)?(?<![_^\\\]}])\{\s*\}(?!\s*[_^]\s*\{?\w+\}?\s*[CP])")
_EMPTY = re.compile(r"[\s$]*\{\s*\}[\s$]*")
_WITH_ARGUMENTS = re.compile(
    r"\\(?:[dtc]?frac|sqrt|[dt]?binom|text\w*|math\w+|mbox|hbox|operatorname|overline|underline|over\w+|wide\w+|bar|hat|"
    r"vec|tilde|d?dot|f?box(?:ed)?|color|[hvm]space|[hv]?phantom|begin|end|tag|label|p?mod|cancel|stackrel|bm|boldsymbol)\s*"
)
_ENTITY = re.compile(r"&[a-zA-Z]{2,8};")
# Of \sin^230^\circ the exponent is 2.
_ONE_DIGIT = re.compile(r"(\\(?:sin|cos|tan|cot|sec|csc|ln|log)\s*\^)(\d)(?=\d)")
_GROUPS = re.compile(r"\s*\{\d+\}(?:\s*\{\d+\})+\s*")
_STRUCK = re.compile(r"~~[^~]+~~|\\(?:cancel|bcancel|xcancel|sout|st)\s*\{")
_EITHER = re.compile(
    r"^\s*(?:\\text\s*\{\s*(?:either|both)\s*\}|(?:either|both)\s)\s*(?=.*\b(?:or|and)\b)",
    re.IGNORECASE,
)
_AS_WELL = re.compile(r"\\text\s*\{\s*,?\s*as well as\s*\}|(?<=[\d}])\s+as well as\s+(?=[\d\\-])", re.IGNORECASE)
_PLUS_OR_MINUS = re.compile(r"\\text\s*\{\s*plus or minus\s*\}|^\s*plus or minus\s+(?=[\d\\])", re.IGNORECASE)


def laid_out(text: str) -> str:
    """`text` with commas between numbers that stand apart, and without what only layout puts there. What is struck out
    is no answer."""
    if "~~" in text or "\\" in text:
        if _STRUCK.search(text):
            return "\\text{struck out}"
        text = _ONE_DIGIT.sub(r"\1\2 ", text)
    if "{" in text and not _EMPTY.fullmatch(text):
        text = _EMPTY_GROUP.sub(_without_group, text)
    if "&" in text and ";" in text:
        text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
    if _GROUPS.fullmatch(text):
        text = re.sub(r"\}\s*\{", "  ", text)  # no number with a space at its thousands
    if "ither" in text or "oth" in text:
        text = _EITHER.sub("", text)
    if "as well" in text or "or minus" in text:
        text = _PLUS_OR_MINUS.sub(r"\\pm ", _AS_WELL.sub(r" \\text{ and } ", text))
    if "\\begin" not in text and ("\\" in text or "$" in text or "\n" in text or "<" in text or not text.isascii()):
        text = _APART.sub(", ", text)
    return text


def _without_group(match: re.Match) -> str:
    """The command before an empty group, or nothing; all of it where that is an argument, or the empty set."""
    command = match[1] or ""
    if _WITH_ARGUMENTS.fullmatch(command):
        return match[0]
    is_a_set = match.end() == len(match.string.rstrip(" $")) and match.string[: match.start()].rstrip().endswith("=")
    return match[0] if is_a_set else f"{command} "
