"""Recipes: settings as TOML, in the package or in a file, each perhaps starting from another."""

import json
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from siri.config.config import Config, of_today
from siri.config.parse import check_keys, nearest, parse
from siri.config.sections import BY_NAME
from siri.config.settings import check_bounds, declared, names, setting
from siri.errors import InputError
from siri.sources import source_of_table

T = TypeVar("T")


@dataclass(frozen=True)
class RecipeOptions(Config):
    """Options of a command that takes a recipe."""

    recipe: str = setting("", positional=True)
    """Name of a recipe in the package, or a .toml file."""

    @staticmethod
    def check_recipe(recipe: str) -> None:
        """InputError for a word that cannot be what the command takes, before it is looked up."""

    def __post_init__(self) -> None:
        """Nothing: a recipe may need the command line to make sense, so only `config` checks what both come to."""

    def config(self, *needed: str, held: Mapping[str, Any] = MappingProxyType({})) -> Config:
        """The Config of recipe and command line. InputError where it makes no sense, where one of the `needed` keys is
        not set, or where an option of the command itself is out of bounds.

        held: the settings of a run that continues. What is left to the loss stays what the run has had so far, whatever
        the loss means by default today."""
        values = {name: getattr(self, name) for name in names(Config)}
        for name in BY_NAME:
            text = isinstance(held.get(name), str)
            if values[name] == "auto" and name in held and text == (name == "aggregation"):
                values[name] = held[name]
        config = Config(**values)
        for key in needed:
            if not getattr(config, key):
                raise InputError(f"{key} is not set; give --{key}")
        check_bounds(self, only=type(self))
        return config


def recipe_names() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in (files("siri") / "recipes").iterdir()
        if entry.name.endswith(".toml")
    )


def load_recipe(name: str, heirs: tuple[str, ...] = ()) -> dict[str, Any]:
    """Settings of a recipe in the package, or of a TOML file. The key `base` names a recipe to start from; a .toml file
    there is looked for beside the one that names it. `heirs` are the recipes that start from this one."""
    if name in heirs or len(heirs) > 20:
        raise InputError(f"recipe {name}: its base leads back to itself ({' -> '.join((*heirs, name))})")
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"{name}: no such file")
    elif "@" in name:
        return _settings_at(name)
    elif name in recipe_names():
        path = files("siri") / "recipes" / f"{name}.toml"
    else:
        if Path(name).is_dir():
            raise InputError(f"{name}: a folder, not a recipe; a checkpoint of a run is RUN@STEP, as in {name}@80")
        hint = nearest(name, recipe_names())
        raise InputError(f"unknown recipe {name!r}{hint}; there are {', '.join(recipe_names())}, or give a .toml file")
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise InputError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    base = settings.pop("base", None)
    if base is None:
        return settings
    if not isinstance(base, str):
        raise InputError(f"recipe {name}: base is {base!r}; it must be the name of a recipe or a .toml file")
    if base.endswith(".toml"):
        base = str(Path(name).parent / base)
    return {**load_recipe(base, (*heirs, name)), **settings}


def _settings_at(point: str) -> dict[str, Any]:
    """The settings of the run in RUN@STEP, for one that starts from there."""
    path = Path(point.rpartition("@")[0]) / "config.json"
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(held, dict):
            raise ValueError("it holds no object")
    except OSError as error:
        raise InputError(f"{point}: {path} cannot be read ({error.strerror}); write RUN@STEP of a run folder") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None
    held = of_today(held)
    left = {"resume_weights", "data_changed", "model_changed"}  # how that run itself began and went on
    kept = [name for name in names(Config) if name in held and name not in left]
    return {name: held[name] for name in kept} | {"branch_of": point}


def resolve(recipe: str, options: type[T], arguments: list[str], *, prog: str = "siri") -> T:
    """Build `options` (Config or a subclass of it) from a recipe, then the command line's --KEY VALUE pairs. InputError
    where the recipe alone names a function as its reward: `refuse_code`."""
    settings = load_recipe(recipe)
    values = from_settings(settings, options, f"recipe {recipe}")
    for name in BY_NAME:  # the command line may name another loss
        if settings.get(name, "auto") == "auto":
            object.__setattr__(values, name, "auto")
    read = parse(options, arguments, default=values, prog=prog)
    if not any(word.split("=")[0] == "--reward" for word in arguments):
        refuse_code(settings.get("reward"), f"recipe {recipe}")
    return read


def refuse_code(reward: Any, where: str, trusted: Collection[str] = ()) -> None:
    """InputError for a reward that is a function of any module, named by a file. Such a file may come from a stranger,
    any function of the machine would be called with what the data holds, and only who types it can know better."""
    if isinstance(reward, str) and ":" in reward and reward not in trusted:
        raise InputError(
            f"{where}: its reward {reward!r} is code, which a file alone may not choose; if you trust it, give "
            f"--reward {reward} on the command line as well"
        )


def from_settings(settings: dict[str, Any], options: type[T], where: str) -> T:
    """Build `options` from keys and values as TOML holds them; `where` is what an InputError names."""
    check_keys(settings, options, where, "siri train")
    switches = {each.name for each in declared(options) if isinstance(each.default, bool)}
    for key, value in settings.items():
        if key.replace("-", "_") in switches and not isinstance(value, bool):
            raise InputError(f"{where}: {key} is {value!r}; it is true or false")
    return parse(options, _as_arguments(where, settings), where=where, prog="siri train")


def _as_arguments(where: str, settings: dict[str, Any]) -> list[str]:
    arguments = []
    for key, value in settings.items():
        flag = key.replace("_", "-")
        if key in ("data", "eval_data"):
            value = [
                source_of_table(each, f"{where}: {key}").text() if isinstance(each, dict) else each
                for each in (value if isinstance(value, list) else [value])
            ]
            if odd := [each for each in value if not isinstance(each, str)]:
                raise InputError(f"{where}: {key} holds {odd[0]!r}; it is a text, a table, or a list of these")
        if isinstance(value, dict):
            raise InputError(f"{where}: key {key!r} is a table; recipes are flat")
        # = keeps a text that starts with a dash from being read as a key
        arguments += [f"--{flag}", *_flat(value)] if isinstance(value, list) else [f"--{flag}={value}"]
    return arguments


def _flat(value: Any) -> list[str]:
    if isinstance(value, list):
        return [text for item in value for text in _flat(item)]
    return [str(value)]
