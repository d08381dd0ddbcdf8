r"""Where a response gives its answer: in its last boxes, or else, if its last line says so, after "Answer:"."""

import re
from dataclasses import dataclass

from siri.rewards.grading.captions import captioned
from siri.rewards.grading.conclusions import concludes, is_computed, is_denied, takes_back

_TOKEN = re.compile(
    r"(?<!\\)\\+f?box(?:ed)?\s*(?:(?P<box>\{)|(?P<bare>"
    r"[-+\u2212]?\d+(?:[.,/:]\d+)*(?:\\?%)?"
    r"|\\[dt]?frac\s*(?:\{[^{}]{0,99}\}|\d)\s*(?:\{[^{}]{0,99}\}|\d)"
    r"|\\sqrt\s*(?:\{[^{}]{0,99}\}|\d)|\\pi(?![a-zA-Z])"
    r"|(?<=\s)[A-Za-z](?![A-Za-z])))"
    r"|\\.|(?P<open>\{)|(?P<close>\})",
    re.DOTALL,
)
# What goes on with the value of a box without braces: $\boxed 2\sqrt3$ is not 2.
_GOES_ON = re.compile(
    r"(?:\s*(?:[\^_](?=[\w{\\])|!(?=\S)|[-+*/]\s*(?!\\f?box)[\d\\(]|[-+*/](?=[a-zA-Z])|[+*/]\s*[a-zA-Z](?![a-zA-Z])|"
    r"\\(?:sqrt|pi|[dt]?frac|cdot|times|div|pm|ln|log|sin|cos|tan|circ|binom|text)(?![a-zA-Z]))|[a-zA-Z\d{(])"
    r"[^$\n]{0,200}"
)
# What only dresses the boxes and the words between them: marks of markdown, HTML and LaTeX, quotation marks, brackets.
_DRESS = re.compile(
    r"</?[a-zA-Z][^<>\n]{0,80}>|<!--[^<>]{0,80}-->|(?<=\n)[ \t]*(?:[-=][ \t]*){3,}(?=\n)|(?<=\s)%[^\n]{0,80}\n"
    r"|[\u2190-\u21ff\u2300-\u27bf\u2b00-\u2bff\ufe0f\u200d\U0001f000-\U0001faff]+|&(?:nbsp|ensp|emsp|thinsp);|"
    r"[*`~\"'\u2018\u2019\u201c\u201d\u00ab\u00bb\u300c-\u300f]+"
    r"|(?<![a-zA-Z\d])_+|_+(?![a-zA-Z\d{])|(?<=\n)[ \t]*>"
    r"|\\(?:(?:text|math)?colou?r|[hv]space\*?)\s*\{[^{}]{0,20}\}"
    r"|\\(?:begin|end)\{(?:center|itemize|enumerate|align\*?|gather\*?|equation\*?)\}|\\item(?![a-zA-Z])"
    r"|\\(?:emph|underline|uline|bold|boldsymbol|bm|mathbf|mathrm|mbox|hbox|text(?:bf|it|rm|sf|tt|up|md|normal)"
    r"|bf|it|rm|sf|tt|em|bfseries|itshape|tiny|small|normalsize|large|Large|LARGE|huge|Huge|displaystyle|textstyle"
    r"|color|left|right|[bB]igg?[lr]?|hfill|par|newline|smallskip|medskip|bigskip|noindent|centering)(?![a-zA-Z])"
)
# What may stand between boxes that are one answer together: "\boxed{3} and \boxed{4}", "$x = \boxed{3}$ or ...", or the
# items of a list; behind a box its unit, before the next a name.
_BETWEEN = re.compile(
    r"(?:[\s$]*(?:\^\s*\{?\s*\\circ\s*\}?|\u00b0|\\?%"
    r"|(?:\\text\{\s*)?\b(?:[cmk]?m|[mk]?g|s|sec|h|min|ft|in|units?)\b\s*\}?))?"
    r"(?:\(\s*(?:if|when|for)\b[^()]{0,30}\)|\(\s*(?:first|second|1st|2nd)\s[^()]{0,20}\)|\n\s*[-+\u2022](?=\s)"
    r"|\b(?i:part|option|case|guess|answer|solution|interpretation|attempt)\s+(?=\(?(?:\d|[a-hA-H]|i{1,3})\b)|"
    r"\(?\b(?:\d|[a-h]|[A-H](?=\))|i{1,3})[.):]{1,2}|[\s$,;&.|"
    r"/()\[\]{}!?=#\u2013\u2014\u2026\uff0c\uff1b\u3002\u3001\uff01\uff1f]"
    r"|\\\\"
    r"|\\[()\[\],;!&{}\s]|\\q?quad|\\(?:lor|land|vee|wedge|cup|text|textrm|approx|to|[lc]?dots)(?![a-zA-Z])"
    r"|\u6216\u8005?|\u4ee5\u53ca|\u5e76\u4e14|[\u548c\u4e0e\u53ca\u4e14]"
    r"|\b(?:and|or|maybe|possibly|perhaps|also|either|else|even|both|alternatively|respectively|then"
    r"|as\s+well\s+as|o|ou)\b)*+"
    r"(?:(?:\\angle\s*)?(?:[a-zA-Z](?:_(?:\w|\{\w+\}))?|[A-Z]{2,3}|\\[a-z]+(?:_(?:\w|\{\w+\}))?)(?:'|\([^()=]{1,9}\))?"
    r"\s*[=:]\s*)?[\s${]*"
)
# What announces an answer; where both boxes are announced, and nothing is taken back, these are two answers.
_ANNOUNCED = re.compile(r"\b(?:the\s+)?(?:final\s+)?answer\b(?:\s+[A-H1-9]\b)?(?:\s*:|\s+is\b:?)\s*", re.IGNORECASE)
# A choice between two boxes, whatever nouns stand beside it in the sentence: "\\boxed{3} apples or \\boxed{4} apples".
_EITHER = re.compile(
    r"(?!.*[.!?](?:\s|$)(?!\s*(?i:or)\b))(?=.*(?:\b(?i:or|otherwise|versus|vs|oder|ou)\b"
    r"|\u6216|\u8fd8\u662f|\u307e\u305f\u306f|\b\u0438\u043b\u0438\b)).*",
    re.DOTALL,
)
# What is said of guesses: that there is another, or in which case each of them holds.
_ALTERNATIVE = re.compile(
    r"\b(?:another|alternatively|alternative|versus|vs|might|maybe|perhaps|possibly|also\s+possible)\b", re.IGNORECASE
)
_GUESS = re.compile(r"\([^()]*\b(?:guess|attempt|candidate|possibility|option|choice)\b[^()]*\)", re.IGNORECASE)
_CASE = re.compile(r"\b(?:if|when|under|assuming|provided|unless|in\s+case)\b", re.IGNORECASE)
_CONCLUDED = re.compile(r"\b(?:so|thus|hence|therefore|then|total|sum|finally|giv\w+|get|leav\w+)\b", re.IGNORECASE)
_STOP = re.compile(r"[.!?]\s|\n")
# What makes a box inside of another something else than the answer.
_OR_NOT = re.compile(
    r"\b(?:or|not|never|no|except|neither|cannot|isn't|than|but)\b|n't\b|\\(?:neq?|not|lor|vee|neg)(?![a-zA-Z])|"
    r"[\u2260\u6216]",
    re.IGNORECASE,
)
# A sentence that begins another guess.
_ANOTHER = re.compile(
    r"[.!?;\n]\s*(?:or\s+)?(?:alternatively|maybe|perhaps|possibly|(?:yet\s+)?another\s+(?:possibility|option|"
    r"answer|solution|guess|"
    r"candidate|possible\s+\w+)|(?:it|the\s+answer)\s+(?:might|may|could)\s+(?:also\s+)?be)\b",
    re.IGNORECASE,
)
# What joins the boxes of a list, and those of which each may be the answer.
_JOINS = (", ", "\\text{ or }")
_CHOICE = re.compile(r"\b(?:or|otherwise|alternatively)\b|\\(?:lor|vee)(?![a-zA-Z])|\u6216", re.IGNORECASE)
_TUPLE = re.compile(r"(?:\\left)?[(]\s*\$?\s*$"), re.compile(r"\s*\$?\s*(?:\\right)?[)]")
_MAX_GAP = 160
_MAX_BETWEEN = 40
_MAX_CHOICE = 80
_MAX_GAP_READ = 4000
# Of more the first are not looked at: a list of so many is no answer.
_MOST_BOXES = 64
_ANSWER = re.compile(
    r"[\s*_#>`]*(?:[-+]\s+)?(?:<(?:b|strong)>\s*|\\text(?:bf)?\{\s*)?(?:the\s+)?(?:final\s+)?answer(?:\s+is)?"
    r"(?:\s*</(?:b|strong)>)?[\s*_`]*[:\uff1a](?:\s*</(?:b|strong)>|\s*\})?[\s*_`]*(?P<answer>\S.*?)[\s*_`]*",
    re.IGNORECASE,
)
# How Minerva's four examples end.
_HOPE = re.compile(r"[\s.$]*\bI hope (?:it|this|that) is correct[\s.!]*$", re.IGNORECASE)
# A line that says that what follows is one more answer.
_OR_LINE = re.compile(
    r"\W*(?:or|alternatively|otherwise|maybe|perhaps|possibly|also)\b|\W*(?:\u6216|\u8fd8\u662f|\u4e5f\u53ef)",
    re.IGNORECASE,
)
_HEADING = re.compile(r"[\s*_#>`]*(?:the\s+)?(?:final\s+)?answer[\s*_`]*[:\uff1a]?[\s*_`]*", re.IGNORECASE)
# Signs that a model ends its turn with.
_END = re.compile(r"(?:\s|<\|[a-z_]{1,20}\|>|</?s>|<(?:eos|pad|end_of_turn)>)+$")
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
    r"""What `text` gives as its answer: the content of its boxes, from the last that concludes on.

    Boxes that differ are one list, "\boxed{3} and \boxed{4}" as well as two guesses in two sentences, unless something
    says that the last is where the others led to (`conclusions`); one that is denied is none. Without any box it is
    what follows "Answer:" on the last line that is not blank, or that line below a heading "Answer"; nowhere else does
    that word count. Empty where none is given.
    """
    return given_answers(text)[0]


def given_answers(text: str) -> tuple[list[str], str]:
    r"""What `text` gives as its answer, and what joins it: "or" where that stands between the boxes, else a comma."""
    boxes = _boxes(text)
    if not boxes:
        text = _hopeless(_END.sub("", text[-_MAX_LINE:]))
        heading, _, line = text.rstrip().rpartition("\n")
        if match := _ANSWER.fullmatch(line):
            before = _answers_before(heading, line)
            chosen = bool(before) and any(map(_OR_LINE.match, heading.split("\n")))
            return [*before, match["answer"]], _JOINS[chosen]
        return [line.strip()] if _HEADING.fullmatch(heading.rstrip().rpartition("\n")[2]) else [], _JOINS[False]
    boxes = boxes[-_MOST_BOXES:]
    boxes = [box for box in boxes if not _is_denied(text, box, alone=len(boxes) == 1)]
    if not boxes:
        return [], _JOINS[False]
    chosen = False
    last, apart = [boxes[-1]], False  # whether a bracket closes between them: (4) or (5) is no pair
    for box in reversed(boxes[:-1]):
        gap = text[box.end : last[0].start]
        plain = _DRESS.sub("", gap) if len(gap) <= _MAX_GAP else gap
        if _ANNOUNCED.search(text, max(0, box.start - _MAX_BETWEEN), box.start):
            plain = _ANNOUNCED.sub("", plain, count=1)
        if is_computed(text[max(0, box.start - _MAX_BETWEEN) : box.start], gap[:_MAX_GAP]):
            break
        beside = len(plain) <= _MAX_BETWEEN and _BETWEEN.fullmatch(plain)
        before = text[max(0, box.start - _MAX_CHOICE) : box.start]
        guessed = len(plain) <= _MAX_CHOICE and (_EITHER.fullmatch(plain) or _is_guessed(before, plain))
        behind = text[last[0].end : last[0].end + _MAX_CHOICE]
        if not (beside or guessed) and concludes(before, box.content, gap[-_MAX_GAP_READ:], behind):
            break
        last.insert(0, box)
        chosen |= _CHOICE.search(plain[:_MAX_GAP]) is not None
        apart |= ")" in re.sub(r"\\\)|[a-zA-Z\d]\)", "", plain)
    if len(last) == 1:
        return [last[0].content], _JOINS[False]
    # near the boxes only: a page of white space would be walked through once for each of its characters
    start, end = last[0].start, last[-1].end
    opened = _TUPLE[0].search(text, max(0, start - _MAX_BETWEEN), start)
    closed = _TUPLE[1].match(text, end, end + _MAX_BETWEEN)
    if opened and closed and not apart and text[opened.start() - 1 : opened.start()] != "\\":
        return [f"({','.join(box.content for box in last)})"], _JOINS[False]
    first = boxes.index(last[0])
    ends = [boxes[first - 1].end if first else 0, *(box.end for box in last)]
    gaps = [text[max(end, box.start - _MAX_GAP) : box.start] for end, box in zip(ends, last, strict=False)]
    named = captioned([box.content for box in last], gaps, text[end : end + _MAX_BETWEEN])
    return list(dict.fromkeys(named)), _JOINS[chosen]


def _answers_before(text: str, last: str) -> list[str]:
    """What earlier lines give as the answer, which no later one takes back and the last does not call the final one
    instead: two such lines are two answers."""
    lines = text.split("\n")
    final = "final" in last.casefold()
    matches = [(place, match["answer"]) for place, line in enumerate(lines) if (match := _ANSWER.fullmatch(line))]
    return [
        answer
        for place, answer in matches
        if (final <= ("final" in lines[place].casefold()) or any(map(_OR_LINE.match, lines[place + 1 :])))
        and not takes_back("\n".join(lines[place + 1 :]))
    ]


def _hopeless(text: str) -> str:
    """Without the hope that it is correct, and with the delimiter that was cut off with it."""
    hope = _HOPE.search(text)
    return text if hope is None else text[: hope.start()] + ("$" if "$" in hope[0] else "")


def _is_denied(text: str, box: _Box, *, alone: bool) -> bool:
    before = text[max(0, box.start - _MAX_CHOICE) : box.start].rpartition("\n")[2]
    return is_denied(before, text[box.end : box.end + _MAX_CHOICE], alone=alone)


def _is_guessed(before: str, between: str) -> bool:
    """Whether the words between two boxes say that either may be the answer."""
    between = re.sub(r"\bvs\.", "vs", between)
    if _CONCLUDED.search(between):
        return False
    ends = _STOP.search(between) is not None
    if _ANOTHER.search(between):
        return True
    if _GUESS.search(between) or (not ends and _ALTERNATIVE.search(between)):
        return True
    case = _CASE.search(between)
    if case is None:
        return False
    behind = not ends and not re.search(r"\w", between[: case.start()])
    return behind or _CASE.search(_STOP.split(before)[-1]) is not None


def _boxes(text: str) -> list[_Box]:
    """The complete boxes in the order in which they begin; the innermost where they are nested."""
    open_braces: list[tuple[int, int] | None] = []  # where a box and its content start; None for any other brace
    boxes: list[_Box] = []
    for token in _TOKEN.finditer(text):
        if token["bare"]:
            rest = _GOES_ON.match(text, token.end())
            end = rest.end() if rest else token.end()
            content = text[token.start("bare") : end]
            boxes.append(_Box(token.start(), end, re.split(r"\\[)\]]|[.;]?\s*$", content)[0]))
        elif token["close"]:
            opened = open_braces.pop() if open_braces else None
            if opened is not None and not (boxes and boxes[-1].start > opened[0]):
                boxes.append(_Box(opened[0], token.end(), text[opened[1] : token.start()].strip()))
            elif opened is not None and _OR_NOT.search(text, opened[1], min(boxes[-1].start, opened[1] + _MAX_GAP)):
                content = re.sub(r"\\f?box(?:ed)?(?![a-zA-Z])", "", text[opened[1] : token.start()][:_MAX_LINE])
                boxes[-1] = _Box(opened[0], token.end(), content.strip())  # 3 or \boxed{4} is no 4
        elif token["open"] or token["box"]:  # the fourth kind is an escaped character, braces among them
            open_braces.append((token.start(), token.end()) if token["box"] else None)
    return boxes
