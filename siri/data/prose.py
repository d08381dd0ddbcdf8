"""Gold answers that no response can be compared with but letter by letter: proofs, explanations, and formulas of which
a part was lost."""

import json
import re

from siri.data.braces import missing_braces
from siri.data.gold import NoAnswer

PROSE = "with a proof or an explanation for an answer"
BROKEN = "with braces in the answer that do not pair"
MOST_WORDS = 6
"""Words on end of an answer in words, such as "the first player wins"."""

_MATHS = re.compile(r"\$\$?[^$]*\$\$?|\\\([^()]*\\\)|\\\[.*?\\\]|\\begin\{(\w+\*?)\}.*?\\end\{\1\}", re.DOTALL)
_IN_TEXT = re.compile(r"\\(?:text\w*|mbox|mathrm|boxed|emph|operatorname)\s*\{")
_WORD = re.compile(r"(?<![\\a-zA-Z])[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_CLAUSE_ENDS = re.compile(r"[,;:&]|\\\\|\.(?:\s|$)")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*(?:\{\s*[^\s}]|[^\s{])")
_LOOKED_AT = 2000
"""Characters of an answer."""
_CHOICE = re.compile(r"\(?[A-Ja-j][).:]\s")
_SAID = re.compile(
    r"\b(?:proofs?|prov(?:e|ed|en|ing)|q\.?\s?e\.?\s?d|"
    r"(?:by|using|via) (?:\w+ )?(?:induction|contradiction|contraposition|contrapositive|exhaustion)|"
    r"as (?:required|desired|claimed)|to be (?:shown|demonstrated)|"
    r"(?:is|was|has been|as) shown|shown (?:above|below|here)|"
    r"show that|follows from|we (?:have|get|can|see|know|need|obtain|conclude)|"
    r"answers? (?:may|will|can|could) vary|(?:many|various|multiple) answers|open[- ]ended|"
    r"(?:see|refer to|given in|look at) (?:the )?(?:\w+ )?(?:figure|diagram|picture|image|graph|drawing|table|text|"
    r"solutions?|explanations?|above|below|attach\w*|work|steps?|construction))\b",
    re.IGNORECASE,
)
# a language without spaces
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u9fff]")
_MOST_UNSPACED = 16
_SAID_UNSPACED = re.compile("证明|證明|証明|解析|答案不唯一")
_REASON = re.compile(r"\b(?:because|since|therefore|hence|thus|suppose|assume|consider)\b", re.IGNORECASE)


def without_prose(answer: str) -> str:
    """A gold answer without the alternatives that are prose. Raises NoAnswer where nothing else is there.

    Prose is what speaks of a proof or of a solution elsewhere, gives a reason, or has more than `MOST_WORDS` words on
    end; formulas, numbers and the letter of a choice before its text are no words. Of a formula whose braces do not
    pair, but for one or two that are missing at its end, nobody knows what it was.
    """
    if not answer.startswith('["'):
        if _is_broken(answer):
            raise NoAnswer(BROKEN)
        if is_prose(answer):
            raise NoAnswer(PROSE)
        return answer
    try:
        accepted = json.loads(answer)
    except ValueError:
        return answer
    kept = [text for text in accepted if not (isinstance(text, str) and (is_prose(text) or _is_broken(text)))]
    if not kept:
        raise NoAnswer(PROSE)
    return answer if len(kept) == len(accepted) else kept[0] if len(kept) == 1 else json.dumps(kept, ensure_ascii=False)


def is_prose(text: str) -> bool:
    """Whether an answer is sentences rather than a value, a name or a short phrase."""
    boxed = _BOXED.search(text)  # a whole solution, as in MATH: the answer is in its box
    text = text[:_LOOKED_AT]
    if boxed or _CHOICE.match(text):
        return False
    words = _IN_TEXT.sub(" ", _MATHS.sub(" 0 ", text))
    if _SAID.search(words) or _SAID_UNSPACED.search(words) or len(_UNSPACED.findall(words)) > _MOST_UNSPACED:
        return True
    clauses = [_WORD.findall(clause) for clause in _CLAUSE_ENDS.split(words)]
    clauses = [[word for word in clause if len(word) > 1 or word in ("a", "A", "I")] for clause in clauses]
    if any(len(clause) > MOST_WORDS for clause in clauses):
        return True
    return bool(_REASON.search(words)) and sum(map(len, clauses)) > 2


def _is_broken(text: str) -> bool:
    """Whether braces do not pair, and no box says which part is the answer."""
    return missing_braces(text) is None and not _BOXED.search(text)
