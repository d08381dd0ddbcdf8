"""Every setting of a training run, and how recipes and the command line become settings."""

from siri.config.parse import parse
from siri.config.recipe import load_recipe, recipe_names, resolve
from siri.config.sections import Config

__all__ = ["Config", "load_recipe", "parse", "recipe_names", "resolve"]
