"""Gold answers: the text that the value of an answer column means, or why there is none."""

import json
import re
from decimal import Decimal
from typing import Any

import numpy as np

from siri.data.decimals import DOUBLE, HALF, SINGLE, Precision, is_double, likely_values, plain, shortest, significant
from siri.data.escapes import LOST_IN_ANSWER, LOST_IN_PROMPT, LostBackslash, with_backslashes

MISSING = "without prompt or answer"
NOT_FINITE = "with an infinite number for an answer"
LOST = "with a whole number for an answer that has lost digits, because it was stored as a float"
PLACEHOLDER = "with a placeholder for an answer"
SEVERAL_IN_TEXT = "with a list of Python's in text for an answer, which says not whether any or all of it is meant,"

# A list of one text as Python writes it.
_ONE_MEMBER = re.compile(r"\[\s*(?:'((?:[^'\\\n]|\\.)*+)'|\"((?:[^\"\\\n]|\\.)*+)\"),?\s*\]")
_PYTHON_ESCAPE = re.compile(r"\\([\\'\"])")
_ENDS_A_LIST = re.compile(r"['\"],?\s*\]$")
_LONGEST_LIST = 4000

# What data sets put where they have no answer; compared without case, spaces, hyphens and underscores. Undefined,
# "no solution", "does not exist", infinity and the empty set are answers.
_WORDS = """
    proof seeproof seesolution notfound answernotfound noanswer noanswerfound nan nat null n/a #n/a n.a notavailable
    unavailable notapplicable notprovided answernotprovided unanswerable omitted missing tbd todo na
    notgiven noanswerprovided noansweravailable seeabove seeexplanation tobeproved #value #div/0 #ref
    n\\a nan% error pending answer solution solutionbelow seebelow seesolutionbelow seeanswer seetheanswer
    #name? #num #null #spill #calc #gettingdata notspecified notstated deleted removed
    answerunknown unknownanswer answernotspecified answernotstated nogroundtruth
    略 答案略 无答案 無答案 证明略 見解析 见解析 未知 暂无 暂无答案
"""
PLACEHOLDERS = frozenset(_WORDS.split())
# These are answers of some problems: \text{None} is kept, None is not.
PLAIN_PLACEHOLDERS = frozenset(["none", "nil", "unknown", "theanswerisunknown", "answerisunknown"])
_DECORATION = re.compile(r"^[\s<(\[\"'`*$]+|[\s>)\]\"'`*$.:!\u3002\uff01]+$")
_SAYS = re.compile(r"^(?:the)?(?:correct|final)?(?:answer|solution)(?:is|are|:|was)")
# Spaces, control characters and those without a width, at the ends of a text.
_SPACE = r"[\s\x00-\x1f\x7f\u00ad\u200b-\u200f\u2060\ufeff]+"
_UNSEEN = re.compile(f"^{_SPACE}|{_SPACE}$")
_LATEX = re.compile(r"\\(?:text\w*|boxed|math\w+|mbox)\s*\{(.*)\}", re.DOTALL)
# Decoration of nothing; {} is the empty set.
_EMPTY = re.compile(r"(?=[^$\\]*[$\\])(?:\\(?:text\w*|f?boxed|math\w+|mbox)\s*\{|\\[()\[\]]|[\s{}$])+")
_MARKS = re.compile(r"[\s\-\u2010-\u2015\u2212_?.\u2026]+|\[\s*\]|\"\"|''")


class NoAnswer(Exception):
    """A value that holds no answer; the text says why, in words that follow "rows"."""

    def __init__(self, why: str, value: str = ""):
        super().__init__(why)
        self.why, self.value = why, value


def gold_answer(value: Any) -> str:
    """The answer that `value` means: text, a number in plain digits, or a JSON list of strings for several.

    Raises NoAnswer where there is none, and TypeError for a value that is neither text nor a number.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = _from_numpy(value)
    if value is None:
        raise NoAnswer(MISSING)
    if isinstance(value, str):
        text = as_text(value.rpartition("####")[2], answer=True)  # GSM8K: the worked solution, then "#### 42"
        return _written(_single(text) if text.startswith(("['", '["')) else text)
    if isinstance(value, list):
        return _several(value)
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, Single):
        return _float(Decimal(str(np.float32(value))), SINGLE)
    if isinstance(value, float):
        return _float(Decimal(repr(float(value))), HALF if isinstance(value, Half) else DOUBLE)
    if isinstance(value, Decimal):
        value = shortest(value)
        return _float(value, DOUBLE) if value.is_finite() and is_double(value) else _number(value)
    raise TypeError(f"the answer is {kind(value)}, not text or a number")


class Single(float):
    """A number that was stored as a float of 32 bits."""


class Half(float):
    """A number that was stored as a float of 16 bits, in its shortest spelling."""


def _from_numpy(value: Any) -> Any:
    if value.dtype.kind in "mM":
        raise TypeError(f"the answer is of type {value.dtype}, not text or a number")
    if value.dtype not in (np.float32, np.float16):
        return value.tolist()
    short = Single if value.dtype == np.float32 else lambda scalar: Half(str(scalar))
    return [short(scalar) for scalar in value.ravel()] if isinstance(value, np.ndarray) else short(value)


def _several(values: list) -> str:
    accepted, why = [], NoAnswer(MISSING)
    for value in values:
        if isinstance(value, list):
            # of a matrix no row would do, and no number
            raise TypeError("the answer is a list of lists, not text, a number or a list of alternatives")
        try:
            answer = gold_answer(value)
        except NoAnswer as error:
            why = error if error.why != MISSING else why
        else:
            accepted += _unpacked(answer) if not isinstance(value, str) else [answer]
    if not accepted:
        raise why
    return accepted[0] if len(accepted) == 1 else json.dumps(accepted, ensure_ascii=False)


def _unpacked(text: str) -> list[str]:
    return json.loads(text) if text.startswith('["') else [text]


def _float(value: Decimal, precision: Precision) -> str:
    """The text of a float that is given by its shortest spelling."""
    if value.is_finite() and abs(value) >= precision.whole and significant(value) >= precision.full:
        raise NoAnswer(LOST)
    text = _number(value)
    # of a double the grader sees as much itself
    others = likely_values(value, precision) if precision is SINGLE else []
    return json.dumps([text, *others]) if others else text


def _number(value: Decimal) -> str:
    if value.is_nan():
        raise NoAnswer(MISSING)  # pandas' way to say so
    if not value.is_finite():
        raise NoAnswer(NOT_FINITE)
    return plain(value)


def _written(text: str) -> str:
    """Text that is an answer, not the place of one."""
    if not text:
        raise NoAnswer(MISSING)
    plain_text = _DECORATION.sub("", text)
    inner = _LATEX.fullmatch(plain_text)
    word = re.sub(r"[\s_\-]+", "", plain_text).casefold()
    unmistakable = re.sub(r"[\s_\-]+", "", _DECORATION.sub("", inner[1])).casefold() if inner else word
    unmistakable = _SAYS.sub("", unmistakable) or unmistakable
    sodium = unmistakable == "na" and "Na" in text
    if (
        _MARKS.fullmatch(text.strip("$ ") or text)
        or _EMPTY.fullmatch(text)
        or word in PLAIN_PLACEHOLDERS
        or (unmistakable in PLACEHOLDERS and not sodium)
    ):
        raise NoAnswer(PLACEHOLDER, text.casefold()[:20])
    return text


def _single(text: str) -> str:
    """The only member of a list that Python wrote as text, ['7'], as pandas does in a .csv; a list of JSON as it is.

    Of several members nobody knows whether each of them is the answer, or all are.
    """
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        if len(text) > _LONGEST_LIST or not _ENDS_A_LIST.search(text):
            return text
    else:
        return text
    if (member := _ONE_MEMBER.fullmatch(text)) is None:
        raise NoAnswer(SEVERAL_IN_TEXT)
    return as_text(_PYTHON_ESCAPE.sub(r"\1", member[1] or member[2] or ""), answer=True)


def as_text(value: str, *, strip: bool = True, answer: bool = False) -> str:
    """`value`, which must be text that can be written down: JSON may hold halves of characters. What LaTeX lost to
    escapes is restored (`siri.data.escapes`). Raises NoAnswer where that is not certain."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise TypeError(f"half of a surrogate pair (\\u{ord(value[error.start]):04x}) is no text") from None
    try:
        value = with_backslashes(value, answer=answer)
    except LostBackslash:
        raise NoAnswer(LOST_IN_ANSWER if answer else LOST_IN_PROMPT) from None
    return _UNSEEN.sub("", value) if strip else value


def kind(value: Any) -> str:
    """What a value is, for an error."""
    if value is None:
        return "null"
    return f"of type {getattr(value, 'arrow', None) or type(value).__name__}"
