"""docs/reliability.md, trust.md, gpu.md and async.md promise nothing without a test that is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / name for name in ("reliability.md", "trust.md")]


@pytest.mark.parametrize(
    ("page", "least"), [("reliability.md", 30), ("trust.md", 40), ("gpu.md", 25), ("async.md", 20)]
)
def test_every_test_that_is_named_exists(page, least):
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / page).read_text())
    assert len(named) > least
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in functions, f"{path} has no {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_promise_names_a_test(page):
    rows = [row for row in page.read_text().splitlines() if row.startswith("| ")]
    promises = [row for row in rows if not row.startswith(("| promise", "| # ", "| kind"))]
    assert len(promises) > 20
    assert not [row for row in promises if "::test_" not in row]


def test_every_promise_of_sampling_ahead_names_a_test():
    _, promises = (ROOT / "docs" / "async.md").read_text().split("\n| promise | test |\n|---|---|\n")
    rows = [row for row in promises.splitlines() if row.startswith("| ")]
    assert len(rows) > 15 and not [row for row in rows if "::test_" not in row]
