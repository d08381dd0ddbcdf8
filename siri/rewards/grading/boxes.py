r"""Where a response gives its answer: in its last boxes, or else, if its last line says so, after "Answer:"."""

import re
from dataclasses import dataclass

_TOKEN = re.compile(
    r"(?<!\\)\\+f?box(?:ed)?\s*(?:(?P<box>\{)|(?P<bare>"
    r"[-+]?\d+(?:[.,/:]\d+)*(?:\\?%)?"
    r"|\\[dt]?frac\s*(?:\{[^{}]{0,99}\}|\d)\s*(?:\{[^{}]{0,99}\}|\d)"
    r"|\\sqrt\s*(?:\{[^{}]{0,99}\}|\d)|\\pi(?![a-zA-Z])"
    r"|(?<=\s)[A-Za-z](?![A-Za-z])))"
    r"|\\.|(?P<open>\{)|(?P<close>\})",
    re.DOTALL,
)
# What may stand between boxes that are one answer together: "\boxed{3} and \boxed{4}", "$x = \boxed{3}$ or ..."
_BETWEEN = re.compile(
    r"(?:[\s$,;&.]|\\[()\[\],;!]|\\q?quad|\\text\{[\s,]*(?:and|or)?[\s,]*\}|\b(?:and|or)\b)*(?:[a-zA-Z](?:_\w)?\s*=\s*)?"
)
_MAX_BETWEEN = 40
_ANSWER = re.compile(
    r"[\s*_#>`]*(?:the\s+)?(?:final\s+)?answer[\s*_`]*:[\s*_`]*(?P<answer>\S.*?)[\s*_`]*", re.IGNORECASE
)
_MAX_LINE = 1000


@dataclass(frozen=True, slots=True)
class _Box:
    start: int
    end: int
    content: str


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}` (or `\fbox{...}`) in `text`; None when there is none.

    `\boxed 5` and `\boxed5` are read as well, and so is a fraction, a root or one letter without braces.
    """
    boxes = _boxes(text)
    return boxes[-1].content if boxes else None


def final_boxes(text: str) -> list[str]:
    r"""What `text` gives as its answer: the content of its last box, or of the last few that stand side by side.

    Side by side are boxes with nothing but "and", "or", a comma or a name between them: "\boxed{3} and \boxed{4}" is
    one list of two answers, and no second guess. Without any box it is what follows "Answer:" on the last line that is
    not blank, as some data sets ask for; nowhere else does that word count. Empty where no answer is given.
    """
    boxes = _boxes(text)
    if not boxes:
        line = text.rstrip()[-_MAX_LINE:].rsplit("\n", 1)[-1]
        match = _ANSWER.fullmatch(line)
        return [match["answer"]] if match else []
    last = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        gap = text[box.end : last[0].start]
        if len(gap) > _MAX_BETWEEN or not _BETWEEN.fullmatch(gap):
            break
        last.insert(0, box)
    return list(dict.fromkeys(box.content for box in last))


def _boxes(text: str) -> list[_Box]:
    """The complete boxes in the order in which they begin; the innermost where they are nested."""
    open_braces: list[tuple[int, int] | None] = []  # where a box and its content start; None for any other brace
    boxes: list[_Box] = []
    for token in _TOKEN.finditer(text):
        if token["bare"]:
            boxes.append(_Box(token.start(), token.end(), token["bare"]))
        elif token["close"]:
            opened = open_braces.pop() if open_braces else None
            if opened is not None and not (boxes and boxes[-1].start > opened[0]):
                boxes.append(_Box(opened[0], token.end(), text[opened[1] : token.start()].strip()))
        elif token["open"] or token["box"]:  # the fourth kind is an escaped character, braces among them
            open_braces.append((token.start(), token.end()) if token["box"] else None)
    return boxes
