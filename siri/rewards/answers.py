"""When are two written answers the same? Text first, then structure, and math-verify for the scalars inside.

math-verify alone compares what is left after it has thrown away number bases, percent signs and the difference between
a pair and a set, and takes the right side of any equation. As a reward that pays for wrong answers, so the structure
(how many answers, which brackets, which unit, which base) is compared here and has to agree before it is asked.
"""

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

# An answer longer than this is compared as text only: parsing takes superlinear time and no gold answer is as long.
MAX_PARSED_CHARS = 512
# One this much longer than the gold answer is wrong unread: nothing that is cleaned away takes as many characters.
MAX_EXTRA_CHARS = 200_000

_UNITS = {
    variant: unit
    for unit, variants in {
        "millimeter": "mm millimetre",
        "centimeter": "cm centimetre",
        "meter": "m metre",
        "kilometer": "km kilometre",
        "inch": "in inches",
        "foot": "ft feet",
        "yard": "yd",
        "mile": "mi",
        "second": "s sec",
        "minute": "min",
        "hour": "h hr",
        "day": "",
        "week": "",
        "month": "",
        "year": "yr",
        "gram": "g",
        "kilogram": "kg",
        "ounce": "oz",
        "pound": "lb",
        "liter": "l litre",
        "gallon": "gal",
        "acre": "",
        "cent": "",
        "dollar": "usd",
        "euro": "",
        "mph": "",
        "degree": "",
        "am": "",
        "pm": "",
        "square": "sq",
        "cubic": "cu",
    }.items()
    for variant in (unit, *variants.split())
}

_REPLACEMENTS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<!\\)\\[\[\]()]|\\?\$", " "),  # math delimiters and dollar signs
        (r"\\(?:left|right)\s*\.|\\(?:left|right|[bB]igg?[lmr]?)(?![a-zA-Z])", ""),
        (r"(?<=\d)(?:,\s*\\!|\\!\s*,|\{,\}|\\,)\s*(?=\d{3}(?!\d))", ""),  # thousands, as LaTeX spaces them
        (r"(?<!\\)\\!", ""),
        (r"(?:(?<!\\)\\(?:[,;: ]|(?:q?quad|displaystyle|textstyle)(?![a-zA-Z]))|~|\s)+", " "),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\mathrm\s*\{([eid])\}", r"\1"),
        (r"\\(?:text(?:normal|rm|bf|it)|mbox|mathrm|mathbf|mathit)\s*\{", r"\\text{"),
        (
            r"\\text\{\s*degrees?\s*\}|(?<=\d)\s*degrees?\b|\^\s*(?:\{\s*\\circ\s*\}|\\circ)|°|\\degree(?![a-zA-Z])",
            r"\\text{degree}",
        ),
        (r"\\text\{\s*percent\s*\}|(?<=\d)\s*percent\b|\\?%", r"\\%"),
        (r",?\s*\\text\{\s*,?\s*(?:and|or)\s*\}|,?\s+(?:and|or)\s+", ","),
        (r"\\frac\s*([0-9a-zA-Z])", r"\\frac{\1}"),
        (r"(\\frac\{[^{}]*\})\s*([0-9a-zA-Z])", r"\1{\2}"),
        (r"\\sqrt\s*([0-9a-zA-Z])", r"\\sqrt{\1}"),
        (r"\+\s*\\infty", r"\\infty"),
        (r"([_^])\s*\{\s*(\w)\s*\}", r"\1\2"),
        (r"(?<=\d)_\{10\}\s*$", ""),
    )
]
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?=[^,\d][^,]*$|$)")
_BOX_OR_BRACE = re.compile(r"(?P<box>\\+f?box(?:ed)?\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)
_MEMBER = re.compile(r"[a-zA-Z]\s*\\in(?![a-zA-Z])\s*")
_RELATION = re.compile(r"[<>≤≥≠]|\\(?:[lg]eq?(?:slant)?|[lg]t|neq?)(?![a-zA-Z])")
_WORD = re.compile(r"\\text\{[^{}]*[a-zA-Z][^{}]*\}|[A-Z]{2,}|[A-Z]?[a-z]{3,}")
_MATRIX = re.compile(r"\\begin\{([pb]?matrix)\}(.*)\\end\{\1\}", re.DOTALL)
_NUMBER = re.compile(r"\d+(?:\.\d*)?|\.\d+", re.ASCII)
_IN_BASE = re.compile(r"-?[0-9A-F]+_(?:\d|\{\d+\})")
_DECIMAL = re.compile(r"[-+]?(?:\d+\.?(\d*)|\.(\d+))")
_FRACTION = re.compile(r"([-+]?)(\d*)\\frac\{(-?\d+)\}\{(-?\d+)\}")
_SLASHED = re.compile(r"([-+]?)()(\d+)/(\d+)")
_TEXT_UNIT = re.compile(r"(.*\d.*?)\s*\\text\{([^{}]*)\}\s*(?:\^\s*([23]))?")
_PLAIN_UNIT = re.compile(r"(.*[\d})])\s*?(?<=[\d})\s])([a-zA-Z][a-zA-Z.][a-zA-Z. ]*)(?:\^\s*([23]))?")


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}` (or `\fbox{...}`) in `text`; None when there is none."""
    open_braces: list[int | None] = []  # where a box's content starts; None for any other brace
    start, end = -1, -1
    for token in _BOX_OR_BRACE.finditer(text):
        if token["close"]:
            opened = open_braces.pop() if open_braces else None
            if opened is not None and opened > start:
                start, end = opened, token.start()
        elif token["open"] or token["box"]:  # the third kind is an escaped character, braces among them
            open_braces.append(token.end() if token["box"] else None)
    return text[start:end].strip() if start >= 0 else None


def same_answer(gold: str, answer: str) -> bool:
    """Whether `answer` is the answer `gold`, both LaTeX or plain text. May be slow for a hostile `answer`: time it."""
    if len(answer) > len(gold) + MAX_EXTRA_CHARS:
        return False
    return any(_same(g, a) for g in _readings(_clean(gold)) for a in _readings(_clean(answer)))


def _readings(text: str) -> list[str]:
    """`text`, and if it may be a number with thousands separators that number, too: "81,256" is one number or two."""
    number = _THOUSANDS.match(text)
    return [text, number[0].replace(",", "") + text[number.end() :]] if number else [text]


def _clean(text: str) -> str:
    """One spelling for what LaTeX spells in many ways. Structure, numbers and words are left alone."""
    text = (last_boxed(text) or text).strip()
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    text = text.strip().rstrip(" .,;:")
    if "\\approx" in text:  # "\frac23 \approx 0.67": the first is the answer, the second a service
        text = next((part.strip() for part in text.split("\\approx") if part.strip()), "")
    return text


def _squeezed(text: str) -> str:
    """Without spaces, but for those between digits: "1 5" is not 15."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)


def _key(text: str) -> str:
    """What is compared as text: no spaces, no text commands; words and choice letters without case."""
    key = _squeezed(re.sub(r"\\text\{([^{}]*)\}", r"\1", text))
    choice = re.fullmatch(r"\(([A-Za-z])\)", key)
    if choice:
        return choice[1].upper()
    return key.casefold() if re.fullmatch(r"[A-Za-z]{2,}", key) else key


def _same(gold: str, answer: str) -> bool:
    gold, answer = gold.strip(), answer.strip()
    if not gold or not answer:
        return False
    if _key(gold) == _key(answer):
        return True
    if max(len(gold), len(answer)) > MAX_PARSED_CHARS:
        return False
    gold, answer = (_MEMBER.sub("", text, count=1) if _MEMBER.match(text) else text for text in (gold, answer))

    relations = [bool(_RELATION.search(text)) for text in (gold, answer)]
    if any(relations):
        other = answer if relations[0] else gold
        return (all(relations) or _looks_like_an_interval(other)) and _verify(gold, answer)

    golds, answers = _members(gold), _members(answer)
    if len(golds) > 1 or len(answers) > 1:
        return _same_in_any_order(golds, answers)
    gold, answer = golds[0], answers[0]

    golds, answers = _split(gold, "="), _split(answer, "=")
    if len(golds) > 1 or len(answers) > 1:
        return _same_equation(golds, answers)

    if _WORD.fullmatch(gold) or _WORD.fullmatch(answer):
        return False  # math-verify would take a word for a product of letters, in any order
    golds, answers = gold.split("\\cup"), answer.split("\\cup")
    if len(golds) > 1 or len(answers) > 1:
        return _same_in_any_order(golds, answers)
    for parts in (_bracketed, _matrix_cells, _ratio):
        gold_parts, answer_parts = parts(gold), parts(answer)
        if gold_parts or answer_parts:
            if not gold_parts or not answer_parts or gold_parts[0] != answer_parts[0]:
                return False
            return all(map(_same, gold_parts[1], answer_parts[1]))
    return _same_scalar(gold, answer)


def _split(text: str, separators: str) -> list[str]:
    """`text` at the separators that are outside of all brackets."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        if char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif depth == 0 and char in separators:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]


def _enclosed(text: str) -> bool:
    """Whether the first bracket of `text` closes with its last character."""
    depth = 0
    for i, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if depth == 0:
            return i == len(text) - 1
    return False


def _members(text: str) -> list[str]:
    """The answers of a list or set, whose order means nothing; `a \\pm b` is two of them."""
    text = text.strip()
    if text.startswith("\\{") and text.endswith("\\}") and _enclosed(text[1:-2] + "}"):
        text = text[2:-2]
    elif text.startswith("{") and text.endswith("}") and _enclosed(text):
        text = text[1:-1]
    members = []
    for part in _split(text, ",;"):
        if part.count("\\pm") == 1:
            members += [part.replace("\\pm", sign) for sign in "+-"]
        else:
            members.append(part)
    return members


def _same_in_any_order(golds: list[str], answers: list[str]) -> bool:
    if len(golds) != len(answers):
        return False
    left = list(answers)
    for gold in golds:
        found = next((i for i, answer in enumerate(left) if _same(gold, answer)), None)
        if found is None:
            return False
        del left[found]
    return True


def _bracketed(text: str) -> tuple | None:
    """Shape and elements of a tuple or interval, whose order and brackets mean something."""
    text = text.strip()
    if not text or text[0] not in "([" or text[-1] not in ")]" or not _enclosed(text):
        return None
    elements = _split(text[1:-1], ",;")
    return ((text[0], text[-1], len(elements)), elements) if len(elements) > 1 else None


def _looks_like_an_interval(text: str) -> bool:
    return "\\cup" in text or _bracketed(text) is not None


def _matrix_cells(text: str) -> tuple | None:
    match = _MATRIX.fullmatch(text.strip())
    if not match:
        return None
    rows = [row.split("&") for row in match[2].strip().removesuffix("\\\\").split("\\\\")]
    return tuple(map(len, rows)), [cell for row in rows for cell in row]


def _ratio(text: str) -> tuple | None:
    """The parts of a ratio or a time of day. math-verify would call 8:34 and 4:17 the same quotient."""
    parts = _split(text, ":")
    return (len(parts), parts) if len(parts) > 1 else None


def _same_equation(golds: list[str], answers: list[str]) -> bool:
    """Compares what is between equals signs, where one side or both have some."""
    if len(golds) == len(answers) == 2 and _key(golds[0]) == _key(answers[0]):
        return _same(golds[1], answers[1])
    if len(golds) > 1 and len(answers) > 1:
        return _verify("=".join(golds), "=".join(answers))
    named = golds if len(golds) > 1 else answers
    return _only_names_a_value(named[0]) and _same(golds[-1], answers[-1])


def _only_names_a_value(side: str) -> bool:
    """`x` or `f(x)`, or a number: `x = 5` is 5 and `1/2 = 0.5` is 0.5, but `x + y = 0` is not 0."""
    name = re.sub(r"_(?:\w|\{[^{}]*\})", "", side)
    return not re.search(r"[-+*/^\d]", name) or not re.search(r"[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", name))


def _same_scalar(gold: str, answer: str) -> bool:
    (gold, gold_unit), (answer, answer_unit) = _without_unit(gold), _without_unit(answer)
    if gold_unit and answer_unit and gold_unit != answer_unit:
        return False
    if gold.endswith("\\%") and "%" not in answer and _same_scalar(gold.removesuffix("\\%").strip(), answer):
        return True  # "what percent ...?" is answered by the number; the other way round 5% is not 5
    if any(_IN_BASE.fullmatch(text.strip()) for text in (gold, answer)):
        return _key(gold) == _key(answer)
    exact = _rational(gold), _rational(answer)
    if None not in exact:
        (a, a_digits), (b, b_digits) = exact
        digits = max(a_digits, b_digits)
        # a rounded decimal counts from six digits on, as in math-verify: 0.333333 is 1/3, 0.33 is not
        return a == b or (digits >= 6 and abs(a - b) <= Fraction(1, 2 * 10**digits))
    return _verify(*(re.sub(r"^(.*?)\s*\\%$", r"\\frac{\1}{100}", text) for text in (gold, answer)))


def _without_unit(text: str) -> tuple[str, tuple | None]:
    """The quantity, and its unit where every word of it is a known measure. Unknown nouns ("9 values") are dropped."""
    text = text.strip()
    match = _TEXT_UNIT.fullmatch(text)
    known_only = match is None
    match = match or _PLAIN_UNIT.fullmatch(text)
    if match is None:
        return text, None
    quantity, words, power = match.groups()
    words = words.replace(".", "").casefold().split()
    unit = [_UNITS.get(word, _UNITS.get(word.removesuffix("s"))) for word in words]
    unit += [{"2": "square", "3": "cubic"}[power]] if power else []
    if None in unit:
        # without \text, letters after a number are a unit only if we know it (and single ones never): 2xy is not 2
        return (text, None) if known_only else (quantity, None)
    return quantity, tuple(sorted(unit))


def _rational(text: str) -> tuple[Fraction, int] | None:
    """The exact value of an integer, decimal, fraction or mixed number, and how many decimals it was written with."""
    text = _squeezed(text)
    percent = text.endswith("\\%")
    text = text.removesuffix("\\%")
    digits = 0
    if decimal := _DECIMAL.fullmatch(text):
        value = Fraction(text)
        digits = len(decimal[1] or decimal[2] or "")
    elif (match := _FRACTION.fullmatch(text) or _SLASHED.fullmatch(text)) and int(match[4]):
        sign, whole, numerator, denominator = match.groups()
        value = (int(whole or 0) + Fraction(int(numerator), int(denominator))) * (-1 if sign == "-" else 1)
    else:
        return None
    return (value / 100, digits + 2 if digits else 0) if percent else (value, digits)


def _verify(gold: str, answer: str) -> bool:
    """math-verify on two scalars, equations or inequalities."""
    from math_verify import verify

    golds, answers = _parse(gold), _parse(answer)
    if not golds or not answers:
        return False
    values = _number(golds[0]), _number(answers[0])
    # math-verify rounds to six decimals, absolutely: without this, 3e-8 and 5e-9 would be one number. It also spares
    # the symbolic simplification wherever two plain numbers differ.
    if None not in values and abs(values[0] - values[1]) > 1e-5 * max(map(abs, values)):
        return False
    # no timeout of its own: that is a signal, which works on the main thread only; the reward worker is killed instead
    return verify(golds, answers, allow_set_relation_comp=True, timeout_seconds=None)


def _parse(text: str) -> list:
    from math_verify import LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that we switched its timeout off
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text.replace("\\text{degree}", ""))
    # its list of units holds most single letters: 2m and 2t would both be 2
    normalization = replace(LatexExtractionConfig().normalization_config, units=False)
    config = (LatexExtractionConfig(boxed_match_priority=0, normalization_config=normalization),)
    with _numbers_only():
        return parse(f"\\boxed{{{text}}}", config, fallback_mode="no_fallback", parsing_timeout=None)


@contextlib.contextmanager
def _numbers_only() -> Iterator[None]:
    """The LaTeX parser hands the digits it finds to sympy's parser of Python text, which evaluates what it is given.
    Meanwhile that parser is replaced by one that knows decimal numbers and nothing else."""
    import sympy.physics.units  # names its units through that parser when it is imported, which the LaTeX parser does
    from sympy.parsing import sympy_parser

    def parse_number(text: str, *_: object, **__: object) -> sympy.Number:
        if not _NUMBER.fullmatch(text):
            raise SyntaxError("not a decimal number")
        return sympy.Integer(int(text)) if text.isdigit() else sympy.Float(text)

    evaluating = sympy_parser.parse_expr
    sympy_parser.parse_expr = parse_number
    try:
        yield
    finally:
        sympy_parser.parse_expr = evaluating


def _number(expression) -> complex | None:
    from sympy import Expr

    if not isinstance(expression, Expr) or expression.free_symbols:
        return None
    try:
        value = complex(expression.doit().evalf())
    except Exception:  # sympy raises anything for what has no value: a limit, a division by zero, a deep nesting
        return None
    return value if max(abs(value.real), abs(value.imag)) < 1e150 else None  # false for nan, too
