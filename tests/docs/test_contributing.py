"""CONTRIBUTING and CHANGELOG name what exists; pre-commit runs what `make lint` runs."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
CODE = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL))
KERNELS = ROOT / "kernels" / "siri_kernels"


def commands() -> list[list[str]]:
    """The commands in sh blocks, comments dropped, and those in the text."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL))
    inline = [code for code in CODE if re.match(r"(make|python|TRITON_INTERPRET=1 pytest) ", code)]
    return [words for line in (*blocks.splitlines(), *inline) if (words := shlex.split(line, comments=True))]


def lint() -> list[str]:
    """The commands of `make lint`."""
    rule = (ROOT / "Makefile").read_text().split("\nlint: .venv\n")[1].split("\n\n")[0]
    return [line.strip() for line in rule.splitlines()]


def test_the_files_that_contributing_names_exist():
    paths = [code for code in CODE if re.fullmatch(r"[\w.*-]*(?:/[\w.-]*)+|[\w.-]+\.(?:py|md|yaml|toml)", code)]
    assert len(paths) > 60
    assert [path for path in paths if not (ROOT / path).exists() and not (KERNELS / path).exists()] == []


def test_links_lead_somewhere():
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", (ROOT / name).read_text()) if "://" not in link]
        assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_commands_of_contributing_exist():
    rules = (ROOT / "Makefile").read_text()
    targets = {word for rule in re.findall(r"^([\w $()-]+):", rules, re.MULTILINE) for word in rule.split()}
    seen = set()
    for program, *words in commands():
        seen.add(program)
        if program == "make":
            assert words[0] in targets, words
            words = [word.removeprefix("TESTS=") for word in words[1:]]
        elif "-m" in words and program.endswith("python"):
            module = words[words.index("-m") + 1]
            assert find_spec(module), module
        paths = [word for word in words if "/" in word]
        assert [path for path in paths if not (ROOT / path).exists()] == []
    assert {"make", "python", ".venv/bin/python"} <= seen


@pytest.mark.parametrize("name", ["quiet", "torture"])
def test_the_markers_of_contributing_exist(name, pytestconfig):
    assert f"`{name}`" in TEXT
    assert any(marker.startswith(f"{name}:") for marker in pytestconfig.getini("markers"))


def test_the_names_of_contributing_are_in_the_files_beside_them():
    """Modules, classes, functions, constants and markers: each is written in some source of the repository."""
    files = [path for folder in ("siri", "kernels", "tests") for path in (ROOT / folder).rglob("*.py")]
    texts = [path.read_text() for path in files if path != Path(__file__)]
    paths = [str(path.relative_to(ROOT)) for path in files]
    sources = "\n".join([*texts, *paths, (ROOT / "pyproject.toml").read_text()])
    names = {part for code in CODE if re.fullmatch(r"[A-Za-z_]+(\.[a-z_]+)?", code) for part in code.split(".")}
    assert {"LengthSchedule", "make_engine", "BUILT_IN", "Meaning", "LOSSES", "IMPLS"} <= names
    names -= {"importance_floor"}  # the option that is added as an example
    assert [name for name in sorted(names) if not re.search(rf"\b{name}\b", sources)] == []


def test_pythons_examples_are_those_of_the_code():
    blocks = re.findall(r"^```python\n(.*?)```", TEXT, re.DOTALL | re.MULTILINE)
    sources = "\n".join((ROOT / path).read_text() for path in ("siri/config/sections.py", "siri/rewards/__init__.py"))
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    assert len(lines) >= 5 and [line for line in lines if line not in sources] == []


def test_modules_have_moved_to_where_the_changelog_says():
    table = (ROOT / "CHANGELOG.md").read_text().split("### Moved")[1].split("\n## ")[0]
    cells = [row.split("|")[2] for row in table.splitlines() if row.startswith("| `")]
    modules = re.findall(r"`(siri(?:_kernels)?\.[\w.]+)`", "".join(cells))
    assert len(modules) > 60
    assert [name for name in modules if find_spec(name) is None] == []


def test_pre_commit_runs_what_make_lint_runs():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local", "nothing is fetched"
    assert [hook["entry"] for hook in repository["hooks"]] == lint()
    for hook in repository["hooks"]:
        assert hook["language"] == "system" and hook["pass_filenames"] is False
