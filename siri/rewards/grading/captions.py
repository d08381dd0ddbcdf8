r"""What is written before a box and belongs to its content: a name, or the number of a part.

Of "$b = \boxed{2}$, $a = \boxed{3}$" the values alone would be 2, 3, which another order of the names makes wrong; of
"(1) \boxed{7} (2) \boxed{2}" they would be a list in any order.
"""

import re

from siri.rewards.grading.structure import split

_INDEX = r"(?:_(?:\w|\{[\w,]{1,9}\}))?"
_LETTER = rf"(?:[a-zA-Z]|\\(?!(?:text|quad|qquad|left|right|in|to|and|or|cdot|times)\b)[a-z]{{2,9}}){_INDEX}'{{0,2}}"
_NAME = re.compile(
    rf"(?:\\(?:angle|triangle|overline|vec|bar|hat)\s*(?:\{{\s*[a-zA-Z]{{1,3}}\s*\}}|[a-zA-Z]{{1,3}})|"
    rf"m\s*\\angle\s*[A-Z]{{1,3}}|\|?[A-Z]{{2,3}}\|?|\\?(?:Pr|max|min|sin|cos|tan)\s*\(?[a-zA-Z]\)?|"
    rf"{_LETTER}(?:\s*\([^()=]{{1,12}}\))?)"
)
# A name at the end of a sentence's words: "so a", "then \angle A".
_LAST_NAME = re.compile(rf"(?:^|.*[\s~:(\u4e00-\u9fff\uff0c\u3001])({_NAME.pattern})", re.DOTALL)
_SIGN = re.compile(
    r"(?:=|:|\uff1a|\\approx|\\to|->|\u2192|\u2248|\||(?<![a-zA-Z])(?:is|equals)(?![a-zA-Z])|(?:\u7684\u503c)?[\u4e3a\u662f]"
    r"|(?P<within>\\in))\s*$"
)
_OPENED = re.compile(r"[\s$({\[]{0,20}$|(?:\s|\\[(\[]|\$){0,20}$")
# Of markdown, and of columns.
_MARK = re.compile(r"(?<!\\)[*&`]+|(?<=\s)_+|_+(?=[\s=:])")
_BOUNDARY = re.compile(
    r"\\begin\{[a-z]{1,9}\*?\}|\\(?:quad|qquad|[()\[\]])|(?<![a-zA-Z])(?:and|or|then|so|but|with)(?![a-zA-Z])|\\\\|[.!?](?=\s)|\n|\|\s"
)
_OPERATOR = re.compile(r"[-+*/^_=<>|]\s*$|\\(?:cdot|times|div|pm|le|ge|leq|geq|ne|neq)\s*$")
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}")
_PART_NAME = r"(?P<{}>\d|[a-h]|[A-H]|i{{1,3}}|iv|v)"
_PART = re.compile(
    rf"(?:(?:^|[.;,:!?\n\u3002\uff0c\uff1b}}])[\s$*_`#>\\)\]}}]{{0,20}}(?:\band\b\s*)?(?:for\s+)?"
    rf"(?:[(\uff08]\s*|(?<![a-zA-Z\d(]))(?-i:{_PART_NAME.format('bracketed')})\s*[)\uff09]|"
    r"(?:^|\n)[\s$*_`#>\-]{0,20}(?P<dotted>[a-h])\.(?=[\s*])|\b(?P<nth>first|second|third|fourth)\s+(?:part|question)\b|"
    rf"\b(?:part|subpart|question|problem)\s*[(\uff08]?\s*{_PART_NAME.format('said')}\b)",
    re.IGNORECASE,
)
_NUMBERS = {"i": 1, "ii": 2, "iii": 3, "iv": 4, "v": 5, "first": 1, "second": 2, "third": 3, "fourth": 4}
_MOST_BEFORE = 160


def captioned(contents: list[str], gaps: list[str], behind: str) -> list[str]:
    r"""The contents of boxes with what stands before each of them in `gaps`: in the order of the parts, with their
    numbers, where each is a part, and else with the names that they have. The parts may be told behind the boxes, of
    which the last is followed by `behind`."""
    gaps = [_MARK.sub("", gap[-_MOST_BEFORE:]) for gap in gaps]
    named = [_named(content, gap) for content, gap in zip(contents, gaps, strict=True)]
    parts = [_part(gap) for gap in gaps]
    if not parts[0] and all(parts[1:]):
        parts = [*parts[1:], _part(behind)]
    if all(parts) and len(set(parts)) == len(parts):
        if len(set(contents)) == 1:
            return contents
        ordered = sorted(zip(parts, [*map(_or_plain, named, contents)], strict=True), key=lambda pair: pair[0])
        return [f"({place}) {content}" for place, (_, content) in enumerate(ordered, 1)]
    if len(set(contents)) == 1 and not all(named):
        return contents
    return list(map(_or_plain, named, contents))


def _or_plain(named: str, content: str) -> str:
    return named or content


def _part(gap: str) -> int:
    """The number of the part whose answer follows; 0 for none, or for several."""
    places = {_place(next(filter(None, match.groups()))) for match in _PART.finditer(gap)}
    return places.pop() if len(places) == 1 else 0


def _place(text: str) -> int:
    if text.isdigit():
        return int(text)
    return _NUMBERS.get(text.casefold()) or ord(text.casefold()) - ord("a") + 1


def _named(content: str, gap: str) -> str:
    """The content behind its name; "" where it has none."""
    if "=" in content:
        return content
    before = gap[: -len(opened[0])] if (opened := _OPENED.search(gap)) and opened[0] else gap
    sign = _SIGN.search(before)
    if sign is None:
        return ""
    before = before[: sign.start()]
    formula = before.rstrip("$ ").rpartition("$")[2]
    formula = split(_BOUNDARY.split(formula)[-1], ",;\uff0c\uff1b\u3001")[-1]
    first, *computed = split(formula, "=")
    if any(map(_WORD.search, computed)):
        first, computed = computed[-1], []
    match = _LAST_NAME.fullmatch(first.rstrip())
    if match is None or _OPERATOR.search(first[: match.start(1)]):
        return ""
    return f"{match[1]}\\in {content}" if sign["within"] else f"{match[1]}={content}"
