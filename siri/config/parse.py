"""Options from --KEY VALUE pairs, with tyro."""

import contextlib
import difflib
import io
import re
from dataclasses import fields
from itertools import groupby
from typing import Any, TypeVar

from siri.errors import InputError

T = TypeVar("T")


def parse(
    options: type[T], arguments: list[str], *, default: T | None = None, where: str = "", prog: str = "siri"
) -> T:
    """Parse --KEY VALUE pairs into `options` with tyro; a fault is one line of InputError. `where` names the recipe
    that they come from, whose switches are spelt --KEY True or --KEY False; it is empty for the command line."""
    import tyro

    keys = [argument.split("=")[0][2:] for argument in arguments if argument.startswith("--") and argument != "--help"]
    check_keys([key.removeprefix("no-") for key in keys], options, where, prog)
    printed = io.StringIO()
    markers = (tyro.conf.FlagConversionOff,) if where else ()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(options, args=arguments, default=default, prog=prog, config=markers)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        # tyro draws a box: a title, then what is wrong, then help, with rules between (of - where UTF-8 is not known).
        lines = [line.strip("│╭╮╰╯ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue()).splitlines()[1:]]
        parts = [" ".join(part) for rule, part in groupby(lines, lambda line: set(line) <= set("─-")) if not rule]
        message = parts[0].rstrip(" .") if parts else "the options cannot be read"
        raise InputError(f"{where + ': ' if where else ''}{message}; {prog} --help shows what fits") from None


def check_keys(keys: Any, options: type, where: str = "", prog: str = "siri") -> None:
    """Refuse a key that is no field of `options`, with the nearest name."""
    known = [field.name for field in fields(options)]
    for key in keys:
        if key.replace("-", "_") not in known:
            hint = nearest(key.replace("-", "_"), known, "--" if not where else "")
            raise InputError(f"{where + ': ' if where else ''}unknown key {key!r}{hint}; {prog} --help lists all keys")


def nearest(name: str, known: list[str], prefix: str = "") -> str:
    """ ", did you mean X?" for the known name most like `name`, or an empty string."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    shown = close and (prefix + close[0].replace("_", "-") if prefix else close[0])
    return f", did you mean {shown}?" if close else ""
