"""docs/paper.md names only what exists, and every switch of the recipe that the paper prints or leaves open."""

import re
from dataclasses import fields
from importlib.resources import files
from pathlib import Path

from siri.cli import COMMANDS
from siri.config import Config
from siri.config.recipe import recipe_names

PAGE = Path(__file__).parents[2] / "docs" / "paper.md"
KEYS = {field.name for field in fields(Config)}


def rows(section: str) -> list[list[str]]:
    """Cells of the table below a heading."""
    text = PAGE.read_text().split(f"## {section}")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_file_exists():
    links = re.findall(r"\]\(([^)#\s]+)\)", PAGE.read_text())
    local = [link for link in links if "://" not in link]
    assert len(local) > 30 and [link for link in local if not (PAGE.parent / link).exists()] == []


def test_every_switch_exists_and_has_the_default_that_is_named():
    defaults = Config()
    for statement, _, _, switch in rows("What is implemented where"):
        named = re.findall(r"`([^`]+)`", switch)
        assert named or switch.startswith("none"), statement
        for text in named:
            if text.startswith("siri-"):
                continue  # names of checkpoints
            if text.startswith("siri "):
                assert text.split()[1] in COMMANDS
                continue
            key, _, value = text.partition(" = ")
            assert key in KEYS, (statement, key)
            if value in ("true", "false"):
                assert getattr(defaults, key) is (value == "true"), (statement, key)
    for unknown, _, _, switch in rows("What the paper leaves open"):
        named = re.findall(r"`([^`]+)`", switch)
        assert named and set(named) <= KEYS, unknown


def test_nothing_that_the_recipe_marks_is_left_out():
    recipe = (files("siri") / "recipes" / "siri-1.5b.toml").read_text()
    marked = {line.split(" = ")[0] for line in recipe.splitlines() if re.search(r"= .*# [piu]\b", line)}
    assert len(marked) > 25
    named = set(re.findall(r"`([a-z_0-9]+)(?: = [^`]+)?`", PAGE.read_text()))
    assert marked - named == set() or marked - named <= {"loss"}, marked - named


def test_recipes_that_are_named_exist():
    assert {name.removesuffix(".toml") for name in re.findall(r"`([\w.-]+\.toml)`", PAGE.read_text())} <= set(
        recipe_names()
    )


def test_every_deviation_has_a_reason():
    assert len(rows("Where we deviate, and why")) >= 5
    assert all(len(row) == 2 and len(row[1]) > 20 for row in rows("Where we deviate, and why"))
