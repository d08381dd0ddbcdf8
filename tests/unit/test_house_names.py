"""Names are nouns for things: nothing that a tracked file binds is called own, one or found."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VAGUE = {"own", "one", "found"}
KEPT = ["siri/commands/doctor.py: found"]
"""A field that `siri doctor --json` prints, which its readers know by this name."""
NAMES = (
    (ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, "name"),
    (ast.ExceptHandler | ast.MatchAs | ast.MatchStar, "name"),
    (ast.MatchMapping, "rest"),
    (ast.arg | ast.keyword, "arg"),
    (ast.alias, "asname"),
)
"""Syntax that binds the name in this field of it, whatever stands around; a keyword names what a function binds."""


def tracked() -> list[str]:
    """The Python files of this checkout."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not in a git checkout")
    return [path for path in listed.stdout.splitlines() if (ROOT / path).is_file()]


def bindings(source: str) -> list[tuple[int, str]]:
    """(line, name) of everything that a source gives a name to: what is assigned, looped over, imported, caught,
    matched or defined, attributes, parameters and keywords, and the names in a parametrised test's first argument."""
    bound = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name | ast.Attribute) and not isinstance(node.ctx, ast.Load):
            bound.append((node.lineno, node.id if isinstance(node, ast.Name) else node.attr))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("parametrize") and node.args:
            listed = [part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)]
            bound += [(node.lineno, name.strip()) for names in listed for name in str(names).split(",")]
        for syntax, field in NAMES:
            if isinstance(node, syntax) and getattr(node, field):
                bound.append((node.lineno, getattr(node, field)))
    return bound


def vague(source: str) -> list[tuple[int, str]]:
    return sorted((line, name) for line, name in set(bindings(source)) if name.lstrip("_") in VAGUE)


def test_names_are_nouns_for_things():
    paths = tracked()
    assert {"siri", "kernels", "bench", "tests", "contrib", ".ci", "studies"} <= {path.split("/")[0] for path in paths}
    told = [(path, line, name) for path in paths for line, name in vague((ROOT / path).read_text())]
    where = "\n".join(f"{path}:{line}: {name}" for path, line, name in told)
    assert [f"{path}: {name}" for path, _, name in told] == KEPT, f"call these what they hold, but for {KEPT}:\n{where}"


@pytest.mark.parametrize(
    "source",
    [
        "one = 1",
        "one: int",
        "_one = 1",
        "one += 1",
        "a, (b, *one) = c",
        "(one := 1)",
        "a.one = 1",
        "del a.one",
        "for one in a: pass",
        "[a for one in b]",
        "{a: b for a, one in c}",
        "with a as one: pass",
        "import one.a as one",
        "from a import b as one",
        "try: pass\nexcept a as one: pass",
        "def f(one): pass",
        "def f(a, /, *, one=1): pass",
        "def f(*one): pass",
        "def f(**one): pass",
        "lambda one: 1",
        "f(one=1)",
        "def one(): pass",
        "async def one(): pass",
        "class one: pass",
        "class A:\n    one: int = 1",
        "match a:\n    case [1, *one]: pass",
        "match a:\n    case {1: 2, **one}: pass",
        "match a:\n    case A() as one: pass",
        "match a:\n    case one: pass",
        "@pytest.mark.parametrize('a, one', [])\ndef test_a(): pass",
        "@pytest.mark.parametrize(('a', 'one'), [])\ndef test_a(): pass",
        "def f():\n    global one\n    one = 1",
    ],
)
def test_every_kind_of_binding_is_seen(source):
    """And the other two words as well."""
    for word in sorted(VAGUE):
        (line, name), *_ = vague(source.replace("one", word))
        assert name.lstrip("_") == word and line <= source.count("\n") + 1


@pytest.mark.parametrize("source", ["'one'  # found", "f(one)", "a.one()", "a['one']", "def found_one(owner): pass"])
def test_what_only_speaks_of_them_is_left_alone(source):
    assert vague(source) == []
