r"""What stands around an answer and is none of it: math delimiters, white space of LaTeX, a full stop.

Rules of spelling that hold at the beginning or the end of a text see it without these, wherever it was written.
"""

import re

_SPACES = ("\\qquad", "\\quad", "\\,", "\\;", "\\:", "\\!", "\\ ", "~")
_NO_STOPS = ("\\right.", "\\right .", "&nbsp;", "&gt;", "&lt;")
_PAIRS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
# A sign that was put in \text: \text{\$}12, 12\text{\%}, \text{-}5.
_SIGN = re.compile(
    "\\\\(?:text(?:rm|bf|it|normal)?|mathrm|mbox)\\s*\\{\\s*(\\\\?[$%&]|[-+=¢€£¥₩₹−°<>]|[°]\\s*[CF])\\s*\\}"  # noqa: RUF001
)


def trimmed(text: str) -> str:
    """`text` without delimiters around the whole of it, spaces of LaTeX at its ends, and a full stop."""
    before = None
    while text != before:
        before = text
        text = _without_spaces(text)
        for opening, closing in _PAIRS:
            inner = text[len(opening) : -len(closing)]
            if (
                len(text) > 2 * len(opening)
                and text.startswith(opening)
                and text.endswith(closing)
                and opening not in inner.replace("\\$", "")
                and not (closing == "$" and inner.endswith("\\"))
            ):
                text = inner
    return text


def _without_spaces(text: str) -> str:
    text = text.strip()
    while space := next((space for space in _SPACES if text.startswith(space)), ""):
        text = text.removeprefix(space).lstrip()
    while text:
        space = next((space for space in _SPACES if text.endswith(space)), "")
        if space and not (len(space) == 2 and text.endswith("\\" + space)):
            text = text.removesuffix(space).rstrip()
        elif text[-1] in ".,;" and text[-2:-1] not in (".", "\\") and not text.endswith(_NO_STOPS):
            text = text[:-1].rstrip()
        else:
            break
    return text


def without_text_signs(text: str) -> str:
    r"""`text` with the sign alone for one that stands in \text."""
    return _SIGN.sub(lambda match: "\\&" if match[1] == "&" else match[1], text) if "{" in text else text
