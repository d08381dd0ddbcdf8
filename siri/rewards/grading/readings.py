"""What else a written number may mean: thousands of several countries, powers of ten, decimals that recur."""

import re

# An answer longer than this is compared as text only: parsing takes superlinear time and no gold answer is as long.
MAX_PARSED_CHARS = 512

_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?=[^,\d][^,]*$|$)")
# Of two separators the last is the decimal one, and one that stands twice is none; lakhs have two digits.
_ELSEWHERE = re.compile(r"[-+]?\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?|[-+]?\d{1,3}(?:\.\d{3})+,\d+")
_LAKHS = re.compile(r"[-+]?\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d+)?")
_SCIENTIFIC = re.compile(
    r"([-+]?\d+(?:\.\d+)?)[eE]([-+]?\d{1,4})(\s*\\text\{[^{}]*\}(?:\^[23])?|\s+[a-zA-Z][a-zA-Z/. ]*)?"
)
_CERTAINLY = re.compile(r"[-+]?(?:1(?:\.\d+)?|\d+\.\d+)[eE]|[-+]?\d+[eE][-+]?0\d")
_REPEATING = re.compile(r"(-?)(\d*\.\d*?)(?:\((\d+)\)|(\d)\4{2,}|(\d{2,}?)\5+)(\\[lc]?dots|\.\.\.)?")
_COMMA = re.compile(r"([-+]?\d+),(\d*\\(?:overline|dot)[^,]*)")


def is_thousands(text: str) -> bool:
    """Whether it is, or begins with, a number with commas at its thousands, which may be a list as well."""
    return bool(_THOUSANDS.match(text.strip()))


def readings(text: str) -> list[str]:
    r"""`text`, and what else it may mean.

    "81,256" is one number or two, "2e-5" a power of ten or 2e less 5, "0.1(6)" and "0.1666..." recur.
    """
    if len(text) > MAX_PARSED_CHARS:
        return [text]
    number = _THOUSANDS.match(text)
    texts = [text, number[0].replace(",", "") + text[number.end() :]] if number else [text]
    if number and ",0" in number[0]:  # no number of a list begins with a zero
        texts = texts[1:]
    if _LAKHS.fullmatch(text):
        texts.append(text.replace(",", ""))
    if _ELSEWHERE.fullmatch(text):
        texts.append(text.replace(".", "").replace(",", "."))
    if match := _COMMA.fullmatch(text):
        texts.append(f"{match[1]}.{match[2]}")
    if match := _SCIENTIFIC.fullmatch(text):
        power = f"{match[1]} \\cdot 10^{{{match[2]}}}{match[3] or ''}"
        # nobody writes 1 before e, nor the digits of a decimal, nor adds 05
        texts = [power] if _CERTAINLY.match(text) else [text, power]
    if (match := _REPEATING.fullmatch(text)) and (match[3] or match[6]):
        sign, fixed, *periods, _ = match.groups()
        texts.append(f"{sign}{fixed}\\overline{{{next(filter(None, periods))}}}")
    return texts
