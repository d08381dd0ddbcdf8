"""Unicode in ASCII and LaTeX: signs, scripts, fractions, digits of other scripts, circled numbers."""
# ruff: noqa: RUF001 - look-alikes of ASCII are what this is about

import re
import unicodedata

from siri.rewards.grading.chinese import in_chinese

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣ", "0123456789+-=()nix")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₓ", "0123456789+-()nx")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣ]+")
_SUBSCRIPT = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₓ]+")
_GREEK_NAMES = "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi chi psi omega pi"
_GREEK = dict(zip("αβγδεζηθκλμνξρστφχψωπ", re.findall(r"\w+", _GREEK_NAMES), strict=True))
_GREEK |= dict(zip("ΓΔΘΛΞΣΦΨΩ", re.findall(r"\w+", "Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega"), strict=True))
_GREEK |= {"µ": "mu", "ϕ": "phi", "ϵ": "epsilon", "ϑ": "theta", "ς": "sigma", "∆": "Delta", "Ω": "Omega"}
_SIGNS = {sign: f"\\{name} " for sign, name in _GREEK.items()} | {
    sign: spelling
    for signs, spelling in (
        ("−–—‐‑‒―﹣➖", "-"),
        ("·⋅∙•‧⸱・･", "\\cdot "),
        ("×✕✖⨯", "\\times "),
        ("÷", "\\div "),
        ("∕⁄", "/"),
        ("＊∗", "*"),
        ("、，﹐", ", "),
        ("；﹔", ";"),
        ("。．", "."),
        ("⩽≦≤", "\\le "),
        ("⩾≧≥", "\\ge "),
        ("≠", "\\ne "),
        ("≈≒≃≊", "\\approx "),
        ("≅", "\\cong "),
        ("｛﹛", "\\{"),
        ("｝﹜", "\\}"),
        ("（﹙〔⦅", "("),
        ("）﹚〕⦆", ")"),
        ("｛﹛", "\\{"),
        ("｝﹜", "\\}"),
        ("【〖［", "["),
        ("】〗］", "]"),
        ("⟨〈〈", "\\langle "),
        ("⟩〉〉", "\\rangle "),
        ("∣｜", "|"),
        ("⌊", "\\lfloor "),
        ("⌋", "\\rfloor "),
        ("⌈", "\\lceil "),
        ("⌉", "\\rceil "),
        ("∅⌀", "\\emptyset "),
        ("∖⧵", "\\setminus "),
        ("∪⋃", "\\cup "),
        ("∩⋂", "\\cap "),
        ("∈", "\\in "),
        ("ℝ", "\\mathbb{R}"),
        ("ℤ", "\\mathbb{Z}"),
        ("ℂ", "\\mathbb{C}"),
        ("ℚ", "\\mathbb{Q}"),
        ("ℕ", "\\mathbb{N}"),
        ("∧", " and "),
        ("∨", " or "),
        ("∞", "\\infty "),
        ("√", "\\sqrt "),
        ("∛", "\\sqrt[3] "),
        ("∜", "\\sqrt[4] "),
        ("±", "\\pm "),
        ("∓", "\\mp "),
        ("˚º◦°", "^\\circ "),
        ("∘", "\\circ "),
        ("℃", "^\\circ C"),
        ("∠", "\\angle "),
        ("△", "\\triangle "),
        ("≡", "\\equiv "),
        ("→", "\\to "),
        ("…⋯", "\\ldots "),
        ("′’ʹ", "'"),
        ("ℯⅇ", "e"),
        ("ⅈ", "i"),
        ("￥¥€£₹₩", ""),
        ("¢", "\\text{ cents}"),
        ("∶：", ":"),
        ("⁻", "-"),
        ("¬", "\\neg "),
        ("⊃", "\\supset "),
        ("⊇", "\\supseteq "),
        ("⊂", "\\subset "),
        ("⊆", "\\subseteq "),
        ("⊥", "\\perp "),
        ("∂", "\\partial "),
        ("∥", "\\parallel "),
        ("ı", "i"),
        ("✓✔✅☑■□∎▪", "  "),
        ("∉", "\\notin "),
        ("∀", "\\forall "),
        ("∃", "\\exists "),
        ("∄", "\\nexists "),
        ("⟹⇒∴", "\\Rightarrow "),
        ("\u200b\u200c\u200d\u2060\ufeff\u00ad\u2061\u2062\u2063", ""),
    )
    for sign in signs
}
# Statements by their numbers: ①③ are two of them, and not 13.
_CIRCLED = re.compile("[①-⑳](?:\\s*[、，,和与及]?\\s*[①-⑳])+")
# ①或③ is one of two statements, which no pair of values is.
_CIRCLED_CHOICE = re.compile("[①-⑳](?:\\s*+(?:\\\\text\\{\\s*+)?(?:[、，,]|或者?|or)\\s*+\\}?\\s*+[①-⑳])+")
# A unit with its exponent as a sign of its own, which variables rarely have behind a number.
_RAISED_UNIT = re.compile(r"(?<=[\d)}π])[ ~]*(?<![a-zA-Z])([cdkm]?m|ft|in|yd|mi|units?)([²³])(?=[\s.$]*$)")
_MICRO = re.compile(r"(?<=\d)[ ~]*[µμ]([mgsCFAVWJTHL])(?=[\s.$]*$)")
_ANGSTROM = re.compile("[Å\u212b]")
_RELATED = re.compile(r"[=<>≤≥≠⩽⩾≦≧∈]|\\(?:[lg]eq?|[lg]eqslant|neq?|in)(?![a-zA-Z])")
_ASCII = re.compile(r"[\x00-\x7f]*")
_RECURRING_MARKS = (
    (re.compile("(\\d[\u0304\u0305](?:\\d[\u0304\u0305])*)"), "\\overline{%s}"),
    (re.compile("(\\d[\u0307])"), "\\dot{%s}"),
)


def in_ascii(text: str) -> str:
    """`text` in ASCII as far as it has a spelling there."""
    if "\\textcircled" in text:
        text = re.sub(r"\\textcircled\s*(?:\{\s*(1?\d|20)\s*\}|(\d))", _circled, text)
    if _ASCII.fullmatch(text):
        return text
    for pattern, form in _RECURRING_MARKS:
        text = pattern.sub(lambda match, form=form: form % re.sub("[\u0304\u0305\u0307]", "", match[1]), text)
    text = re.sub(r"\}\\overline\{", "", text)
    if ("∧" in text or "∨" in text) and not _RELATED.search(text):
        text = text.replace("∧", "\\land ").replace("∨", "\\lor ")  # of statements, and no solutions of equations
    if "或" in text or "or" in text:
        text = _CIRCLED_CHOICE.sub(_numbered, text)
    text = _CIRCLED.sub(lambda match: ", ".join(re.findall("[①-⑳]", match[0])), text)
    text = in_chinese(text)
    text = _RAISED_UNIT.sub(lambda match: f"\\text{{ {match[1]}}}^{match[2].translate(_SUPERSCRIPTS)}", text)
    text = _MICRO.sub(r"\\text{ u\1}", text)
    text = _ANGSTROM.sub("angstrom", text)
    text = re.sub(r"(?<![\w)\]}])([²³⁴-⁹])\s*√", lambda match: f"\\sqrt[{match[1].translate(_SUPERSCRIPTS)}] ", text)
    text = re.sub(r"(?<![\w)\]}])⁻(?=[\d.])", "-", text)
    text = _SUPERSCRIPT.sub(lambda match: f"^{{{match[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _SUBSCRIPT.sub(lambda match: f"_{{{match[0].translate(_SUBSCRIPTS)}}}", text)
    text = "".join(_SIGNS[char] if char in _SIGNS else _character(char) for char in text)
    # a root sign holds the brackets, number or letter that follows
    return re.sub(r"(\\sqrt(?:\[\d\])?) \s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|[a-zA-Z]))", _rooted, text)


def _circled(match: re.Match) -> str:
    number = int(match[1] or match[2])
    return chr(ord("①") + number - 1) if number else match[0]


def _numbered(match: re.Match) -> str:
    return re.sub("[①-⑳]", lambda sign: f"({_character(sign[0])})", match[0])


def _rooted(match: re.Match) -> str:
    return f"{match[1]}{{{match[2] or match[3] or ''}}}"


def _character(char: str) -> str:
    if char.isascii():
        return char
    if char.isspace():
        return " "
    if (digit := unicodedata.decimal(char, None)) is not None:
        return str(digit)
    plain = unicodedata.normalize("NFKC", char)
    if plain in _SIGNS:  # 𝜋 and its like
        return _SIGNS[plain]
    if "⁄" in plain:  # ½ and its like
        over, _, under = plain.partition("⁄")
        return f"\\frac{{{over}}}{{{under or 1}}}"
    if re.fullmatch("[a-z]+[23]", plain):  # a square centimeter in one character
        return f"\\text{{ {plain[:-1]}}}^{plain[-1]}"
    return plain if plain.isascii() else char
