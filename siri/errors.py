"""The one exception that means "the user's input is wrong": the CLI prints its text as one line and exits with 2."""

import json
from typing import Any

from siri.text import printable

LONGEST_MESSAGE = 2000


class InputError(Exception):
    """Bad input. The message is one line that names the culprit (file, key, value) and the way out. The culprit may be
    from hostile hands: what does not print is escaped, and what is endless is cut in the middle."""

    everybody = False
    """Whether every rank has raised it, in the same place."""
    stuck = False
    """Whether a collective was left behind that never ends: this rank can take part in no other, and has to leave."""

    def __init__(self, message: str):
        shown = printable(message)
        half = LONGEST_MESSAGE // 2
        super().__init__(shown if len(shown) <= 2 * half else f"{shown[:half]} ... {shown[-half:]}")


def parse_json(text: str | bytes, **options: Any) -> Any:
    """json.loads whose every error is a ValueError, however deep the text is nested."""
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, with the next if it ends in a colon; the type where there is no text."""
    first, *others = (str(error).strip() or type(error).__name__).splitlines()
    after = next((line.strip() for line in others if line.strip()), "") if first.endswith(":") else ""
    return f"{first} {after}" if after else first
