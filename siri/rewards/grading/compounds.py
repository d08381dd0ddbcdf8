r"""Formulas of chemistry: H2O, \text{H}_2\text{O}, \ce{H2O} and \mathrm{Fe^{3+}}, whose letters are no products."""

import re

_ELEMENT = (
    r"(?:A[cglmrstu]|B[aeikr]?|C[adelorsu]?|F[er]?|G[ade]|H[efgo]?|I[nr]?|Kr?|L[aiu]|M[gno]|N[abdei]?|Os?|P[abdtu]?|"
    r"R[abhnu]|S[bceimnr]?|T[ehil]|U|V|W|Xe|Yb?|Z[nr])"
)
_ATOMS = rf"{_ELEMENT}\d{{0,3}}"
_TERM = rf"\d{{0,3}}(?:{_ATOMS}|\((?:{_ATOMS}){{1,9}}\)\d{{0,2}}){{1,20}}(?:\^\d?[-+])?"
_FORMULA = re.compile(rf"{_TERM}(?:[+\u2192]{_TERM}){{0,9}}")
_ARROW = re.compile(r"\\(?:long)?(?:rightarrow|to)(?![a-zA-Z])|->")
_DRESS = re.compile(r"\\(?:text|mathrm|ce|rm)(?![a-zA-Z])|[\s_{}$]")
_MOST_CHARS = 200


def same_compound(gold: str, answer: str) -> bool:
    """Whether both are one formula of chemistry, of at least two elements or with a charge."""
    if max(len(gold), len(answer)) > _MOST_CHARS or not re.search(r"\d", gold):
        return False
    formula, other = (_DRESS.sub("", _ARROW.sub("\u2192", text)) for text in (gold, answer))
    if formula != other or not _FORMULA.fullmatch(formula):
        return False
    return "^" in formula or len(re.findall(_ELEMENT, formula)) > 1
