"""Names that mean nothing by themselves: a variable of a function, an index, a constant of integration, a point."""

import re

from siri.rewards.grading.grammar import NotRead, read, symbols
from siri.rewards.grading.structure import RELATION, split

_DEFINED = re.compile(r"\s*(?:([a-zA-Z])\(([a-df-hj-zA-Z])\)|([a-zA-Z])_\{?([a-zA-Z])\}?)\s*=[^=]*")
_POINT = re.compile(r"[A-Z]\s*(?=\([^()]*,[^()]*\)$)")
_CONSTANT = re.compile(r"(?<=\+)\s*[CcK]$")
_LEADING = re.compile(r"^\s*([CcK])\s*\+\s*([^,;=]+)$")
# The parameter of a line: a point and a direction.
_LINE = re.compile(
    r"(?:\\end\{[pb]?matrix\}|\))\s*[-+]\s*([tsruk]|\\lambda|\\mu)\s*(?=\\begin\{[pb]?matrix\}|\([^()]*,)"
)
# Of a family of angles, of which neither side says through what the letter runs.
_PERIOD = r"(?:\\pi(?![a-zA-Z])|(?:180|360|90)\s*\\text\{degree\})"
_RUNNING = re.compile(
    rf"\+\s*(?:\\frac\s*\{{)?\s*\d?\s*([knm])(?=\s*(?:\\cdot\s*|\\times\s*)?{_PERIOD})"
    rf"|\+\s*(?:\\frac\s*\{{)?\s*\d?\s*{_PERIOD}\s*(?:\\cdot\s*|\\times\s*)?([knm])(?![a-zA-Z_^])"
    rf"|(?:^|[=,])\s*\d?\s*(?:([knm])\s*\\pi|\\pi\s*([knm]))\s*(?=[-+]\s*[\d\\])"
)
_SUMMED = re.compile(r"\\(?:sum|prod)\s*_\s*\{?\s*([a-z])\s*=")
_TURNED = re.compile(r"\\(?:sin|cos)\s*\(?\s*(\\(?:theta|phi|varphi|alpha)|[tu])(?![a-zA-Z])")
_CURVE = re.compile(r"\s*x\s*=[^=]*,\s*y\s*=")
_SOLUTION = re.compile(r"\s*(?:[yuxf](?:\([a-z]\))?)\s*=")
# The variables of an antiderivative, and the letters that are one constant there: c beside K may be a given number.
_INTEGRATED = frozenset(("x", "t", "u", "y", "z", "\\theta"))
_SAME_CONSTANTS = ({"C", "c"}, {"C", "K"})
# No constants by anybody's habit, or known by these letters.
_NEVER_CONSTANTS = frozenset("eixyztn")
_USUAL_CONSTANTS = frozenset("abckmCK")


def letter_alone(name: str) -> re.Pattern:
    return re.compile(rf"(?<![\\a-zA-Z]){re.escape(name)}(?![a-zA-Z])")


def with_names_of(gold: str, answer: str) -> str:
    """`answer` with the names of `gold` for what any letter may stand for: the variable of a function, an index, the
    constant of integration; and without the name of a point."""
    answer = _with_variable(gold, answer)
    answer = _with_letter(_SUMMED, gold, answer)
    if _CURVE.match(gold) and _CURVE.match(answer):  # as a whole: its parts have one parameter
        answer = _with_letter(_TURNED, gold, answer)
    if gold.startswith("(") and answer[0] != "C":
        answer = _POINT.sub("", answer, count=1) if _POINT.match(answer) else answer
    if "\\theta" in gold and "\\theta" in answer and gold.startswith("\\rho") and re.match(r"r\s*=", answer):
        answer = "\\rho" + answer[1:]
    if "\\theta" in gold and "\\theta" in answer and answer.startswith("\\rho") and re.match(r"r\s*=", gold):
        answer = "r" + answer.removeprefix("\\rho")
    if _LINE.search(gold) and _LINE.search(answer):
        answer = _with_letter(_LINE, gold, answer)
    return _with_constants(gold, answer)


def _with_variable(gold: str, answer: str) -> str:
    """f(t) = t^2 as f(x) = x^2."""
    defined = [match.groups() for match in map(_DEFINED.fullmatch, (gold, answer)) if match]
    if len(defined) < 2 or defined[0][::2] != defined[1][::2]:
        return answer
    mine, other = (names[1] or names[3] for names in defined)
    used = [bool(letter_alone(name).search(text.partition("=")[2])) for name, text in ((mine, gold), (other, answer))]
    # of a constant function any letter; f(a) = 3 and P(A) = 3 say something of a or A
    runs = all(used) or (not any(used) and {mine, other} <= set("nktuxyz"))
    if not runs or mine == other or letter_alone(mine).search(answer) or mine in (defined[1][0], defined[1][2]):
        return answer
    return letter_alone(other).sub(mine, answer)


def _with_letter(pattern: re.Pattern, gold: str, answer: str) -> str:
    """With the only letter of `gold` that the pattern knows, for the only such letter of `answer`."""
    golds, answers = ({match[match.lastindex or 0] for match in pattern.finditer(text)} for text in (gold, answer))
    if len(golds) != 1 or len(answers) != 1 or golds == answers:
        return answer
    [mine], [other] = golds, answers
    if _alone(mine).search(answer) or _alone(other).search(gold):
        return answer
    return _alone(other).sub(lambda _: mine + " " * mine.startswith("\\"), answer)


def _alone(name: str) -> re.Pattern:
    """A letter or command, also behind a function without a space and as an index."""
    end = r"(?![a-zA-Z])"
    return re.compile(rf"{re.escape(name)}{end}" if name.startswith("\\") else rf"(?<![\\a-zA-Z]){name}{end}")


def _with_constants(gold: str, answer: str) -> str:
    for small, large in (("c", "C"), ("C", "c")):  # constants of a differential equation
        if f"{large}_" in gold and f"{small}_" in answer and f"{small}_" not in gold and f"{large}_" not in answer:
            answer = re.sub(rf"(?<![\\a-zA-Z]){small}(?=_\{{?\d)", large, answer)
    gold, answer = (_LEADING.sub(r"\2+\1", text) for text in (gold, answer))
    mine, other = integrated(gold), integrated(answer)
    if {mine, other} in _SAME_CONSTANTS and not any(
        letter_alone(name).search(text[:-1]) for name in (mine, other) for text in (gold, answer)
    ):
        return answer[:-1] + mine
    mine, other = (_only_constant(text) for text in (gold, answer))
    if mine and other and mine != other and not letter_alone(other).search(gold):
        return re.sub(rf"(?<![\\a-zA-Z]){other}(?![a-df-zA-Z_(])", mine, answer)
    return answer


def _only_constant(text: str) -> str:
    """The letter of the constant in a solution of a differential equation."""
    letters = re.findall(
        r"(?<![\\a-zA-Z])[ACK](?![a-zA-Z_(])|(?<![\\a-zA-Z])[ck](?=e\^)", re.sub(r"(?<=[A-Zckd])e\^", " e^", text)
    )
    letters = letters or re.findall(r"(?<![\\a-zA-Z])[cACK](?=\s*e\s*\^)", text)
    return letters[0] if len(set(letters)) == 1 and _SOLUTION.match(text) and "e^" in text else ""


def integrated(text: str) -> str:
    """The constant of an antiderivative: what is added to a function of one variable that has no other letters."""
    match = _CONSTANT.search(text)
    if match is None or RELATION.search(text) or len(split(text, ",;")) > 1:
        return ""
    body = split(text[: match.start()].rstrip(" +"), "=")[-1]
    try:
        names = symbols(read(body))
    except NotRead:
        return ""
    return match[0].strip() if len(names) == 1 and set(names) <= _INTEGRATED else ""


def with_running(gold: str, answer: str) -> str:
    r"""`answer` with the letter of `gold` for that of \pi/4 + k\pi or \pi/4 + \pi k, where neither says through what it
    runs."""
    if re.search(r"\\in(?![a-z])|nteger", gold + answer) or not (_RUNNING.search(gold) and _RUNNING.search(answer)):
        return answer
    return _with_letter(_RUNNING, gold, answer)


def letters_of(text: str) -> set[str]:
    """The letters in it that are no part of a command."""
    return set(re.findall("[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", text)))


def with_declared(gold: str, answer: str, constants: set[str]) -> str:
    """`answer` with the letters of `gold` for constants of which the gold answer says that they may be any, and that
    are the only ones there: other letters may be given in the question."""
    (name, _, formula), (_, _, other_formula) = gold.partition("="), answer.partition("=")
    golds, answers = letters_of(formula), letters_of(other_formula)
    mine, other = golds - answers, answers - golds
    if len(mine) != 1 or len(other) != 1 or not mine <= constants or not other <= _USUAL_CONSTANTS:
        return answer
    if mine & (_NEVER_CONSTANTS | letters_of(name)) or other & letters_of(name):
        return answer
    if golds - mine - letters_of(name) - {"e"}:
        return answer
    [old], [new] = other, mine
    return re.sub(rf"\\[a-zA-Z]+|{old}", lambda match: new if match[0] == old else match[0], answer)
