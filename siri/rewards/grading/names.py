"""Names that mean nothing by themselves: a variable of a function, an index, a constant of integration, a point."""

import re

_DEFINED = re.compile(r"\s*(?:([a-zA-Z])\(([a-df-hj-zA-Z])\)|([a-zA-Z])_\{?([a-zA-Z])\}?)\s*=[^=]*")
_POINT = re.compile(r"[A-Z]\s*(?=\([^()]*,[^()]*\)$)")
_CONSTANT = re.compile(r"(?<=\+)\s*[Cc]$")


def with_names_of(gold: str, answer: str) -> str:
    """`answer` with the names of `gold` for what any letter may stand for: the variable of a function, an index, the
    constant of integration; and without the name of a point."""
    defined = [match.groups() for match in map(_DEFINED.fullmatch, (gold, answer)) if match]
    if len(defined) == 2 and defined[0][::2] == defined[1][::2]:  # f(t) = t^2 is f(x) = x^2
        mine, other = (names[1] or names[3] for names in defined)
        used = [
            bool(letter_alone(name).search(text.partition("=")[2])) for name, text in ((mine, gold), (other, answer))
        ]
        # of a constant function any letter; f(a) = 3 and P(A) = 3 say something of a or A
        runs = all(used) or (not any(used) and {mine, other} <= set("nktuxyz"))
        if (
            runs
            and mine != other
            and not letter_alone(mine).search(answer)
            and mine not in (defined[1][0], defined[1][2])
        ):
            answer = letter_alone(other).sub(mine, answer)
    if gold.startswith("(") and answer[0] != "C":
        answer = _POINT.sub("", answer, count=1) if _POINT.match(answer) else answer
    for small, large in (("c", "C"), ("C", "c")):  # constants of a differential equation
        if f"{large}_" in gold and f"{small}_" in answer and f"{small}_" not in gold and f"{large}_" not in answer:
            answer = re.sub(rf"(?<![\\a-zA-Z]){small}(?=_\{{?\d)", large, answer)
    constants = [match[0] for match in map(_CONSTANT.search, (gold, answer)) if match]
    return answer[:-1] + constants[0] if len(constants) == 2 else answer


def letter_alone(name: str) -> re.Pattern:
    return re.compile(rf"(?<![\\a-zA-Z]){name}(?![a-zA-Z])")
