"""docs/reliability.md promises nothing without a test that is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_is_named_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "reliability.md").read_text())
    assert len(named) > 30
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text())
        found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in found, f"{path} has no {name}"


def test_every_promise_names_a_test():
    rows = [row for row in (ROOT / "docs" / "reliability.md").read_text().splitlines() if row.startswith("| ")]
    promises = [row for row in rows if not row.startswith("| promise")]
    assert len(promises) > 20
    assert not [row for row in promises if "::test_" not in row]
