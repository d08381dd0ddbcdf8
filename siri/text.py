"""Text from outside (model output, file names, messages of errors and servers) on its way to a file or a terminal.

Such text may hold halves of surrogate pairs, which UTF-8 has no bytes for, and control characters, which a terminal
obeys.
"""

import sys
from typing import Any


def encoded(text: str) -> bytes:
    """UTF-8 of any text. Half of a surrogate pair becomes its escape, \\udXXX, which JSON reads back as what it was."""
    return text.encode(errors="backslashreplace")


def printable(text: Any) -> str:
    """One line that shows any text: what does not print (control characters, line ends, halves of surrogate pairs) is
    escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(text))


def tolerant_streams() -> None:
    """Let standard output and error take any text from here on, whatever the locale: what they cannot encode is
    escaped."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


def say(text: Any) -> None:
    """Print lines that hold text from outside."""
    print("\n".join(printable(line) for line in str(text).split("\n")))
