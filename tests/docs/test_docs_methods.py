"""docs/methods.md names only what exists, and every setting and recipe of a method."""

import re
from dataclasses import fields
from inspect import get_annotations
from pathlib import Path

from siri.config import Config
from siri.config.methods import MethodSettings
from siri.config.recipe import recipe_names

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
TEXT = PAGE.read_text()


def table() -> list[list[str]]:
    lines = [line for line in TEXT.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", TEXT) if "://" not in link]
    titles = re.findall(r"^## (.*)$", TEXT, re.MULTILINE)
    headings = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert len(links) > 10
    for link in links:
        assert link[1:] in headings if link.startswith("#") else (PAGE.parent / link.split("#")[0]).exists(), link


def test_every_setting_of_a_method_and_every_recipe_has_its_place():
    keys = {field.name for field in fields(Config)}
    named = {text.split(" = ")[0] for _, _, cell, _ in table() for text in re.findall(r"`([^`]+)`", cell)}
    assert named <= keys and set(get_annotations(MethodSettings)) - named <= {"filter_by"}
    recipes = {name for _, cell, _, _ in table() for name in re.findall(r"`([^`]+)`", cell)}
    assert recipes <= set(recipe_names()) and len(recipes) >= 13
