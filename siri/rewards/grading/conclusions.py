r"""Whether the last of several boxes concludes what stands in the others, and whether a box is denied.

Boxes that differ are several answers, unless something says that the last one is where the others led to: a word of
conclusion or of taking back, a heading, a computation that goes on with the value before, a page of working. What
only offers the next box as another answer, "also possible", "my backup", "the second case", is none of these.
"""

import re

# Sentences, lines and their like; a point within a number ends nothing.
_STOP = re.compile(r"[.!?;](?=\s|$)|\n|[\u3002\uff1b\uff01\uff1f]|\\\\")
_MARKS = re.compile(r"[*`#>|]+|\\[()\[\]]|\$|\\(?:text(?:bf|it)?|mathbf|quad|qquad|,|;)(?![a-zA-Z])")
_FLAGS = re.IGNORECASE

# Between two boxes: that the second takes back the first, is asked for, or ends a text in steps, wherever it stands.
_TURN = re.compile(
    r"\b(?:wait|actually|corrections?|correcting|corrected|oops|sorry|mistaken?|mistakes|wrong|incorrect|"
    r"on second thought|hold on|my bad|oh no|double[- ]check\w*|let me (?:check|verify|see)|"
    r"re-?(?:check|examin|consider|think|calculat|comput|do|count|read)\w*|step\s+\d|steps|finally|conclu\w+|"
    r"in total|altogether|total|overall|in summary|to summari[sz]e)\b"
    r"|(?:^|[.!?;\n]\s*)no\s*[:,.!]|\u4e0d\u5bf9|\u66f4\u6b63|\u4fee\u6b63|\u7b49\u7b49|\u7b49\u4e00\u4e0b|"
    r"\u7efc\u4e0a|\u6700\u7ec8|"
    r"\u6700\u540e|\u603b\u5171|\u4e00\u5171|\u5171\u6709|\u5408\u8ba1|\u603b\u548c|\u4e4b\u548c|"
    r"\u6b65\u9aa4",
    _FLAGS,
)
# The same in the sentence that leads to the second box, or in one before it that is not the rest of the first box's.
_SIGNAL = re.compile(
    r"\b(?:so|thus|hence|therefore|consequently|accordingly|lastly|sums?|in all|impl(?:y|ies|ying)|it "
    r"follows|follows|"
    r"giv(?:e|es|ing)|yield\w*|(?:we|I|to|and) get|(?:we|I) (?:have|find|see|arrive|end up)|"
    r"getting|obtain\w*|leav(?:e|es|ing)|becom\w+|deduc\w+|means|however|"
    r"substitut\w+|plug\w*|add(?:ing|ed)?|subtract\w*|multipl\w+|divid\w+|squar(?:e|ing)|simplif\w+|evaluat\w+|"
    r"comput\w+|calculat\w+|combin\w+|desired|required|requested|asked|sought|larger|largest|smaller|smallest|least|"
    r"greater|greatest|product|difference|quotient|round\w*|i\.e|that is|namely|in other words|equivalent\w*|"
    r"which (?:is|equals)|convert\w*|express\w*|reduc\w+)\b|=>|\\(?:therefore|Rightarrow|implies|"
    r"to)(?![a-zA-Z])|[\u2234\u21d2]"
    r"|(?:^|[.!?;\n]\s*|^\W*)(?:now|next|after|using|from|(?:since|because)\b[^.!?;\n]*,)(?<=[\w,])(?![a-zA-Z])"
    r"|\u6240\u4ee5|\u56e0\u6b64|\u4ece\u800c|\u4e8e\u662f|\u6545|\u5f97|\u5373|\u4ee3\u5165|"
    r"\u5b9e\u9645\u4e0a|\u5176\u5b9e|\u4e8e\u662f",
    _FLAGS,
)
# What a second of several results does not say once more: "A gives \boxed{3}. B gives \boxed{4}."
_STRONG = frozenset(("so", "thus", "hence", "therefore", "consequently", "accordingly"))
# What says of the first box that it was a thought.
_FIRST_THOUGHT = re.compile(
    r"\b(?:thought|previously|initially|originally|at first|first (?:found|had|got|wrote|tried|"
    r"guess\w*))\b|\u8d77\u521d|\u539f\u672c",
    _FLAGS,
)
_ANSWER = re.compile(r"\banswer(?:\s+(?:is|to|of|for)\b|\s*[:=\s*]*$|\s*[:\n])|\u7b54\u6848|\u7b54[:\uff1a]", _FLAGS)
_FINAL = re.compile(r"\bfinal\b", _FLAGS)
# The second box as one more answer, in the words that lead to it or right behind it.
_OFFERED = re.compile(
    r"\b(?:may|might|(?:could|can)\s+(?:also\s+|well\s+|equally\s+)*be|perhaps|maybe|possibl[ye]|"
    r"possibility|alternative\w*|another|"
    r"also|back-?up|fall-?back|plan\s+b|just in case|failing that|failing which|guess\w*|(?:un)?likely|"
    r"probably|unsure|"
    r"(?:not|n't)\s+(?:so\s+|quite\s+)?(?:sure|certain)|%\s*(?:sure|certain|confident)|some\s+(?:would|"
    r"might|may|people|say)|as well|"
    r"candidates?|if (?:this|that|it|the)|in the event|in case|should (?:this|that|it))\b|\((?:if|when|for)\b"
    r"|^\W*(?:or|otherwise|else|if not)\b"
    r"|\u4e5f\u53ef|\u53ef\u80fd|\u4e5f\u8bb8|\u6216|\u53e6\u4e00|\u5907\u9009|\u4e5f\u662f|\u8fd8\u53ef|"
    r"\u5426\u5219",
    _FLAGS,
)
_OFFERED_BEHIND = re.compile(
    r"[\s$*).,\]}\uff0c\uff08]*\(?\s*(?:(?:(?:is|are|be|was|would be|could be|may be|works|"
    r"holds)\s+)?(?:also|too\b|as well|possibl[ye]|"
    r"equally|my\s+(?:second|other|back-?up|next)|(?:the|a|an)\s+(?:second|other|back-?up|alternative|"
    r"less)|(?:less|equally|un)\s*-?likely|"
    r"another)|(?:if|when|unless|otherwise|assuming|provided)\b|with probability|\u4e5f|\u5907\u9009)",
    _FLAGS,
)
_KINDS = (
    r"(?:case|part|option|possibilit(?:y|ies)|scenario|interpretation|reading|guess|attempt|version|"
    r"alternative|candidate|"
    r"answer|solution|root|choice|pair|approach|method|question|problem|assumption)"
)
# The second of several that stand side by side. What follows it closes the list only if it says that it closes one.
_SECOND = re.compile(
    rf"\b{_KINDS}s?\s*\(?(?:[2-9]|ii+|iv|v|[b-h]|two|three|four)\b|"
    rf"\b(?:second|third|fourth|other|another|different|2nd|3rd|4th)\s+(?:\w+\s+)?(?:{_KINDS}|value|number|one)s?\b|"
    r"\b(?:alternatively|on the other hand)\b|(?:^|\n)[\s*#>]*(?:\(?[b-h]|\([2-9]|\(i[iv]+)\)"
    r"|\u60c5\u51b5[\u4e8c\u4e09\u56db2-9\u2461-\u2464]|\u7b2c[\u4e8c\u4e09\u56db](?:\u79cd|\u4e2a|\u95ee|"
    r"\u7c7b)|\u53e6\u4e00|\u53e6\u5916",
    _FLAGS,
)
_CLOSING = re.compile(
    r"\b(?:total\w*|sum|altogether|in all|overall|combin\w+|final\w*|both|together|conclu\w+|product|"
    r"add(?:ing|ed)?|only|"
    r"extraneous|reject\w*|discard\w*|invalid|impossible|not valid|larger|smaller|greater|least|largest|"
    r"smallest|wait|"
    r"actually|correct\w*|mistake)\b|\u7efc\u4e0a|\u603b|\u5171|\u548c|\u6700\u7ec8|\u6700\u540e|"
    r"\u820d\u53bb|\u66f4\u6b63|\u4e0d\u5bf9",
    _FLAGS,
)
# Two boxes, each of them under a condition of its own.
_CONDITION = re.compile(
    r"(?:^|[.;,\n:]|\b(?:and|but|while|whereas))\W*(?:if|when|whenever|for|assuming|under|with(?:out)?|in "
    r"case|suppose)\s"
    r"|[\u5f53\u82e5\u5982\u5047]",
    _FLAGS,
)
# Words of one kind in the sentences of both boxes make these two of a kind.
_OF_A_KIND = tuple(
    re.compile(pattern, _FLAGS)
    for pattern in (
        r"\b(?:first|1st|second|2nd|third|3rd|other|another|one (?:is|of|root|solution|value|answer|case|option)|"
        r"one\s*:)|"
        r"\u7b2c[\u4e00\u4e8c]",
        r"\b(?:smaller|larger|lesser|greater|upper|lower)\b",
        r"\b(?:positive|negative)\b",
        r"\b(?:even|odd)\b",
        r"\b(?:left|right)\b",
        r"\b(?:up|down)\b",
        r"\b(?:best|worst)\b",
    )
)

# "The radius is \boxed{3}. The area is \boxed{9\pi}": different quantities, of which the last was asked for.
_QUANTITIES = frozenset(
    re.findall(
        r"\w+",
        "radius diameter area volume perimeter circumference length width height depth side base slope distance speed "
        "velocity time rate cost price mean median mode minimum maximum probability angle hypotenuse sum product "
        "difference ratio remainder quotient discriminant determinant total mass weight age circumradius inradius "
        "derivative integral limit vertex center centre intercept numerator denominator degree period amplitude",
    )
)
_OF_A_QUANTITY = re.compile(
    r"\b(?:the|its|their|a)\s+(?:\w+\s+)?(?P<noun>\w+)(?:\s+of\s[^.]{1,40})?\s*(?:is|are|equals|=|:|was|"
    r"will be)\s*(?:equal to\s*)?[\s$(\\\[{]*$",
    _FLAGS,
)
_OF_A_NUMBER = re.compile(
    r"(?:^|[,:]|(?<![a-zA-Z])(?:and|then|also)(?![a-zA-Z]))\s*(?:the|its|their|our)?\s*(?:\w+\s+){0,2}?"
    r"(?P<noun>area|volume|perimeter|(?:minimum|maximum|least|greatest|smallest|largest|min|max)(?:imal)?\s+value|"
    r"number|probability|value(?=\s+of\s[^.=]{0,20}[-+*/^]))"
    r"(?:\s+of\s[^.=]{1,60})?\s*(?:is|are|equals|=|:)\s*(?:equal to\s*)?[\s$(\\\[{]*$",
    _FLAGS,
)
# "m + n =", "p + q = 3 + 4 =": what problems ask for whose answer is a fraction or another form.
_SUM_OF_NAMES = re.compile(
    r"(?<![\w\\=+*/^-])[a-zA-Z](?:\s*[-+]\s*\d{0,3}[a-zA-Z](?![a-zA-Z])){1,4}\s*(?:=[-+*/^\d\s().]{0,60})?="
    r"[\s$({\[]*$"
)
# A value that is computed: "3 + 4 = \boxed{7}" behind \boxed{3}, "A = \pi r^2 = \boxed{9\pi}" behind r = \boxed{3}.
_COMPUTED = re.compile(
    r"(?P<formula>[^=\n.;:]*[-+*/^][^=\n;:]*|[^=\n;:]*\\(?:cdot|times|frac|sqrt|binom|div)[^=\n;:]*)=[\s$\\({\[]*$"
)
_NAME = re.compile(r"(?<![a-zA-Z\\])([a-zA-Z](?:_\{?\w\}?)?)\s*=[\s$({\[]*$")
# Boxes as terms: "\boxed{3} + 1 = \boxed{4}", "\boxed{3} + \boxed{4} = \boxed{7}".
_OPERATION = r"[\s$]*(?:[-+/]|\*(?!\*)|\\(?:cdot|times|div)(?![a-zA-Z]))"
_TERM = re.compile(rf"{_OPERATION}(?:[^=\n;:a-zA-Z\\]|\\[a-z]+|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z]))*=[\s$]*")
_LAST_TERM = re.compile(rf"\}}{_OPERATION}[\s$]*$")
_MOST_WORKING = 400
_MOST_FORMULA = 200

# Right before a box: that it is not the answer.
_DENIED = re.compile(
    r"(?:\b(?:not|never|neither|nor|rather than|instead of|other than|unlike|cannot be|no longer|as opposed to|"
    r"different from|mistakenly|incorrectly|wrongly|erroneously)|n't(?:\s+be)?|"
    r"\b(?:common|frequent|typical|easy|usual|tempting|wrong|incorrect|false|naive|na\u00efve|"
    r"erroneous)\s+(?:\w+\s+){0,2}(?:mistake|error|answer|value|"
    r"result|trap|guess|choice|solution)s?\s+(?:here\s+)?(?:is|was|would be|gives|of|:)|"
    r"\b(?:some|one|people|many|students|others|you)\s+(?:\w+\s+)?(?:would|might|may|could|will|"
    r"often)\s+(?:\w+\s+)?(?:say|think|answer|"
    r"get|guess|expect|believe|claim|argue|write|be tempted)\w*|\btempting\s+(?:to\s+\w+|answer\s+is)|"
    r"\b(?:previously|earlier|mistakenly|wrongly|incorrectly)\s+(?:I\s+)?(?:wrote|said|had|got|found|answered))"
    r"(?:\s*(?:equal to|be|to be|the answer|the|that|it is|it's|is|say|simply|just|exactly))*[\s:$(\[{\\*_`'\"]*"
    r"(?:[a-zA-Z]\s*=\s*)?$"
    r"|\\(?:neq?|not\s*=)\s*[\s$({\[]*$|\u2260\s*\$?\s*$"
    r"|(?:\u4e0d\u662f|\u800c\u975e|\u5e76\u975e|\u4e0d\u7b49\u4e8e|\u4e0d\u4e3a|\u4e0d\u53ef\u80fd\u662f|"
    r"\u9519\u8bef\u7b54\u6848\u662f|\u6709\u4eba\u4f1a\u8bf4)[\s:\uff1a$*]*$",
    _FLAGS,
)
_WRONG = (
    r"(?:wrong|incorrect|false|extraneous|invalid|impossible|excluded|eliminated|rejected|discarded|mistaken|"
    r"ruled out|a mistake|an error)"
)
_RIGHT = (
    r"(?:the\s+|a\s+|an\s+)?(?:correct|right|final|true|valid|real|accepted|acceptable|possible|actual|required)?\s*"
    r"(?:answer|solution|correct|right|true|valid|accepted|acceptable|possible|it|result)\b"
)
# Right behind a box: that it was wrong.
_DENIED_BEHIND = re.compile(
    r"[\s$*_`).,\]}\uff0c\u3002]*(?:\\[)\]]\s*)?(?:[([\uff08]\s*)?(?:(?:but|wait|hmm|no|however|"
    r"oh)\W+)*(?:(?:which|that|this|it|and|the answer|as an answer)\s+)?"
    rf"(?:(?:is|was|seems|would be|looks|must be|has to be|'s)\s+(?:(?:clearly|definitely|certainly|"
    rf"obviously|simply|also|just)\s+)?"
    rf"(?:{_WRONG}|not\s+{_RIGHT})|(?:isn't|wasn't|cannot be|can't be)\s+{_RIGHT}|(?:{_WRONG})\b|"
    r"(?:does|did)\s*(?:not|n't)\s+(?:work|satisfy|hold|fit|count)\b|fails\b|"
    r"(?:is|was|would be|seems|looks)\s+(?:\w+\s+)?too\s+(?:small|large|big|low|high|many|few|much|little|short|"
    r"long)\b)"
    r"|[\s$*_`).\]}]*\?[\s$*]*(?:no|nope|not|never|wrong|incorrect|\u4e0d(?:\u662f|\u5bf9)?)(?![a-zA-Z])"
    r"|[\s$*)\uff0c,]*[(\uff08]?\s*(?:\u662f?\u9519(?:\u8bef)?\u7684?|\u4e0d\u6b63\u786e|\u4e0d\u5bf9|"
    r"\u820d\u53bb|\u4e0d\u5408\u9898\u610f|\u4e0d\u662f(?:\u6b63\u786e)?\u7b54\u6848)",
    _FLAGS,
)
_DENIED_ALONE = re.compile(
    r"(?:\b(?:it|that|the answer)(?:'s|\u2019s|\s+is|\s+was)\s+(?:\w+ly|of course|just|simply)\s+not|"
    r"\b(?:it|that)(?:'s|\u2019s)\s+not|"
    r"\bif\s+(?:the answer|it|this|that)\s+(?:were|was)|"
    r"\b(?:doubt|(?:do\s+not|don't)\s+(?:think|believe))\s+(?:that\s+)?(?:it's|it\s+is|the\s+answer\s+is)|"
    r"\b(?:naive|na\u00efve|wrong|incorrect|erroneous|mistaken|tempting|false)\s+(?:\w+\s+)?"
    r"(?:answer|guess|result|solution|value|attempt|response)\s+(?:here\s+)?(?:is|was|would be|gives|might be|:)|"
    r"\b(?:answer|result|solution|it)\s+(?:is|was|would|will|should|can)\s*(?:certainly |definitely |"
    r"clearly )?(?:not|n't|never)|n't)"
    r"(?:\s+(?:equal to|be|the answer|simply))*[\s:$(\[{\\*]*$|\u7b54\u6848\u4e0d(?:\u662f|\u4e3a)[\s:\uff1a$*]*$",
    _FLAGS,
)
_TAKEN_BACK = re.compile(
    r"[^\n]{0,12}\b(?:not|n't|un)\s*(?:sure|certain)\b[^\n]{0,30}\b(?:maybe|perhaps|might|may|could)\b"
    r"|[\s$.*]*(?:wait|oops|sorry|correction|hmm)\b[^\n]{0,40}\b(?:error|mistake|wrong|incorrect)\b[^\n?]{0,40}"
    r"\b(?:should|must|is actually)\b",
    _FLAGS,
)


def is_denied(before: str, behind: str, *, alone: bool) -> bool:
    """Whether the words around a box, on its line, say that it is not the answer. Alone it is the answer unless that is
    denied in so many words: "x cannot be 3" may be what was asked for."""
    if _TAKEN_BACK.match(behind):
        return True
    if _DENIED_BEHIND.match(behind) and not re.match(r"\W*(?:if|unless)\b", behind):
        return True
    return bool((_DENIED_ALONE if alone else _DENIED).search(before))


def is_computed(before: str, gap: str) -> bool:
    """Whether a box is what boxes before it come to: "\\boxed{3} + \\boxed{4} =" stands before it."""
    return bool(_TERM.fullmatch(gap)) or (gap.strip(" $") == "=" and bool(_LAST_TERM.search(before)))


def takes_back(text: str) -> bool:
    """Whether it takes back what stands before it."""
    return bool(_TURN.search(text))


def concludes(before: str, content: str, gap: str, behind: str) -> bool:
    """Whether the box behind `gap` is where the one with `content` before it led to, `before` and `behind` being what
    stands on both sides of the two."""
    before, gap, behind = (_MARKS.sub(" ", text) for text in (before, gap, behind))
    sentences = _STOP.split(gap)
    lead = sentences[-1]
    first = _STOP.split(before)[-1]
    said = re.split(r"\b(?:so|thus|hence|therefore)\b", lead, flags=_FLAGS)[-1]
    if _OFFERED.search(said) or _OFFERED_BEHIND.match(behind):
        return False
    announced = any(words.search(gap[-80:]) and not words.search(first) for words in (_ANSWER, _FINAL))
    if seconds := list(_SECOND.finditer(gap)):
        rest = gap[seconds[-1].end() :]
        parts = _STOP.split(rest)
        return bool(_CLOSING.search(rest) or (announced and len(parts) > 1 and _ANSWER.search(" ".join(parts[1:]))))
    if _CONDITION.search(first) and _CONDITION.search(lead):
        return False
    if any(kind.search(first) and kind.search(lead) for kind in _OF_A_KIND) and not _FIRST_THOUGHT.search(first):
        return False
    if _words(lead) and _words(lead) == _words(first) and not _TURN.search(gap):
        return False  # "So it is \boxed{3}. So it is \boxed{4}."
    if announced or _TURN.search(gap) or _FIRST_THOUGHT.search(first) or len(gap) > _MOST_WORKING:
        return True
    later = "\n".join(sentences[1:]) if len(sentences) > 1 else gap
    said_before = {word.casefold() for word in _SIGNAL.findall(first)}
    signals = {word.casefold() for word in _SIGNAL.findall(later)}
    return bool(signals - (said_before - _STRONG)) or _goes_on(first, content, lead)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+|[^\x00-\x7f]", text.casefold())


def _goes_on(first: str, content: str, lead: str) -> bool:
    """Whether a value is computed from the one before, or is another quantity."""
    nouns = [match["noun"].casefold() for text in (first, lead) if (match := _OF_A_QUANTITY.search(text))]
    if len(nouns) == 2 and nouns[0] != nouns[1] and _QUANTITIES.issuperset(nouns):
        return True
    if _is_of_another(first, lead):
        return True
    formula = _COMPUTED.search(lead[-_MOST_FORMULA:])
    if formula is None:
        return False
    name = _NAME.search(first)
    used = [re.escape(text) for text in (content.strip(), name[1] if name else "") if text]
    return any(re.search(rf"(?<![\w.]){text}(?![\w.])", formula["formula"]) for text in used)


def _is_of_another(first: str, lead: str) -> bool:
    """Whether the second box is a quantity or sum that was asked for, and the first a number or name on the way there:
    "The probability is \\boxed{3/4}. Then m + n = \\boxed{7}". Two of a kind are two answers."""
    if _SUM_OF_NAMES.search(lead[-_MOST_FORMULA:]):
        return not _SUM_OF_NAMES.search(first[-_MOST_FORMULA:])
    quantity, other = _OF_A_NUMBER.search(lead[-_MOST_FORMULA:]), _OF_A_NUMBER.search(first[-_MOST_FORMULA:])
    if quantity is None:
        return False
    if other is not None:
        return quantity["noun"].casefold() != other["noun"].casefold()
    return bool(_NAME.search(first) or _OF_A_QUANTITY.search(first))
