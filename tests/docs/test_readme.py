"""The READMEs keep what they promise: their links lead somewhere, their commands exist."""

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from siri.cli import COMMANDS
from siri.config.recipe import recipe_names

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "readme", ["README.md", "kernels/README.md", "SECURITY.md", "docs/reliability.md", "docs/plan.md", "docs/gpus.md"]
)
def test_relative_links_exist(readme):
    path = ROOT / readme
    links = re.findall(r"\]\(([^)#\s]+)\)", path.read_text())
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (path.parent / link).exists()] == []


def test_commands_and_recipes_exist():
    text = (ROOT / "README.md").read_text()
    pages = text + "".join((ROOT / "docs" / f"{name}.md").read_text() for name in ("gpus", "demo"))
    assert set(re.findall(r"^siri (\w+)", pages, re.MULTILINE)) <= set(COMMANDS)
    recipes = (ROOT / "docs" / "recipes.md").read_text()
    assert all(f"`{name}`" in recipes for name in recipe_names())
    targets = set(re.findall(r"^make (\w+)", text, re.MULTILINE))
    assert {"demo", "test"} <= targets
    assert all(f"\n{target}:" in (ROOT / "Makefile").read_text() for target in targets)


def test_it_is_short_and_every_door_and_page_is_in_it():
    """About 700 words before the list of folders; nobody has to guess that a page exists."""
    text = (ROOT / "README.md").read_text()
    assert 400 < len(text.split("## Where things are")[0].split()) < 750
    for page in (
        "start",
        "gpus",
        "run",
        "demo",
        "own",
        "recipes",
        "coming",
        "kernels",
        "benchmarks",
        "questions",
        "troubleshooting",
    ):
        assert f"(docs/{page}.md)" in text, page


def test_the_table_for_those_who_come_from_trl_names_what_is_there():
    """Ours are options of siri train, with the values that they have; TRL's are fields of its configuration."""
    from trl import GRPOConfig

    from siri.commands.export import ExportOptions
    from siri.commands.report import ReportOptions
    from siri.commands.train import TrainOptions
    from siri.config.elsewhere import name_here

    section = (ROOT / "docs" / "coming.md").read_text()
    rows = [re.split(r"(?<!\\)\|", line)[1:4] for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    ours = {field.name for options in (TrainOptions, ExportOptions, ReportOptions) for field in fields(options)}
    theirs = {field.name for field in fields(GRPOConfig)}
    for trl, verl, here in rows:
        named = re.findall(r"--([a-z-]+)", here)
        for name in re.findall(r"`([\w.]+)`", trl.partition("(")[0] + verl.partition("(")[0]):
            if name not in ours:  # whoever types it is told the same
                told = name_here(name)
                assert told.rpartition("--")[2] in named or "deliberately absent" in told + here, (name, told, named)
        assert named or "deliberately absent" in here
        assert [name for name in named if name.replace("-", "_") not in ours] == []
        if "argument" not in trl and "(of" not in trl:
            assert [name for name in re.findall(r"`(\w+)`", trl) if name not in theirs] == []
        for name, values in re.findall(r"--([a-z-]+) ([a-z]+(?:\\\|[a-z]+)+)", here):
            allowed = get_args(get_type_hints(TrainOptions)[name.replace("-", "_")])
            assert set(values.split("\\|")) <= set(allowed), name
