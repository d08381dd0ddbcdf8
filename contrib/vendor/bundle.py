"""python contrib/vendor/bundle.py [--check]: write the files that another trainer could vendor, one self-contained file
each, from the modules of this folder and from siri_kernels.

A module of this folder is the seam in the trainer's own terms; what it imports from siri_kernels (or from its
neighbours here) is copied in, definition by definition with all that these need, and nothing else. The result imports
torch, triton and the standard library. --check writes nothing and ends with 1 where a file is not what it would be.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONTRIB = HERE.parent
KERNELS = CONTRIB.parent / "kernels"
FILES = {
    "prime_rl": CONTRIB / "prime_rl" / "fused_lm_head.py",
    "skyrl": CONTRIB / "skyrl" / "fused_linear_logprob_siri.py",
    "slime": CONTRIB / "slime" / "logprob_entropy.py",
}
"""module of this folder -> the file that is made of it"""
RENAMED = {("siri_kernels.rows.torch", "FLOOR"): "LEAST_LOGIT"}
"""names that two modules give to different things"""


@dataclass
class Module:
    name: str
    lines: list[str]
    nodes: dict[str, list[ast.stmt]] = field(default_factory=dict)
    inner: dict[str, tuple[str, str]] = field(default_factory=dict)
    """name here -> (module, name there), for imports of what is copied"""
    outer: dict[str, tuple[str, bool]] = field(default_factory=dict)
    """name here -> (import line of this name alone, whether for type checkers only)"""


def place(name: str) -> Path | None:
    """The file of a module that is copied from, None of any other."""
    if name.split(".")[0] == "siri_kernels":
        path = KERNELS / Path(*name.split("."))
        return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    path = HERE / f"{name}.py"
    return path if path.exists() else None


@cache
def read(name: str) -> Module:
    path = place(name)
    assert path is not None
    text = path.read_text()
    module = Module(name, text.splitlines())
    for node in ast.parse(text).body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for each in node.body:
                imports(module, each, typing_only=True)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            imports(module, node, typing_only=False)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            module.nodes.setdefault(node.name, []).append(node)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                for each in ast.walk(target):
                    if isinstance(each, ast.Name):
                        module.nodes.setdefault(each.id, []).append(node)
    return module


def imports(module: Module, node: ast.stmt, *, typing_only: bool) -> None:
    if isinstance(node, ast.Import):
        for alias in node.names:
            line = f"import {alias.name}" + (f" as {alias.asname}" if alias.asname else "")
            module.outer[alias.asname or alias.name.split(".")[0]] = (line, typing_only)
    elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
        for alias in node.names:
            if place(node.module or ""):
                module.inner[alias.asname or alias.name] = (node.module or "", alias.name)
            else:
                line = f"from {node.module} import {alias.name}" + (f" as {alias.asname}" if alias.asname else "")
                module.outer[alias.asname or alias.name] = (line, typing_only)


def source(module: Module, node: ast.stmt) -> str:
    """The lines of a definition, with the comment right above it and the string right below."""
    first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))]) - 1
    while first and module.lines[first - 1].startswith("#") and "pyright:" not in module.lines[first - 1]:
        first -= 1
    last = node.end_lineno or node.lineno
    if isinstance(node, (ast.Assign, ast.AnnAssign)) and module.lines[last : last + 1] != []:
        following = [n for n in ast.parse("\n".join(module.lines)).body if n.lineno == last + 1]
        if following and isinstance(following[0], ast.Expr) and isinstance(following[0].value, ast.Constant):
            last = following[0].end_lineno or last
    return "\n".join(module.lines[first:last])


def renamed(text: str, names: dict[str, str]) -> str:
    """`text` with other names for what is called by `names`, attributes left alone."""
    if not names:
        return text
    lines = text.splitlines(keepends=True)
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    for before, token in reversed(list(zip([tokens[0], *tokens], tokens, strict=False))):
        if token.type == tokenize.NAME and token.string in names and before.string != ".":
            row, column = token.start
            line = lines[row - 1]
            lines[row - 1] = line[:column] + names[token.string] + line[token.end[1] :]
    return "".join(lines)


class Bundle:
    def __init__(self, template: str):
        self.template = read(template)
        self.taken: dict[tuple[str, str], None] = {}
        self.pieces: list[tuple[str, bool]] = []
        self.lines: dict[str, bool] = {}
        self.names: dict[str, tuple[str, str]] = {}
        self.seen: set[tuple[str, int]] = set()
        for name in self.template.nodes:
            self.take(template, name)

    def take(self, module_name: str, name: str) -> None:
        """Put a definition down, after all that it needs."""
        module = read(module_name)
        if name in module.inner:
            return self.take(*module.inner[name])
        if (module_name, name) in self.taken:
            return None
        if name in module.outer:
            line, typing_only = module.outer[name]
            self.lines[line] = self.lines.get(line, True) and typing_only
            return None
        if name not in module.nodes:
            return None  # a builtin, or a name of a function's own
        self.taken[module_name, name] = None
        called = RENAMED.get((module_name, name), name)
        if self.names.setdefault(called, (module_name, name)) != (module_name, name):
            raise SystemExit(f"bundle.py: {self.names[called][0]} and {module_name} both define {called}: RENAMED")
        for node in module.nodes[name]:
            used = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
            for local in (each for each in ast.walk(node) if isinstance(each, ast.ImportFrom)):
                if place(local.module or ""):
                    raise SystemExit(f"bundle.py: {module_name}.{name} imports {local.module} inside: not copied")
            for each in sorted(used - {name}):
                self.take(module_name, each)
            if (module_name, node.lineno) in self.seen:
                continue
            self.seen.add((module_name, node.lineno))
            there = {each: module.inner.get(each, (module_name, each)) for each in used}
            changes = {each: RENAMED[origin] for each, origin in there.items() if origin in RENAMED}
            text = re.sub(r"  # pyright: ignore\[\w+\]", "", renamed(source(module, node), changes))
            self.pieces.append((text, isinstance(node, (ast.Assign, ast.AnnAssign))))
        return None

    def text(self) -> str:
        doc = ast.get_docstring(ast.parse("\n".join(self.template.lines)), clean=False)
        version = re.findall(r'__version__ = "([^"]+)"', (KERNELS / "siri_kernels" / "__init__.py").read_text())[0]
        head = f'"""{doc}\nMade by contrib/vendor/bundle.py of siri-kernels {version}; change it there.\n"""\n\n'
        head = f"# SPDX-License-Identifier: Apache-2.0\n{head}from __future__ import annotations\n"
        only = [line for line, typing_only in self.lines.items() if typing_only]
        if only:
            self.lines["from typing import TYPE_CHECKING"] = False
        now = [line for line, typing_only in self.lines.items() if not typing_only]
        for group in (
            [line for line in now if line.split()[1].split(".")[0] in sys.stdlib_module_names],
            [line for line in now if line.split()[1].split(".")[0] not in sys.stdlib_module_names],
        ):
            head += "\n" + "\n".join(merged(group)) + "\n" if group else ""
        if only:
            head += "\nif TYPE_CHECKING:\n" + "".join(f"    {line}\n" for line in merged(only))
        body, constant_before = "", False
        for text, constant in self.pieces:
            body += ("\n" if constant and constant_before else "\n\n" if body or not constant else "\n") + text + "\n"
            constant_before = constant
        return head + body


def merged(lines: list[str]) -> list[str]:
    """Sorted imports, those from one module on one line."""
    plain = sorted(line for line in lines if line.startswith("import "))
    froms: dict[str, list[str]] = {}
    for line in lines:
        if match := re.match(r"from (\S+) import (.+)", line):
            froms.setdefault(match[1], []).append(match[2])

    def order(name: str) -> tuple[int, str]:
        return (0 if name.isupper() else 1 if name[0].isupper() else 2), name

    return plain + [
        f"from {module} import {', '.join(sorted(names, key=order))}" for module, names in sorted(froms.items())
    ]


def made(name: str) -> str:
    """The text of the file that is made of a module of this folder."""
    return Bundle(name).text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = [path for name, path in FILES.items() if not path.exists() or path.read_text() != made(name)]
    for name, path in FILES.items():
        if path in stale and not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(made(name))
        if path in stale:
            print(f"bundle.py: {path.relative_to(CONTRIB.parent)} {'is not what it would be' if check else 'written'}")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
