"""Every setting of a training run, and how recipes and the command line become settings."""

from siri.config.sections import Config, load_recipe, parse, recipe_names, resolve

__all__ = ["Config", "load_recipe", "parse", "recipe_names", "resolve"]
