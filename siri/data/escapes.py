r"""LaTeX that lost backslashes: "\frac" in a JSON or Python text that was not escaped is a form feed and "rac".

A form feed, backspace, bell or vertical tab before the rest of a known command stands for nothing else, and neither
does a tab, carriage return or newline before a rest that begins no word ("\theta", "\right)", "\notin"): these are
restored. A tab before "an" may have been \tan, or a tab: an answer with one is left out, and a prompt that lost others.
"""

import re
from dataclasses import dataclass

LOST_IN_ANSWER = "with a tab or line end in the answer that may have been a LaTeX command, such as \\tan or \\nu,"
LOST_IN_PROMPT = "with LaTeX in the prompt that lost backslashes of which not all are certain"

_LETTERS = {"\a": "a", "\b": "b", "\t": "t", "\n": "n", "\v": "v", "\f": "f", "\r": "r"}
_SUSPECT = re.compile(r"[\a\b\t\n\v\f\r](?=[a-z])")
# What commands go on with, behind what no text has, or has before no such letters.
_RESTS = {
    "\f": r"rac|orall|rown|box(?=\s*\{)",
    "\b": r"eta|inom|ar|egin|mod|oxed|igl?|igr|iggl?|iggr|Bigl?|igcup|igcap|ullet|oldsymbol|m|f|ot|ecause|ackslash|"
    r"reve|mid|igoplus|igsqcup|lacksquare|igtriangleup|owtie",
    "\a": r"lpha|ngle|pprox|rcsin|rccos|rctan|rg|st|symp|leph|cute|malg",
    "\v": r"ec(?=\s*[\{a-zA-Z\\])|arphi|arnothing|arepsilon|artheta|arrho|ee|ert",
    "\t": r"heta|imes|frac|riangle\w*|herefore|ilde(?=\s*\{)|ext(?:bf|it|rm|sf|tt|normal|up)?(?=\s*\{)|extstyle|"
    r"anh|binom|hickapprox|an(?=\s*[({^\\])",
    "\r": r"ho|ight(?=\s*[)\]|.}\\>/])|ightarrow|angle(?=\s*(?:$|[)}$,.;]))|floor(?=\s*(?:$|[)}$,.;+=-]))|"
    r"ceil(?=\s*(?:$|[)}$,.;+=-]))",
    "\n": r"abla|otin|ot(?=\s*[=\\])|subseteq|eq(?=\s*\\)",
}
_LOST = re.compile("|".join(rf"{re.escape(sign)}(?:{rests})(?![a-zA-Z])" for sign, rests in _RESTS.items()))
# x \neq 0 behind one letter, a digit or a bracket: no sentence ends there to go on with "eq".
_UNEQUAL = re.compile(r"((?:(?<![a-zA-Z])[a-zA-Z]|[\d)}\]]) ?)\neq(?= ?(?:-?\d|[a-zA-Z](?![a-zA-Z])))")
_DOUBTFUL = re.compile(
    r"\t(?:an|o|au|op|ag|ext|ilde)(?![a-zA-Z])|\n(?:eq|e|u|ot|eg|mid|exists|leq|geq|parallel)(?![a-zA-Z])|"
    r"\r(?:angle|floor|ceil|ight|m|vert)(?![a-zA-Z])"
)


class LostBackslash(Exception):
    """A text in which a tab or line end may have been a command."""


@dataclass(slots=True)
class Restored:
    """How many texts got commands back, in this process."""

    count: int = 0


restored = Restored()


def with_backslashes(text: str, *, answer: bool) -> str:
    """`text` with the commands that lost their backslashes, where that is certain; counted in `restored`.

    Raises LostBackslash where it is not: in an `answer` at any such place, in a prompt beside others that are certain,
    for a line of a prompt may begin with any word.
    """
    if not _SUSPECT.search(text):
        return text
    whole = _LOST.sub(lambda match: f"\\{_LETTERS[match[0][0]]}{match[0][1:]}", text)
    whole = _UNEQUAL.sub(r"\1\\neq", whole)
    if (answer or whole != text) and _DOUBTFUL.search(whole):
        raise LostBackslash
    restored.count += whole != text
    return whole
