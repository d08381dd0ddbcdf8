"""Every setting of a training run, and how recipes and the command line become settings."""

from siri.config.config import Config, free_keys, machine_keys, of_today
from siri.config.parse import parse
from siri.config.recipe import load_recipe, recipe_names, resolve

__all__ = ["Config", "free_keys", "load_recipe", "machine_keys", "of_today", "parse", "recipe_names", "resolve"]
