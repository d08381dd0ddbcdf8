r"""Equations side by side, with nothing between them but space, a line break or a sign of logic: they are a list.

As one chain of equals signs "x = 3 \quad y = 5" would say that 3y is something.
"""

import re

from siri.rewards.grading.structure import split

_TOKEN = re.compile(
    r"\\(?P<begin>begin|end)\s*\{\w+\*?\}|(?P<break>\\(?:q?quad|land|wedge|lor|vee)(?![a-zA-Z])|\\\\(?:\[[^\[\]]*\])?"
    r"|\\hspace\*?\{[^{}]*\}|\\(?:newline|par|hfill)(?![a-zA-Z])"
    r"|(?:\\[;: ]|(?:\\,|~)\s*(?:\\[,;: ]|~))(?:\s|\\[,;: ]|~)*"
    r"|\\text\w*\{[\s~,]*(?:AND|OR|&)[\s~,]*\}|\b(?:AND|OR)\b|(?<=\n)\n+)|(?P<open>[({\[])|(?P<close>[)}\]])|\\."
)
# An equation, from its name on.
_SIGN = re.compile(r"=|\\approx(?![a-zA-Z])")
_NAMED = re.compile(r"\s*(?:[a-zA-Z]|\\(?![a-z]*text)[a-zA-Z]+|[(|\d\[+-])")
_OR = re.compile(r"\\(?:lor|vee)|OR")


def listed_statements(text: str) -> str:
    """`text` with commas between equations that have none."""
    if text.count("=") + text.count("\\approx") < 2:
        return text
    parts, breaks, depth, start = [], [], 0, 0
    for token in _TOKEN.finditer(text):
        if token["begin"]:
            depth += 1 if token["begin"] == "begin" else -1
        elif token["open"] or token["close"]:
            depth += 1 if token["open"] else -1
        elif token["break"] and depth == 0:
            parts.append(text[start : token.start()])
            breaks.append(token[0])
            start = token.end()
    parts.append(text[start:])
    if not breaks:
        return text
    listed = parts[0]
    for between, before, after in zip(breaks, parts, parts[1:], strict=False):
        both = _is_equation(before.rstrip(" ,;")) and _is_equation(after)
        comma = both and not before.rstrip().endswith((",", ";")) and not before.rstrip().endswith("\\text{,}")
        said = " \\text{ or } " if _OR.search(between) else ", "
        listed = listed.rstrip() + said + after.lstrip() if comma else listed + between + after
    return listed


def _is_equation(text: str) -> bool:
    sign = _SIGN.search(text)
    if sign is None or not _NAMED.match(text):
        return False
    before, after = text[: sign.start()], text[sign.end() :]
    return bool(before.strip(" \\") and after.strip()) and not re.search("[<>]", before)


_WORDED = re.compile(
    r"\s*((?:[a-zA-Z]\s*)?)\\text\{\s*(-?[A-Za-z]{3,}(?: [a-z]+)?)\s*(?::\s*\}|\}\s*:?)\s*"
    r"(-?(?:\d|\\frac|\\sqrt|\().*)",
    re.DOTALL,
)
# "A: 3, B: 5", as matchings are given.
_LETTERED = re.compile(
    r"\s*(?:\\text\{\s*)?([A-Z])\s*(?:\})?\s*:\s*(?:\})?\s*(-?\d[\d.]*|-?\\frac\{\d+\}\{\d+\}|[a-z]+)\s*"
)
_NO_NAMES = frozenset(
    re.findall(r"\w+", "and or not but about approximately maybe either except minus negative less more")
)


def named_values(text: str) -> str:
    r"""Equations for "\text{length: }5, \text{width: }3", values with words for names."""
    letters = [_LETTERED.fullmatch(part) for part in text.split(",")] if ":" in text and "," in text else []
    if letters and all(letters) and len({match[1] for match in letters if match}) == len(letters):
        return ", ".join(f"{match[1]}={match[2]}" for match in letters if match)
    parts = split(text, ",") if text.count("\\text") > 1 else []
    matches = [_WORDED.fullmatch(part) for part in parts]
    names = [f"{match[1].strip()}{match[2].casefold()}" for match in matches if match]
    if any(match and bool(match[1]) != match[2].startswith("-") for match in matches):
        return text
    if len(parts) < 2 or len(set(names)) < len(parts) or any(not _NO_NAMES.isdisjoint(name.split()) for name in names):
        return text
    values = [match[3] for match in matches if match]
    return ", ".join(f"\\text{{{name}}}={value}" for name, value in zip(names, values, strict=True))
