"""Options from --KEY VALUE pairs, with tyro."""

import contextlib
import difflib
import io
import re
from collections.abc import Iterable
from itertools import groupby, pairwise
from typing import TypeVar, cast

from siri.config.elsewhere import name_here
from siri.config.help import help_text
from siri.config.settings import declared
from siri.errors import InputError

T = TypeVar("T")

HELP = ("--help", "-h")
SHORT = {"--from": "--branch-of"}
"""Options by their short names; `from` is a word of Python's."""


def parse(
    options: type[T], arguments: list[str], *, default: T | None = None, where: str = "", prog: str = "siri"
) -> T:
    """Parse --KEY VALUE pairs into `options` with tyro; a fault is one line of InputError. `where` names the recipe
    that they come from, whose switches are spelt --KEY True or --KEY False; it is empty for the command line, which may
    ask for help (SystemExit after it is printed)."""
    arguments = [_in_full(word) for word in arguments]
    keys = [argument.split("=")[0][2:] for argument in arguments if argument.startswith("--") and argument != "--help"]
    check_keys([key.removeprefix("no-") for key in keys], options, where, prog)
    if not where and set(HELP) & set(arguments):
        print(help_text(options, prog, default), end="")
        raise SystemExit(0)
    import tyro

    printed = io.StringIO()
    markers = (tyro.conf.FlagConversionOff,) if where else ()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(options, args=arguments, default=cast(T, default), prog=prog, config=markers)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        message = _after_a_switch(arguments, options) or tyro_fault(printed.getvalue())
        raise InputError(f"{where + ': ' if where else ''}{message}; {prog} --help shows what fits") from None


def _after_a_switch(arguments: list[str], options: type) -> str:
    """What is wrong with a value behind a switch, which takes none; "" where there is none."""
    switches = [each.name for each in declared(options) if isinstance(each.default, bool)]
    for word, value in pairwise(arguments):
        if word.startswith("--") and word[2:].replace("-", "_") in switches and not value.startswith("-"):
            way = "; --run-dir names the run, --resume-weights weights alone" * (word == "--resume")
            return f"{word} is a switch and takes no value, {value!r}{way}"
    return ""


def _in_full(word: str) -> str:
    flag, equals, value = word.partition("=")
    return SHORT.get(flag, flag) + equals + value


def tyro_fault(printed: str) -> str:
    """What is wrong, in one line, by what tyro has printed: it draws a box of a title, the fault, then help, with rules
    between (of - where UTF-8 is not known). The only place that knows how tyro words and draws."""
    lines = [line.strip("│╭╮╰╯ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", printed).splitlines()[1:]]
    passages = [" ".join(passage) for rule, passage in groupby(lines, lambda line: set(line) <= set("─-")) if not rule]
    return passages[0].rstrip(" .") if passages else "the options cannot be read"


def check_keys(keys: Iterable[str], options: type, where: str = "", prog: str = "siri") -> None:
    """Refuse a key that is no field of `options`, with the nearest name."""
    known = [each.name for each in declared(options) if not each.meaning.positional]
    for key in keys:
        if key.replace("-", "_") not in known:
            hint, here = nearest(key.replace("-", "_"), known, "--" if not where else ""), name_here(key)
            if not here.startswith("--"):
                hint = f": {here}" if here and "steps" in known else hint
            elif (name := here.removeprefix("--").replace("-", "_")) in known:
                hint = f": here it is {name if where else here}"
            raise InputError(f"{where + ': ' if where else ''}unknown key {key!r}{hint}; {prog} --help lists all keys")


def nearest(name: str, known: list[str], prefix: str = "") -> str:
    """ ", did you mean X?" for the known name most like `name`, or an empty string."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    shown = close and (prefix + close[0].replace("_", "-") if prefix else close[0])
    return f", did you mean {shown}?" if close else ""
