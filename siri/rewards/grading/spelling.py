"""One spelling for what people and models spell in many ways. Structure, numbers and words are left alone."""

import functools
import re

from siri.rewards.grading.approximations import without_approximations
from siri.rewards.grading.characters import in_ascii
from siri.rewards.grading.layout import laid_out
from siri.rewards.grading.margins import trimmed, without_text_signs
from siri.rewards.grading.notation import REPLACEMENTS
from siri.rewards.grading.rewordings import reworded
from siri.rewards.grading.separators import MARK, joined, marked, separated
from siri.rewards.grading.statements import listed_statements, named_values
from siri.rewards.grading.structure import enclosed, split
from siri.rewards.grading.words import without_words

# What is dropped with its brace, wherever it stands, so that its content remains; the first argument may go as well.
_WRAPPERS = re.compile(
    r"\\(?:boldsymbol|bold|bm|pmb|underline|uline|mathbf(?!\s*\{\s*[RZQ]\s*\})|mathbfit|ensuremath|mathcal|"
    r"bbox(?:\[[^\[\]]*\])?|mathord|boxed|fbox|framebox|smash)"
    r"(?![a-zA-Z])\s*(?=\{)"
    r"|\\fcolorbox\s*\{[^{}]*\}\s*\{[^{}]*\}|\\(?:textcolor|colorbox|color)\s*(?:\[\w*\])?\{[^{}]*\}"
    r"|\\(?:mathop|operatorname)\s*(?=\{\s*-?\d)"
    r"|\\(?:bf|it|rm|sf|tt|em|bfseries|itshape|tiny|scriptsize|footnotesize|small|normalsize|large|Large|LARGE|huge|"
    r"Huge|displaystyle|textstyle|scriptstyle|limits|nolimits|strut|mathstrut|centering|boldmath|noindent)(?![a-zA-Z])"
    r"|\\(?:mathbf|boldsymbol|bm|mathbb|mathcal)(?=\s*\d)|\\(?:mathbf|boldsymbol|bm)(?=\s+[a-zA-QS-Z](?![a-zA-Z]))|"
    r"\\mathbb(?=\s*\{\d+\})"
    r"|\\(?:checkmark|blacksquare|square|Box|qed|therefore|because)(?![a-zA-Z])|^\s*\\(?:Rightarrow|"
    r"implies)(?![a-zA-Z])"
    r"|\\(?:[hv]?phantom|[hvm]space\*?|label|tag\*?)\s*\{[^{}]*\}"
    r"|\\(?:nonumber|notag)(?![a-zA-Z])|\\m?kern\s*-?\d*\.?\d+\s*(?:pt|mu|em|ex|mm)|\\math(?:it|"
    r"normal)\s*(?=\{[^{}]*[\d\\])|\\mathrm\s*(?=\{\s*-?\\[dt]?(?:frac|sqrt))"
)
_NAMED = re.compile(
    r"\\(?:operatorname|mathrm|text|mathop)\*?\s*\{\s*(arc(?:sin|cos|tan|cot|sec|csc)|(?:sin|cos|tan)h?|cot|csc|"
    r"sec(?=\s*\}\s*[\w\\({^])|"
    r"(?:arc?|a)(?:sin|cos|tan)h|(?:arc)?c?tg|arcctg|cosec|ln|lg|log|exp|binom|(?:gcd|lcm|max|min|cis|floor|"
    r"ceil)(?=\s*\}\s*(?:\\,\s*)?(?:\(|\\\{|\\frac|\d)))\s*\}"
)
_MARKUP = re.compile(r"</?(?:b|i|u|em|strong|span|font|big|small|mark|p|div|center|br)\b[^<>]*>", re.IGNORECASE)
# a<b>c are two inequalities.
_CLOSED = re.compile(r"</|<(?:br|p|center|div)\b|<[a-z]+ [a-z]+=", re.IGNORECASE)
# What is raised to a power stands right before two stars, and its exponent right behind them.
_BOLD = re.compile(r"(?<![\w)\]}])(\*\*\*|\*\*|__|`{1,3})(?=\S)((?:(?!\1).)+?)(?<=\S)\1(?![\w(\\{])")
# (A) as competitions print it.
_BOLD_CHOICE = re.compile(
    r"\\(?:mathbf|boldsymbol|bm|mathrm|mathsf)\s*\{\s*\(\s*([A-J])\s*\)\s*\}"
    r"|^\s*\(\s*\\(?:mathbf|boldsymbol|bm|mathrm|mathsf)\s*\{\s*([A-J])\s*\}\s*\)"
)

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?", re.ASCII)
# An amount, and the same in another unit in brackets.
_BOTH_UNITS = re.compile(
    r"^(-?\d[\d.]*) *\\text\{ *([a-z]+) *(?:\( *=? *|\} *\( *=? *)"
    r"(\d[\d.]*) *(?:\\text\{ *)?([a-z]+) *(?:\) *\}|\} *\))$"
)
# Many blanks are as wide as a few, and patterns that look behind blanks would walk through each rest of them.
_BLANKS = re.compile(r"\s{9,}")
_THOUSANDS = re.compile(r"\s*-?\d{1,3}(?:,\d{3})+(?:\.\d+)?\s*", re.ASCII)


@functools.lru_cache(2048)
def clean(text: str, *, decimals: bool = False) -> str:
    """`text` in plain spelling: ASCII, no decoration, one name for each command. Of a value and its approximation the
    first stays, or the decimal, if `decimals`."""
    if _NUMBER.fullmatch(text):
        return text
    text = _BLANKS.sub(lambda match: "\n\n" if "\n" in match[0] else " " * 8, text)
    text = trimmed(reworded(laid_out(separated(text))))
    text = marked(in_ascii(without_text_signs(text)))
    text = trimmed(_undecorated(listed_statements(text)))
    text = named_values(without_words(text))
    for needle, pattern, replacement in REPLACEMENTS:
        if needle in text:
            text = pattern.sub(replacement, text)
    text = text.strip()
    if "\\" in text or "..." in text:
        while text.endswith("\\"):  # a line break, or a space that was cut off
            text = text.removesuffix("\\").rstrip()
        text = re.sub(r"^(?:\\\\\s*)+", "", text)
        text = re.sub(r"(\.\d+)\s*(?:\.{3,}|\\[lc]?dots)$", r"\1\\ldots", text)
    text = _bare_equation(text if text.endswith("..") else text.rstrip(" .,;:"))
    text = "\\cup".join(map(_open_ended, text.split("\\cup")))
    if "\\text{" in text:  # \text{10 cm}
        text = re.sub(r"\\text\{\s*(-?\d[\d.,/]*|\d{1,2}:\d\d)\s*([a-zA-Z][a-zA-Z./ ]*)?\}", r"\1\\text{\2}", text)
        text = re.sub(r"(\d)\\text\{\}", r"\1", text)
        text = re.sub(r"\\text\{\s*(-?\d[\d.,/]*)\s*\\%\s*\}", r"\1\\%", text)
        text = _BOTH_UNITS.sub(r"\1\\text{ \2}=\3\\text{ \4}", text)
    text = joined(text) if MARK in text else text
    return without_approximations(text, decimals=decimals) if "\\approx" in text else text


def _bare_equation(text: str) -> str:
    """`text` without brackets around a whole equation, which are those of a remark."""
    if text.startswith("(") and text.endswith(")") and "=" in text and enclosed(text):
        inner = text[1:-1].strip()
        return inner if len(split(inner, "=")) > 1 and not _has_members(inner) else text
    return text


def _open_ended(text: str) -> str:
    """`]0, 2[` is (0, 2) in French."""
    if "[" not in text and "]" not in text:
        return text
    match = re.fullmatch(r"(\s*)([\[\]])([^\[\]]*[,;][^\[\]]*)([\[\]])(\s*)", text)
    if match is None or (match[2], match[4]) == ("[", "]"):
        return text
    return f"{match[1]}{'[' if match[2] == '[' else '('}{match[3]}{']' if match[4] == ']' else ')'}{match[5]}"


def _undecorated(text: str) -> str:
    """Without bold, colour, underline, size and boxes, in markdown, HTML and LaTeX; the content stays."""
    if "<" in text:
        text = re.sub(r"<sup>([^<>]*)</sup>", r"^{\1}", re.sub(r"<sub>([^<>]*)</sub>", r"_{\1}", text))
        text = _MARKUP.sub(" ", text) if _CLOSED.search(text) else text
    if "*" in text or "_" in text or "`" in text:
        text = _unmarked(text)
    if "\\" in text:
        text = re.sub(r"\\text\w*\{\s*(?:\$([^$]*)\$|\\\(([^$]*?)\\\))\s*\}", r"{\1\2}", text)  # a formula after all
        text = re.sub(r"\{\\rm(?![a-zA-Z])\s*(?:\\\s)?\s*([a-zA-Z ]+)\}", r"\\text{ \1}", text)
        text = _BOLD_CHOICE.sub(r"\\text{(\1\2)} ", text)
        text = _NAMED.sub(r"\\\1 ", _WRAPPERS.sub(" ", text))
    return _unbraced(text.strip())


def _unmarked(text: str) -> str:
    text = _BOLD.sub(r" \2 ", text.strip()).strip()
    inner = re.sub(r"(?<![\\.,;:])(?<!\\right)[.,;:]+$", "", text)  # but no thin space
    for _ in range(3):
        for mark in ("***", "**", "__", "```", "``", "`", "*", "_"):
            if len(inner) > 2 * len(mark) and inner.startswith(mark) and inner.endswith(mark):
                inner = inner[len(mark) : -len(mark)].strip()
                break
    return inner


def _unbraced(text: str) -> str:
    """Without braces around the whole of it, unless they make it a set."""
    while text.startswith("{") and text.endswith("}") and _closes_at_the_end(text):
        if _has_members(text[1:-1].rstrip(" ,;")) and not _THOUSANDS.fullmatch(text[1:-1]):
            break
        text = text[1:-1].strip()
    return text


def _has_members(text: str) -> bool:
    """Whether there is a comma outside of all brackets."""
    depth = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if depth <= 0 and char in ",;":
            return True
    return False


def _closes_at_the_end(text: str) -> bool:
    depth = 0
    for place, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return place == len(text) - 1
    return False
