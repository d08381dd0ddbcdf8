"""The READMEs keep what they promise: their links lead somewhere, their commands exist."""

import re
from pathlib import Path

import pytest

from siri.cli import COMMANDS
from siri.config.recipe import recipe_names

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("readme", ["README.md", "kernels/README.md", "SECURITY.md", "docs/reliability.md"])
def test_relative_links_exist(readme):
    path = ROOT / readme
    links = re.findall(r"\]\(([^)#\s]+)\)", path.read_text())
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (path.parent / link).exists()] == []


def test_commands_and_recipes_exist():
    text = (ROOT / "README.md").read_text()
    assert set(re.findall(r"^siri (\w+)", text, re.MULTILINE)) <= set(COMMANDS)
    assert all(f"`{name}`" in text for name in recipe_names())
    targets = set(re.findall(r"^make (\w+)", text, re.MULTILINE))
    assert {"demo", "test"} <= targets
    assert all(f"\n{target}:" in (ROOT / "Makefile").read_text() for target in targets)
