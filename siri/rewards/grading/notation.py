"""Commands and signs of LaTeX and of plain text that mean the same, and the one that stays."""

import re

from siri.rewards.grading.derivatives import as_fractions
from siri.rewards.grading.measures import measure

# Codes and signs of currencies in letters, before an amount or behind it; money.py knows which is which.
CODES = (
    "USD|EUR|GBP|JPY|CNY|RMB|INR|Rs|KRW|CHF|MXN|PHP|RUB|BRL|PLN|SEK|NOK|DKK|TRY|THB|CAD|AUD|HKD|SGD|NZD|RM|MYR|IDR|ZAR|"
    "AED|SAR|PKR|BDT|NGN|KES|VND|HUF|CZK|ILS|UAH"
)
_SCRIPT = r"(?:\{([^{}]+)\}|([a-z\d]))"


def _bracketed(match: re.Match) -> str:
    return f"\\text{{ {match[1]}}}" + (f"^{match[2]}" if match[2] else "")


def _unbracketed(match: re.Match) -> str:
    """A unit without the brackets around it; the brackets stay around anything but units."""
    words = re.findall(r"[a-zA-Z]+", re.sub(r"\\[a-zA-Z]+", " ", match[1]))
    known = all(measure(word) or word.casefold() in ("square", "cubic", "per") for word in words)
    return f" {match[1]}" if known else match[0]


def _permuted(match: re.Match) -> str:
    """{}_nP_k, the ways to put k of n things in a row."""
    of_these, taken = int(match[1]), int(match[2])
    return f"\\frac{{{of_these}!}}{{{of_these - taken}!}}" if taken <= of_these else match[0]


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


REPLACEMENTS = [
    (needle, re.compile(pattern), replacement)
    for needle, pattern, replacement in (
        ("", r"(?<!\\)\\[\[\]()]|\\?\$", " "),  # math delimiters and dollar signs
        ("^", r"\\(?:text|mathrm)\s*\{([^{}^]*[a-zA-Z.])\s*\^\s*(?:\{\s*([23])\s*\}|([23]))\s*\}", r"\\text{\1}^\2\3"),
        ("\\pounds", r"\\pounds(?![a-zA-Z])", " "),
        # 20\left(\mathrm{~km} / \mathrm{h}\right)
        (
            "(",
            r"(?:(?<=[\d}])|(?<=\\pi))(?:\s|\\[,;: ]|~)*(?:\\left\s*)?\(\s*((?:\\(?:text|mathrm|operatorname)\s*"
            r"\{[~\s\\,;]*+[a-zA-Z./ ]++(?:\^\s*\{?-?\d\}?\s*)?\}\s*+(?:\^\s*(?:\{\s*-?\d\s*\}|\d)\s*+)?"
            r"(?:(?:/|\\cdot)\s*+)?){1,4})(?:\\right\s*)?\)$",
            lambda match: _unbracketed(match),
        ),
        (
            "(",
            r"(?<=[\d}])(?:\s|\\[,;: ]|~)*\(\s*\\(?:text|mathrm)\s*\{[\s~]*([a-zA-Z./ ]+)\}"
            r"\s*(\^\s*\{?\s*[23]\s*\}?)?\s*\)$",
            r"\\text{ \1}\2",
        ),
        ("\\text", r"(?<=[\d}])\s*\\text\{\s*\(([a-zA-Z./ ]+)\}\s*(\^\s*\{?\s*[23]\s*\}?)\s*\)?$", r"\\text{ \1}\2"),
        (
            "\\text",
            r"(?<=[\d}])\s*\\text\{\s*\(([a-zA-Z./ ]+)\s*(?:\^\s*\{?([23])\}?)?\)\s*\}$",
            lambda match: _bracketed(match),
        ),
        (
            "(",
            r"(?<=\d)(?:\s|\\[,;: ]|~)*\(\s*(cm|mm|km|kg|ft|sec|min|hours?|minutes?|seconds?|days?|years?|inches|feet|"
            r"met(?:er|re)s?|miles?|units?)\s*(\^\s*\{?\s*[23]\s*\}?)?\s*\)$",
            r"\\text{ \1}\2",
        ),
        ("{", r"(?<=\d)(?:\s|\\[,;: ])*\{\s*\}\s*(?=\^)", ""),
        ("\\", r"\\(?:left|right)\s*\.|\\(?:left|right|middle|[bB]igg?[lmr]?)(?![a-zA-Z])", ""),
        ("{", r"(?<=\d)(?:\{\s*(?:,|\\,)\s*\}|\\text\s*\{,\})\s*(?=\d{3}(?!\d))", ""),
        (
            "",
            r"(?<=[\d}i])\s*,?\s*(?:\(\s*)?\\text\{[\s,]*\(? *(?:which is )?(?:approximately|approx\.?|about|"
            r"roughly)\s*"
            r"(?:\}\s*(-?\d[\d.]*)\s*(?:\)|\\text\{\s*\)\s*\})?|(-?\d[\d.]*) *\)?\s*\}\s*\)?)$",
            r" \\approx \1\2",
        ),
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
        ("\\", r"(?<=\d)(?<!\d{4})(?:,\s*\\!|\\!\s*,|\\,)\s*(?=\d{3}(?!\d))", ""),
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
        ("/", r"^.*(?:d|\\partial).*$", lambda match: as_fractions(match[0])),
        ("\\over", r"\{([^{}]*)\\over(?![a-zA-Z])([^{}]*)\}|^([^{}]*)\\over(?![a-zA-Z])([^{}]*)$", lambda m: _over(m)),
        # ^1/_2, as slanted fractions are made
        ("_", r"(?<![a-zA-Z_.})])(?:\{ *\})?\^\{?(\d+)\}?(?:\\!)? ?/ ?(?:\\!)?_\{?(\d+)\}?", r"\\frac{\1}{\2}"),
        ("\\root", r"\\root\s*\{?\s*(\d+)\s*\}?\s*\\of", r"\\sqrt[\1]"),
        ("\\vert", r"\\vert(?![a-zA-Z])", "|"),
        ("\\mid", r"^([^{}]*)\\mid(?![a-zA-Z])([^{}]*)\\mid(?![a-zA-Z])([^{}]*)$", r"\1|\2|\3"),
        ("\\mid", r"(?<=P\()([^()]*)\\mid(?![a-zA-Z])", r"\1|"),
        ("\\", r"\^\s*\{?\s*\\(?:top|intercal)(?![a-zA-Z])\s*\}?", "^T"),
        ("\\implies", r"\\implies(?![a-zA-Z])", r"\\Rightarrow"),
        ("\\iff", r"\\iff(?![a-zA-Z])", r"\\Leftrightarrow"),
        ("\\overline", r"\\overline\s*\{\s*([A-Z]\s*[A-Z])\s*\}(?=\s*\\(?:parallel|perp|cong)(?![a-zA-Z]))", r"\1"),
        ("\\overline", r"(\\parallel|\\cong|\\perp)\s*\\overline\s*\{\s*([A-Z]\s*[A-Z])\s*\}", r"\1 \2"),
        ("|", r"^\|\s*\\begin\{array\}\s*\{[lcr|\s]*\}(.*)\\end\{array\}\s*\|$", r"\\begin{vmatrix}\1\\end{vmatrix}"),
        (
            "\\det",
            r"\\det\s*\(?\s*\\begin\{[pb]matrix\}(.*?)\\end\{[pb]matrix\}\s*\)?$",
            r"\\begin{vmatrix}\1\\end{vmatrix}",
        ),
        ("out", r"^\s*(\d+)\s*(?:\\text\{\s*out\s+of\s*\}|\s+out\s+of\s)\s*(\d+)\s*$", r"\\frac{\1}{\2}"),
        ("out", r"^\\text\{\s*(\d+)\s+out\s+of\s+(\d+)\s*\}$", r"\\frac{\1}{\2}"),
        ("\\surd", r"\\surd(?![a-zA-Z])", r"\\sqrt"),
        ("paren", r"\\([lr])paren(?![a-zA-Z])", lambda match: "(" if match[1] == "l" else ")"),
        ("brack", r"\\([lr])brack(?![a-zA-Z])", lambda match: "[" if match[1] == "l" else "]"),
        ("\\big", r"\\big(cup|cap)(?![a-zA-Z])(?!\s*[_^])", r"\\\1"),
        ("\\math", r"\\math(?:bb|rm|cal|sf|bf)\s*\{\s*(P|E|Pr|Var)\s*\}(?=\s*[(\[])", r"\1"),
        (
            "\\text",
            r"\s*,?\s*\\text\{[\s,]*(?:which is )?(?:attained|achieved|reached) (?:at|when|for|if)\s*\}[^{}]{1,40}$",
            "",
        ),
        (
            "\\text",
            r"(?<=[\d}])\s*\\text\{([^{}]*(?:\bof|pairs|triples|tuples|values|solutions))\s*\}\s*"
            r"(?:[a-zA-Z]|\([a-z](?:,\s*[a-z])+\))$",
            r"\\text{\1}",
        ),
        (
            "\\operatorname",
            r"\\operatorname\s*\{\s*(span|rank|dim|tr|ker|im|deg|proj|sgn|adj|Var|Cov|diag)\s*\}",
            r"\\text{\1}",
        ),
        ("\\Bbb", r"\\Bbb(?![a-zA-Z])", r"\\mathbb"),
        ("+/", r"\+ ?/ ?-", r"\\pm "),
        ("\\mathbb", r"\\mathbb\s*([RZNQC])(?![a-zA-Z])", r"\\mathbb{\1}"),
        ("\\", r"(?<!\\)\\([RZNQ])(?![a-zA-Z])", r"\\mathbb{\1}"),
        ("\\in", r"(?<=\\in)\s+([RZNQ])(?![a-zA-Z_'(\[])", r" \\mathbb{\1}"),
        ("R", r"^R\s*(?=\\(?:setminus|backslash|smallsetminus)(?![a-zA-Z])|-\s*\\\{)", r"\\mathbb{R}"),
        # as siunitx has it
        ("\\", r"\\(?:SI|qty)\s*\{([^{}]*)\}\s*\{([^{}\\]*)\}", r"\1\\text{ \2}"),
        ("\\", r"\\(?:si|unit)\s*\{([^{}\\]*)\}", r"\\text{ \1}"),
        ("\\ang", r"\\ang\s*\{(\d+(?:\.\d+)?)\}", r"\1^\\circ "),
        (
            "\\mu",
            r"(?<=[\d}]) *(?:\\(?:text|mathrm)\{ *\\mu|\\mu *\\(?:text|mathrm)\{) *([mgs]) *\}",
            r"\\text{ micro\1}",
        ),
        (
            "\\mu",
            r"(?<=[\d}]) *(?:\\(?:text|mathrm)\{ *\\mu *\}? *(?:\\(?:text|mathrm)\{)?|\\mu *\\(?:text|mathrm)\{) *"
            r"([CFAVWJTHLN]) *\}",
            r"\\text{ u\1}",
        ),
        ("\\AA", r"(?:\\(?:text|mathrm)\{ *)?\\AA(?![a-zA-Z]) *\}?$", r"\\text{ angstrom}"),
        ("\\mathring", r"\\mathring *\{ *(?:\\(?:text|mathrm)\{ *)?A *\}? *\}$", r"\\text{ angstrom}"),
        ("\\forall", r"(?<=\S)\s*,?\s*(?:\\text\{\s*,?\s*\}\s*)?\\forall(?![a-zA-Z])\s*", r" \\text{ for all } "),
        ("\\{", r"^\s*([a-z])\s*=\s*(?=\\\{[^{}=]*(?:\{[^{}]*\}[^{}=]*)*\\\}$)", r"\1 \\in "),
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
        ("\\", r"\\(?:thickapprox|approxeq|(?:simeq|cong|doteq)(?=\s*-?[\d.]))(?![a-zA-Z])", r"\\approx "),
        ("\\uppi", r"\\uppi(?![a-zA-Z])", r"\\pi "),
        (" to ", r"^\\text\{\s*(\d+)\s+to\s+(\d+)\s*\}$", r"\1:\2"),
        ("US", r"^US\s*\\?\$?\s*(?=[\d.])", ""),
        (
            "",
            rf"^(?:\\text\{{\s*)?(?:{CODES})\.?\s*(?:\}}\s*)?(?:\\[,;: ]\s*)?(?=[\d.])(?!\.\D)",
            "",
        ),
        ("", rf"(?<=\d)\s*(?:\\text\{{\s*)?(?<![a-zA-Z])(?:{CODES})\.?\s*\}}?$", ""),
        (":=", r":=", "="),
        ("\\mapsto", r"^([a-zA-Z])\s*:\s*([a-zA-Z])\s*\\mapsto(?![a-zA-Z])", r"\1(\2)="),
        ("\\equiv", r"(?<![\\a-zA-Z])([fgh]) ?(?:\(x\))? ?\\equiv(?![a-zA-Z])(?!.*mod)", r"\1(x)="),
        ("//", r"(?<=[A-Z]) ?// ?(?=[A-Z])", r" \\parallel "),
        ("\\mathbf", r"\\mathbf\s*\{\s*([ZQ])\s*\}", r"\\mathbb{\1}"),
        ("\\text", r"\\text\{\s*[.,;:]\s*\}$", ""),
        ("\\equiv", r"^([a-zA-Z]\([a-zA-Z]\))\s*\\equiv(?![a-zA-Z])(?!.*mod)", r"\1="),
        (",", r",\s*(?:\.\.\.|\\[lc]?dots(?:c(?![a-zA-Z]))?)\s*,", r",\\ldots ,"),
        ("", r"([,+<=*-]|\\(?:cdot|times|le) ?)\s*(?:\.{3,}|\\(?:[lc]?dots[cbmio]?)(?![a-zA-Z]))", r"\1\\ldots "),
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
        ("\\ell", r"(?<![a-zA-Z\\])\\ell\s*(?=(?:_\s*\{?\d\}?\s*)?(?::|\\colon))", "l"),
        ("\\colon", r"\\colon(?![a-zA-Z])", ":"),
        ("\\lbrace", r"\\lbrace(?![a-zA-Z])", r"\\{"),
        ("\\rbrace", r"\\rbrace(?![a-zA-Z])", r"\\}"),
        ("<=", r"<=", r"\\le "),
        (">=", r">=", r"\\ge "),
        ("!=", r"(?<=[\d)])!=(?=-?\d)", "! ="),
        ("!=", r"!=(?!=)", r"\\ne "),
        ("\\lt", r"\\lt(?![a-zA-Z])", "<"),
        ("\\gt", r"\\gt(?![a-zA-Z])", ">"),
        ("d", r"(?<=\d)\s*\\(?:mathrm|text)\s*\{\s*d\s*\}$", r"\\text{ days}"),
        ("{", r"\\(?:mathrm|text|mathit|operatorname)\s*\{\s*([eid])\s*\}", r"\1"),
        ("\\mathrm d", r"\\mathrm d(?=[\^\sa-z\\])", "d"),
        ("pi", r"\\(?:mathrm|text|mathit|operatorname)\s*\{\s*pi\s*\}", r"\\pi "),
        (
            "\\",
            r"\\(?:text(?:normal|rm|bf|it|sf|tt|up|md)?|emph|mbox|hbox|mathrm|mathsf|mathtt|mathit)\s*\{",
            r"\\text{",
        ),
        ("\\circ", r"\(? *\b([a-zA-Z]) *\\circ *([a-zA-Z]) *\)? ?\( *([a-z]|-?\d+) *\)", r"\1(\2(\3))"),
        (
            "\\circ",
            r"(?<=[a-zA-Z)'}]) *(?<!\^)(?<!\^\{)\\circ *(?=[a-zA-Z(]|"
            r"\\(?:sin|cos|tan|exp|ln|sigma|tau|pi|phi|varphi|psi|alpha|beta|rho)(?![a-zA-Z]))",
            r"\\composed ",
        ),
        (
            "",
            r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\circ\b|(?<=\d)\^\s*\{?\s*(?:\\text\{\s*)?o\s*\}{0,2}(?![a-zA-Z])",
            r"\\text{degree}",
        ),
        (
            "deg",
            r"\\text\{\s*(?:degrees?|deg)\.?\s*\}|(?<=\d)\s*(?:degrees?|deg)\b|\\deg(?:ree)?s?(?![a-zA-Z])|"
            r"\^\{?\\degree\}?",
            r"\\text{degree}",
        ),
        (
            "\\text{degree}",
            r"(?<=\d)\s*\\text\{degree\}\s*(?:\\text\{\s*)?([CF])(?:elsius|ahrenheit)?\s*\}?$",
            lambda match: "\\text{ celsius}" if match[1] == "C" else "\\text{ fahrenheit}",
        ),
        ("\\text", r"\\text\{\s*u\s*\}\s*(?=\^)", r"\\text{ units}"),
        (
            "\\text",
            r"\\frac\s*\{\s*\\text\{([^{}]*)\}\s*\}\s*\{\s*\\text\{([^{}]*)\}\s*\^\s*\{?([23])\}?\s*\}",
            r"\\text{\1/\2}^\3",
        ),
        ("\\frac", r"(?<=\d)\s*\\frac\s*\{\s*(km|mi|ft|cm)\s*\}\s*\{\s*(h|hr|s|min)\s*\}$", r"\\text{ \1/\2}"),
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
        ("=", r"^\\text\{ *([a-zA-Z] *= *-?(?:[\d./ +-]|\\(?:[dt]?frac|sqrt|pi)|\{[\d+-]*\})+) *\}$", r"\1"),
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
        ("C", r"(?<=\+)\s*\\text\{\s*C\s*\}$", "C"),
        ("C", r"^\\text\{\s*C\s*\}\s*(?=\+)", "C"),
        ("choose", r"(\d+|(?<![a-zA-Z])[a-z]) *\\text\{ *choose *\} *(\d+|[a-z](?![a-zA-Z]))", r"\\binom{\1}{\2}"),
        ("choose", r"(\d+|(?<![a-zA-Z])[a-z]) +choose +(\d+|[a-z](?![a-zA-Z]))", r"\\binom{\1}{\2}"),
        (
            "P",
            r"(?<![\w})])(?:\{ *\})?[_^]\{?(\d{1,3})\}? *(?:\\text\{ *P *\}|P) *_ *\{?(\d{1,3})\}?(?!\d)",
            lambda match: _permuted(match),
        ),
        ("\\frac", r"\\frac\s*([0-9a-zA-Z])", r"\\frac{\1}"),
        ("\\frac", r"(\\frac\{[^{}]*\})\s*([0-9a-zA-Z])", r"\1{\2}"),
        ("\\sqrt", r"\\sqrt\s*([0-9a-zA-Z])", r"\\sqrt{\1}"),
        ("\\infty", r"\+\s*\\infty", r"\\infty"),
        ("{", r"([_^])\s*\{\s*(\w)\s*\}(?!\d)", r"\1\2"),
        ("_{10}", r"(?<=\d)_\{10\}\s*$", ""),
        ("/", r"(?<![\d.^_/{}])(\d+) +(\d+) ?/ ?(\d+)(?![\d./^!a-zA-Z(])", lambda match: _mixed(match)),
        # a percentage of the fraction, not one divided by a percentage
        ("\\%", r"(?<![\d.^_/{}\w)])(\d+) ?/ ?(\d+) ?\\%", r"\\frac{\1}{\2}\\%"),
        (
            "all",
            r"^(?:\\text\{ ?)?(?:for )?all (?:real(?: numbers?)?|reals)? *\}? *(?=[a-zA-Z] ?(?:[<>]|\\[lgn]e ))",
            "",
        ),
        ("\\ne ", r"^([a-zA-Z]) *\\ne +\\pm *([^-+,;<>=]+)$", r"\1\\ne \2, \1\\ne -\2"),
        ("all ", r"^\\text\{ ?all integers ?\} ?(n *(?:\\[lg]e |[<>]) *-?\d+)$", r"\\{n\\in\\mathbb{Z}\\mid \1\\}"),
        ("\\in", r"^(n *(?:\\[lg]e |[<>]) *-?\d+) *, *n *\\in *\\mathbb\{Z\}$", r"\\{n\\in\\mathbb{Z}\\mid \1\\}"),
        ("all", r"^(?:\\text\{ ?)?(?:for )?all *\}? *(?=[a-zA-Z] ?(?:[<>]|\\[lgn]e |\\in ))", ""),
    )
]
"""In this order: what has to be in the text for it to be worth a try, a pattern, and its replacement."""
