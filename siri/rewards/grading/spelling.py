"""One spelling for what people and models spell in many ways. Structure, numbers and words are left alone."""

import functools
import re

from siri.rewards.grading.approximations import without_approximations
from siri.rewards.grading.characters import in_ascii
from siri.rewards.grading.margins import trimmed, without_text_signs
from siri.rewards.grading.statements import listed_statements
from siri.rewards.grading.words import without_words

# What is dropped with its brace, wherever it stands, so that its content remains; the first argument may go as well.
_WRAPPERS = re.compile(
    r"\\(?:boldsymbol|bold|bm|pmb|underline|uline|mathbf(?!\s*\{\s*[RZQ]\s*\})|mathbfit|ensuremath|mathcal|bbox(?:\[[^\[\]]*\])?|mathord|boxed|fbox|framebox|smash)"
    r"(?![a-zA-Z])\s*(?=\{)"
    r"|\\fcolorbox\s*\{[^{}]*\}\s*\{[^{}]*\}|\\(?:textcolor|colorbox|color)\s*(?:\[\w*\])?\{[^{}]*\}"
    r"|\\(?:mathop|operatorname)\s*(?=\{\s*-?\d)"
    r"|\\(?:bf|it|rm|sf|tt|em|bfseries|itshape|tiny|scriptsize|footnotesize|small|normalsize|large|Large|LARGE|huge|"
    r"Huge|displaystyle|textstyle|scriptstyle|limits|nolimits|strut|mathstrut|centering|boldmath|noindent)(?![a-zA-Z])"
    r"|\\(?:mathbf|boldsymbol|bm|mathbb|mathcal)(?=\s*\d)|\\(?:mathbf|boldsymbol|bm)(?=\s+[a-zA-QS-Z](?![a-zA-Z]))|\\mathbb(?=\s*\{\d+\})"
    r"|\\(?:checkmark|blacksquare|square|Box|qed|therefore|because)(?![a-zA-Z])|^\s*\\(?:Rightarrow|implies|to)(?![a-zA-Z])"
    r"|\\(?:[hv]?phantom|[hv]space\*?|label|tag\*?)\s*\{[^{}]*\}"
    r"|\\(?:nonumber|notag)(?![a-zA-Z])|\\m?kern\s*-?\d*\.?\d+\s*(?:pt|mu|em|ex|mm)|\\math(?:it|normal)\s*(?=\{[^{}]*[\d\\])"
)
_NAMED = re.compile(
    r"\\(?:operatorname|mathrm|text|mathop)\*?\s*\{\s*(arc(?:sin|cos|tan|cot|sec|csc)|(?:sin|cos|tan)h?|cot|csc|sec(?=\s*\}\s*[\w\\({^])|"
    r"(?:arc?|a)(?:sin|cos|tan)h|(?:arc)?c?tg|arcctg|cosec|ln|lg|log|exp|binom|(?:gcd|lcm|max|min|cis)(?=\s*\}\s*(?:\(|\\\{|\\frac|\d)))\s*\}"
)
_MARKUP = re.compile(r"</?(?:b|i|u|em|strong|span|font|big|small|mark|p|div|center|br)\b[^<>]*>", re.IGNORECASE)
_BOLD = re.compile(r"(\*\*\*|\*\*|__|`{1,3})(?=\S)((?:(?!\1).)+?)(?<=\S)\1")
_STARRED = re.compile(r"\*([^*]+)\*")

_SCRIPT = r"(?:\{([^{}]+)\}|([a-z\d]))"
# (what has to be in the text for it to be worth a try, pattern, replacement), in this order
_REPLACEMENTS = [
    (needle, re.compile(pattern), replacement)
    for needle, pattern, replacement in (
        ("", r"(?<!\\)\\[\[\]()]|\\?\$", " "),  # math delimiters and dollar signs
        ("^", r"\\(?:text|mathrm)\s*\{([^{}^]*[a-zA-Z.])\s*\^\s*(?:\{\s*([23])\s*\}|([23]))\s*\}", r"\\text{\1}^\2\3"),
        ("\\pounds", r"\\pounds(?![a-zA-Z])", " "),
        ("\\text", r"(?<=[\d}])\s*\\text\{\s*\(([a-zA-Z./ ]+)\)\s*\}$", r"\\text{ \1}"),
        ("{", r"(?<=\d)(?:\s|\\[,;: ])*\{\s*\}\s*(?=\^)", ""),
        ("\\", r"\\(?:left|right)\s*\.|\\(?:left|right|middle|[bB]igg?[lmr]?)(?![a-zA-Z])", ""),
        ("{", r"(?<=\d)(?:\\text\s*)?\{\s*(?:,|\\,)\s*\}\s*(?=\d{3}(?!\d))", ""),
        ("\\text", r"\\text\{\s*([,;])\s*\}", r"\1 "),
        ("\\text", r"(?<=\d)\\text\{\s*\}", " "),
        ("{}", r"(?<![\w\]}_^])\{\}(?=\s*[\d\\])|(?<=[\d}])\{\}", ""),
        ("matrix*", r"\\(begin|end)\{([pbvBV]matrix)\*\}(?:\[[lcr]\])?", r"\\\1{\2}"),
        ("NiceMatrix", r"\\(begin|end)\{([pbvBV])NiceMatrix\}", r"\\\1{\2matrix}"),
        ("matrix{", r"\\([pbvBV]?matrix)\{((?:[^{}]|\{[^{}]*\}){0,400})\}", r"\\begin{\1}\2\\end{\1}"),
        ("atrix(", r"^(?:np\.|sp\.|sympy\.)?[mM]atrix\((\[\[.*\]\])\)$", r"\1"),
        ("\\Omega", r"(?<=[\d}])(?:\\[,;: ]|~)\s*\\Omega$", r"\\text{ ohm}"),
        (
            "\\Omega",
            r"(?<=[\d}])[\s~]*(?:\\[,;: ]\s*)?\\(?:text|mathrm)\{[\s~]*([kM]?) *(?:\\Omega *\}|\} *\\Omega)$",
            r"\\text{ \1ohm}",
        ),
        # thousands, as LaTeX spaces them
        ("\\", r"(?<=\d)(?:,\s*\\!|\\!\s*,|\\,|,\s*\\,)\s*(?=\d{3}(?!\d))", ""),
        ("\\!", r"(?<!\\)\\!", ""),
        ("", r"(?:(?<!\\)\\(?:[,;:> ]|(?:q?quad|thinspace|enspace|medspace)(?![a-zA-Z]))|~|\s)+", " "),
        ("<", r"^\s*<([^<>]*,[^<>]*)>\s*$", r"(\1)"),
        ("\\operatorname", r"(?<=[\d}])\s*\\operatorname\s*\{\s*(cm|mm|km|kg|m|g|s|ft|in)\s*\}", r"\\text{ \1}"),
        ("U", r"(?<=[)\]}])\s*U\s*(?=[(\[{\\])", r" \\cup "),
        # thousands, as the Swiss and programs write them
        ("'", r"(?<![\w.'])(\d{1,3}(?:'\d{3})+)(?![\d'])", lambda match: match[0].replace("'", "")),
        ("_", r"(?<![\w.])(\d{1,3}(?:_\d{3})+)(?![\d_{])", lambda match: match[0].replace("_", "")),
        ("'", r"^'([^']*)'$", r"\1"),
        ('"', r'^"([^"]*)"$', r"\1"),
        ("\u201c", "^\u201c([^\u201c\u201d]*)\u201d$", r"\1"),
        ("^", r"\\(?:mathrm|text)\s*\{\s*(\^\s*\{?\s*\\circ\s*\}?)\s*\}", r"\1"),
        ("\\", r"\\(?:nice|s|x)frac(?![a-zA-Z])", r"\\frac"),
        ("\\over", r"\{([^{}]*)\\over(?![a-zA-Z])([^{}]*)\}|^([^{}]*)\\over(?![a-zA-Z])([^{}]*)$", lambda m: _over(m)),
        # ^1/_2, as slanted fractions are made
        ("_", r"(?<![a-zA-Z_.})])(?:\{ *\})?\^\{?(\d+)\}?(?:\\!)? ?/ ?(?:\\!)?_\{?(\d+)\}?", r"\\frac{\1}{\2}"),
        ("\\root", r"\\root\s*\{?\s*(\d+)\s*\}?\s*\\of", r"\\sqrt[\1]"),
        ("\\vert", r"\\vert(?![a-zA-Z])", "|"),
        ("\\mid", r"^([^{}]*)\\mid(?![a-zA-Z])([^{}]*)\\mid(?![a-zA-Z])([^{}]*)$", r"\1|\2|\3"),
        ("\\surd", r"\\surd(?![a-zA-Z])", r"\\sqrt"),
        ("paren", r"\\([lr])paren(?![a-zA-Z])", lambda match: "(" if match[1] == "l" else ")"),
        ("brack", r"\\([lr])brack(?![a-zA-Z])", lambda match: "[" if match[1] == "l" else "]"),
        ("\\big", r"\\big(cup|cap)(?![a-zA-Z])(?!\s*[_^])", r"\\\1"),
        ("\\Bbb", r"\\Bbb(?![a-zA-Z])", r"\\mathbb"),
        ("+/", r"\+ ?/ ?-", r"\\pm "),
        # as siunitx has it
        ("\\", r"\\(?:SI|qty)\s*\{([^{}]*)\}\s*\{([^{}\\]*)\}", r"\1\\text{ \2}"),
        ("\\", r"\\(?:si|unit)\s*\{([^{}\\]*)\}", r"\\text{ \1}"),
        ("\\ang", r"\\ang\s*\{(\d+(?:\.\d+)?)\}", r"\1^\\circ "),
        (
            "\\mu",
            r"(?<=[\d}]) *(?:\\(?:text|mathrm)\{ *\\mu|\\mu *\\(?:text|mathrm)\{) *([mgs]) *\}",
            r"\\text{ micro\1}",
        ),
        ("\\smallsetminus", r"\\smallsetminus(?![a-zA-Z])", r"\\setminus"),
        ("\\colon", r"\\colon(?![a-zA-Z])", ":"),
        ("dollar", r"\\(?:text|math)dollar(?![a-zA-Z])", " "),
        ("\\mathbf", r"\\mathbf\s*(?:\{\s*R\s*\}|R(?![a-zA-Z]))", r"\\mathbb{R}"),
        ("math", r"\\([ij])math(?![a-zA-Z])", r"\1"),
        (
            "\\",
            r"\\(?:hat|vec|widehat|overrightarrow)\s*(?:\{\s*\{?\s*([ijk])\s*\}?\s*\}|([ijk])(?![a-zA-Z]))",
            r"\1\2",
        ),
        ("\\overrightarrow", r"\\overrightarrow(?![a-zA-Z])", r"\\vec"),
        ("\\vec", r"\\vec\s*(?:\{\s*([a-zA-Z])\s*\}|\s([a-zA-Z]))(?![a-zA-Z])", r"\\vec{\1\2}"),
        (
            "prime",
            r"\^ ?(?:\{ ?((?:\\prime *)+)\}|(\\prime)(?![a-zA-Z]))",
            lambda match: "'" * match[0].count("\\prime"),
        ),
        ("\\var", r"\\var(epsilon|phi|theta)(?![a-zA-Z])", r"\\\1"),
        ("\\uppi", r"\\uppi(?![a-zA-Z])", r"\\pi "),
        (" to ", r"^\\text\{\s*(\d+)\s+to\s+(\d+)\s*\}$", r"\1:\2"),
        ("US", r"^US\s*\\?\$?\s*(?=[\d.])", ""),
        ("USD", r"^USD\s*(?=[\d.])", ""),
        (":=", r":=", "="),
        ("\\mapsto", r"^([a-zA-Z])\s*:\s*([a-zA-Z])\s*\\mapsto(?![a-zA-Z])", r"\1(\2)="),
        ("\\equiv", r"(?<![\\a-zA-Z])([fgh]) ?(?:\(x\))? ?\\equiv(?![a-zA-Z])(?!.*mod)", r"\1(x)="),
        ("//", r"(?<=[A-Z]) ?// ?(?=[A-Z])", r" \\parallel "),
        ("\\mathbf", r"\\mathbf\s*\{\s*([ZQ])\s*\}", r"\\mathbb{\1}"),
        ("\\text", r"\\text\{\s*[.,;:]\s*\}$", ""),
        ("\\equiv", r"^([a-zA-Z]\([a-zA-Z]\))\s*\\equiv(?![a-zA-Z])(?!.*mod)", r"\1="),
        (",", r",\s*(?:\.\.\.|\\[lc]?dots(?:c(?![a-zA-Z]))?)\s*,", r",\\ldots ,"),
        ("&", r"&nbsp;", " "),
        ("&lt", r"&lt;", "<"),
        ("&gt", r"&gt;", ">"),
        ("{\\", r"\{\s*(\\(?:sin|cos|tan|cot|sec|csc|ln|log|exp))\s*\}", r"\1 "),
        ("\\overline", r"\{(\\overline\{\d+\})\}", r"\1"),
        ("\\overline", r"(\\overline\{\d+\})\s*(?:\\[lc]?dots|\.\.\.)", r"\1"),
        ("log", r"\\?(?<![a-zA-Z])log\s*(?:_\s*)?(10|2)(?=\s*\()", r"\\log_{\1}"),
        ("\\log_10", r"\\log_10", r"\\log_{10}"),
        ("{\\", r"\\(?:overset|stackrel)\s*\{\s*(?:\\cdot|\.)\s*\}\s*\{(\d)\}", r"\\dot{\1}"),
        ("recurring", r"(\d*\.)(\d)\2* ?(?:\\text\{ ?)?recurring *\}?$", r"\1\\overline{\2}"),
        ("repeating", r"(\d*\.)(\d)\2* ?(?:\\text\{ ?)?repeating *\}?$", r"\1\\overline{\2}"),
        ("frac", r"(?<=\d)\s*\{\s*(\\[dt]?frac(?:\{\d+\}|\d)(?:\{\d+\}|\d))\s*\}", r"\1"),
        ("frac", r"(?<![\w}\])^])\{(\d+)\}(?=\s*\\[dt]?frac)", r"\1"),
        # 4th
        ("", r"(?<=\d)\s*(?:\^\s*)?(?:\{\s*)?(?:\\text\w*\{\s*)?(?:st|nd|rd|th)\s*(?:\}\s*)*(?![a-zA-Z])", ""),
        ("frac", r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        ("\\overline", r"\\overline\s*(\d)", r"\\overline{\1}"),
        ("\\l", r"\\(?:le|leq|leqslant|leqq)(?![a-zA-Z])", r"\\le "),
        ("\\g", r"\\(?:ge|geq|geqslant|geqq)(?![a-zA-Z])", r"\\ge "),
        ("\\n", r"\\(?:ne|neq|not\s*=)(?![a-zA-Z])", r"\\ne "),
        ("angle", r"\\[lr]angle(?![a-zA-Z])", lambda match: "(" if match[0] == "\\langle" else ")"),
        ("\\lbrace", r"\\lbrace(?![a-zA-Z])", r"\\{"),
        ("\\rbrace", r"\\rbrace(?![a-zA-Z])", r"\\}"),
        ("<=", r"<=", r"\\le "),
        (">=", r">=", r"\\ge "),
        ("!=", r"!=(?!=)", r"\\ne "),
        ("\\lt", r"\\lt(?![a-zA-Z])", "<"),
        ("\\gt", r"\\gt(?![a-zA-Z])", ">"),
        ("{", r"\\(?:mathrm|text|mathit|operatorname)\s*\{\s*([eid])\s*\}", r"\1"),
        ("pi", r"\\(?:mathrm|text|mathit|operatorname)\s*\{\s*pi\s*\}", r"\\pi "),
        (
            "\\",
            r"\\(?:text(?:normal|rm|bf|it|sf|tt|up|md)?|emph|mbox|hbox|mathrm|mathsf|mathtt|mathit)\s*\{",
            r"\\text{",
        ),
        ("\\circ", r"\(? *\b([a-zA-Z]) *\\circ *([a-zA-Z]) *\)? ?\( *([a-z]|-?\d+) *\)", r"\1(\2(\3))"),
        ("\\circ", r"(?<=[a-zA-Z)'}]) *(?<!\^)(?<!\^\{)\\circ *(?=[a-zA-Z(])", r"\\composed "),
        (
            "",
            r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\circ\b|(?<=\d)\^\s*\{?\s*(?:\\text\{\s*)?o\s*\}{0,2}(?![a-zA-Z])",
            r"\\text{degree}",
        ),
        (
            "deg",
            r"\\text\{\s*(?:degrees?|deg)\.?\s*\}|(?<=\d)\s*(?:degrees?|deg)\b|\\deg(?:ree)?s?(?![a-zA-Z])|\^\{?\\degree\}?",
            r"\\text{degree}",
        ),
        (
            "\\text{degree}",
            r"(?<=\d)\s*\\text\{degree\}\s*(?:\\text\{\s*)?([CF])(?:elsius|ahrenheit)?\s*\}?$",
            lambda match: "\\text{ celsius}" if match[1] == "C" else "\\text{ fahrenheit}",
        ),
        ("\\text", r"\\frac\s*\{\s*\\text\{([^{}]*)\}\s*\}\s*\{\s*\\text\{([^{}]*)\}\s*\}", r"\\text{\1/\2}"),
        ("\\text", r"\\text\{([^{}]*)\}\s*/\s*\\text\{([^{}]*)\}", r"\\text{\1/\2}"),
        # m s^{-2} is m/s^2
        (
            "\\text",
            r"(?<=[\d}]) *\\text\{ *([a-zA-Z]+)(?: *\} *(?:\\cdot *|\* *)?\\text\{ *| +|\\cdot *)([a-zA-Z]+) *"
            r"(?:\^\{?-([123])\}? *\}|\} *\^\{?-([123])\}?)$",
            lambda match: f"\\text{{ {match[1]}/{match[2]}}}^{match[3] or match[4]}".removesuffix("^1"),
        ),
        (
            "\\text",
            r"(?<=[\d}]) *\\text\{ *(mol|[ckmn]?m|s|k?g|K|h|min|[lL]) *(?:\^\{?-1\}? *\}|\} *\^\{?-1\}?)$",
            r"\\text{ per \1}",
        ),
        ("\\text", r"(\\text\{[^{}]*\w)\s*[.!]\s*\}$", r"\1}"),
        ("\\text", r"(?<=[\d}])( *\\text\{[^{}]*[a-zA-Z]) *,? +(and|or) *\}(?= *[-\d\\(])", r"\1}\\text{ \2 }"),
        ("=", r"^\\text\{ *([a-zA-Z] *= *-?\d[\d./]*) *\}$", r"\1"),
        (":00", r"(?<![\d:])(\d{1,2}):00(?= *(?:\\text\{ *)?[apAP]\.? ?[mM]\b)", r"\1"),
        ("\\text", r"\\text\{\s*[\"'\u201c]+([^\"{}\u201d]*)[\"'\u201d]+\s*\}", r"\\text{\1}"),
        ("/", r"\\text\{ *(-?\d+ +\d+/\d+) *([a-zA-Z. ]*)\}", r"\1\\text{ \2}"),
        ("p", r"\\text\{\s*(?:per ?cent(?:age)?|pct)\s*\}|(?<=[\d}])\s*(?:per ?cent(?:age)?|pct)\b", r"\\%"),
        ("%", r"\\?%", r"\\%"),
        ("**", r"\*\*", "^"),
        ("\\pmod", r"\\pmod\s*(\w)", r"\\pmod{\1}"),
        ("{", r"(?<![\\a-zA-Z}])\{([-+.,=<>:])\}", r"\1"),
        ("10^", r"(?<=\d) ?[xX] ?(?=10\^)", r"\\times "),
        ("\\choose", r"(?:\{|^)([^{}]*)\\choose([^{}]*)(?:\}|$)", r"\\binom{\1}{\2}"),
        ("C", r"(?<![\w})])(?:\{ *\})?[_^]\{?(\d+)\}? *(?:\\text\{)?C\}?_\{?(\d+)\}?", r"\\binom{\1}{\2}"),
        ("C", r"(?:\\text\{ *C *\}|C)_\{?(\d+)\}?\^\{?(\d+)\}?", r"\\binom{\1}{\2}"),
        ("C", rf"(?<![a-zA-Z\d}})])(?:\{{ *\}})?[_^]{_SCRIPT} *C_{_SCRIPT}", lambda match: _chosen(match)),
        ("C_", rf"(?<![a-zA-Z\\])C_{_SCRIPT}\^{_SCRIPT}", lambda match: _chosen(match)),
        ("\\frac", r"\\frac\s*([0-9a-zA-Z])", r"\\frac{\1}"),
        ("\\frac", r"(\\frac\{[^{}]*\})\s*([0-9a-zA-Z])", r"\1{\2}"),
        ("\\sqrt", r"\\sqrt\s*([0-9a-zA-Z])", r"\\sqrt{\1}"),
        ("\\infty", r"\+\s*\\infty", r"\\infty"),
        ("{", r"([_^])\s*\{\s*(\w)\s*\}(?!\d)", r"\1\2"),
        ("_{10}", r"(?<=\d)_\{10\}\s*$", ""),
        ("/", r"(?<![\d.^_/{}])(\d+) +(\d+) ?/ ?(\d+)(?![\d./^!a-zA-Z(])", lambda match: _mixed(match)),
        # a percentage of the fraction, not one divided by a percentage
        ("\\%", r"(?<![\d.^_/{}\w)])(\d+) ?/ ?(\d+) ?\\%", r"\\frac{\1}{\2}\\%"),
        ("all", r"^(?:\\text\{ ?)?(?:for )?all *\}? *(?=[a-zA-Z] ?(?:[<>]|\\[lgn]e |\\in ))", ""),
    )
]
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?", re.ASCII)
_THOUSANDS = re.compile(r"\s*-?\d{1,3}(?:,\d{3})+(?:\.\d+)?\s*", re.ASCII)


@functools.lru_cache(2048)
def clean(text: str) -> str:
    """`text` in plain spelling: ASCII, no decoration, one name for each command."""
    if _NUMBER.fullmatch(text):
        return text
    text = listed_statements(trimmed(_undecorated(in_ascii(without_text_signs(trimmed(text))))))
    text = without_words(text)
    for needle, pattern, replacement in _REPLACEMENTS:
        if needle in text:
            text = pattern.sub(replacement, text)
    text = text.strip()
    if "\\" in text or "..." in text:
        while text.endswith("\\"):  # a line break, or a space that was cut off
            text = text.removesuffix("\\").rstrip()
        text = re.sub(r"^(?:\\\\\s*)+", "", text)
        text = re.sub(r"(\.\d+)\s*(?:\.{3,}|\\[lc]?dots)$", r"\1\\ldots", text)
    text = text if text.endswith("..") else text.rstrip(" .,;:")
    text = "\\cup".join(map(_open_ended, text.split("\\cup")))
    if "\\text{" in text:  # \text{10 cm}
        text = re.sub(r"\\text\{\s*(-?\d[\d.,/]*)\s*([a-zA-Z][a-zA-Z./ ]*)?\}", r"\1\\text{\2}", text)
        text = re.sub(r"(\d)\\text\{\}", r"\1", text)
    return without_approximations(text) if "\\approx" in text else text


def _chosen(match: re.Match) -> str:
    """C_{n+1}^k and {}_nC_k, as schools of several countries have them."""
    from_, of_these = (next(filter(None, pair)) for pair in (match.groups()[:2], match.groups()[2:]))
    return f"\\binom{{{from_}}}{{{of_these}}}"


def _mixed(match: re.Match) -> str:
    """ "3 1/4" is three and a quarter; where the fraction is not a proper one, nobody knows."""
    whole, over, under = match.groups()
    return f"{whole}\\frac{{{over}}}{{{under}}}" if 0 < int(over) < int(under) else match[0]


def _over(match: re.Match) -> str:
    over, under = match.groups()[:2] if match[1] is not None else match.groups()[2:]
    return f"\\frac{{{over.strip()}}}{{{under.strip()}}}"


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
        text = _MARKUP.sub(" ", text)
    if "*" in text or "_" in text or "`" in text:
        text = _unmarked(text)
    if "\\" in text:
        text = re.sub(r"\\text\w*\{\s*(?:\$([^$]*)\$|\\\(([^$]*?)\\\))\s*\}", r"{\1\2}", text)  # a formula after all
        text = re.sub(r"\{\\rm(?![a-zA-Z])\s*(?:\\\s)?\s*([a-zA-Z ]+)\}", r"\\text{ \1}", text)
        text = _NAMED.sub(r"\\\1 ", _WRAPPERS.sub(" ", text))
    return _unbraced(text.strip())


def _unmarked(text: str) -> str:
    text = text.strip()
    inner = re.sub(r"(?<![\\.,;:])(?<!\\right)[.,;:]+$", "", text)  # but no thin space
    for _ in range(3):
        for mark in ("***", "**", "__", "```", "``", "`", "*", "_"):
            if len(inner) > 2 * len(mark) and inner.startswith(mark) and inner.endswith(mark):
                inner = inner[len(mark) : -len(mark)].strip()
                break
    return _BOLD.sub(r" \2 ", inner) if "`" in inner or re.search(r"\*\*\s*[^*]*\D\s*\*\*", inner) else inner


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
