"""The help of a command, from what its options declare: everyday ones first, the others section by section."""

import ast
import inspect
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import is_dataclass
from itertools import pairwise
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from siri.config.settings import Declared, declared

COLUMN = 26
"""Where the texts begin; a longer call has a line of its own."""
WIDEST = 110


def help_text(options: type, prog: str, default: Any = None) -> str:
    """What --help prints. prog: the command with its arguments. default: an instance whose values are shown."""
    hints, texts = get_type_hints(options), field_texts(options)
    width = min(shutil.get_terminal_size().columns, WIDEST)
    groups: dict[str, list[str]] = {"Arguments": [], "Everyday": []}
    for each in declared(options, default):
        meaning = each.meaning
        heading = "Arguments" if meaning.positional else "Everyday" if meaning.everyday else _heading(each.section)
        entry = _entry(each, hints[each.name], texts.get(each.name, ""), width)
        groups.setdefault(heading, []).extend(entry)
    flags = any(not each.meaning.positional for each in declared(options))
    parts = [f"usage: {prog}{' [OPTIONS]' if flags else ''}"]
    for heading, lines in groups.items():
        if lines:
            parts += ["", *textwrap.wrap(heading, width), *lines]
    return "\n".join(parts) + "\n"


def field_texts(options: type) -> dict[str, str]:
    """The string below each field of a dataclass; a class that inherits a field may say something else of it."""
    texts = {}
    for section in reversed(options.__mro__):
        if is_dataclass(section):
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
            assert isinstance(definition, ast.ClassDef)
            texts |= dict(_strings_below(definition))
    return texts


def _strings_below(definition: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for above, below in pairwise(definition.body):
        if (
            isinstance(above, ast.AnnAssign)
            and isinstance(above.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            yield above.target.id, " ".join(str(below.value.value).split())


def _heading(section: type) -> str:
    return inspect.cleandoc(section.__doc__ or "").partition("\n")[0]


def _entry(each: Declared, hint: Any, text: str, width: int) -> list[str]:
    flag = each.name.replace("_", "-")
    if each.meaning.positional:
        call = each.name.upper() + (" ..." if get_origin(hint) is tuple else "")
    else:
        call = f"--{flag}, --no-{flag}" if hint is bool else f"--{flag} {placeholder(hint)}"
        text = f"{text} (default: {_value(each.default)})"
    lines = textwrap.wrap(text, width - COLUMN, break_on_hyphens=False)
    if len(call) + 4 > COLUMN:
        return [f"  {call}", *(" " * COLUMN + line for line in lines)]
    return [f"  {call}".ljust(COLUMN) + lines[0], *(" " * COLUMN + line for line in lines[1:])]


def placeholder(hint: Any) -> str:
    """What stands for the value of a type: INT, {a,b}, [STR ...], FLOAT|{auto}."""
    if hint in (NoneType, None):
        return "{None}"
    if get_origin(hint) is Literal:
        return "{" + ",".join(map(str, get_args(hint))) + "}"
    if get_origin(hint) in (Union, UnionType):
        return "|".join(map(placeholder, get_args(hint)))
    if get_origin(hint) is tuple:
        items = get_args(hint)
        return f"[{placeholder(items[0])} ...]" if items[-1] is Ellipsis else " ".join(map(placeholder, items))
    return hint.__name__.upper()


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(_value(item) for item in value) or "none"
    return str(value) if value != "" else "''"
