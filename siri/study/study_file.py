"""A study file, read and checked: `siri.study.study` says what it holds."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from siri.config import Config
from siri.config.parse import check_keys
from siri.errors import InputError
from siri.study.study import Arm, Pair, Reasoner, Study, Sweep

CHOICES = ("accuracy", "score", "lengths")
NAME = re.compile(r"[^\W_][\w.+=,@ -]{0,99}")
"""Of an arm, a sweep or a task: it becomes the name of a folder."""


def read_study(path: str | Path) -> Study:
    """Read and check the file of a study with a single task. InputError names the file and the key that is wrong."""
    studies = read_studies(path)
    if len(studies) > 1:
        raise InputError(f"{path}: has several tasks; only siri study takes such a file")
    return studies[0]


def read_studies(path: str | Path) -> list[Study]:
    """Read and check a study file: a study for each of its tasks, or the only one. InputError as `read_study`."""
    path = Path(path)
    text = _read(path)
    tasks = text.pop("tasks", None)
    if tasks is None:
        return [_study(path, text, "")]
    if not isinstance(tasks, dict) or not tasks or not all(isinstance(table, dict) for table in tasks.values()):
        raise InputError(f"{path}: tasks is {tasks!r}; write [tasks.NAME] and its settings below")
    for name in tasks:
        _check_name(path, "task", name)
    return [_study(path, _overlaid(text, table), name) for name, table in tasks.items()]


def _overlaid(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Tables of a file with those of a task on them."""
    both = dict(below)
    for key, value in above.items():
        under = both.get(key)
        both[key] = _overlaid(under, value) if isinstance(value, dict) and isinstance(under, dict) else value
    return both


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a study's .toml file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None


def _study(path: Path, text: dict[str, Any], task: str) -> Study:
    known = {"recipe": str, "seeds": list, "reasoner": dict, "common": dict, "arms": dict, "sweeps": dict}
    known |= {"halves": bool, "lengths": list, "budgets": list}
    for key, value in text.items():
        if key not in known:
            raise InputError(f"{path}: unknown key {key!r}; a study has {', '.join(known)}")
        if not isinstance(value, known[key]):
            raise InputError(f"{path}: {key} is {value!r}; it must be a {known[key].__name__}")
    for key in ("recipe", "seeds", "arms"):
        if not text.get(key):
            raise InputError(f"{path}: {key} is missing")
    recipe = text["recipe"]
    if recipe.endswith(".toml"):
        recipe = str(path.parent / recipe)
    sweeps = {name: _sweep(path, name, table) for name, table in text.get("sweeps", {}).items()}
    study = Study(
        path=path,
        recipe=recipe,
        seeds=_seeds(path, text["seeds"]),
        common=text.get("common", {}),
        arms={name: _arm(path, name, table, sweeps) for name, table in text["arms"].items()},
        sweeps=sweeps,
        reasoner=_reasoner(path, text["reasoner"]) if "reasoner" in text else None,
        task=task,
        halves=text.get("halves", False),
        lengths=_levels(path, "lengths", text),
        budgets=_levels(path, "budgets", text),
    )
    by_lengths = [name for name, arm in study.arms.items() if arm.choose == "lengths"]
    if (by_lengths or task) and not (study.lengths and study.halves):
        raise InputError(f"{path}: {by_lengths[0] if by_lengths else 'several tasks'} need lengths and halves = true")
    if study.halves and not study.reasoner:
        raise InputError(f"{path}: halves are made of the problems of a [reasoner], and there is none")
    for name, sweep in sweeps.items():
        if both := sorted(set(sweep.seeds) & set(study.seeds)):
            raise InputError(f"{path}: sweep {name} shares seeds {both} with the comparison; give it others")
    for name, arm in study.arms.items():
        _check_trunk(path, name, arm, study.arms)
    first = {name: sweeps[arm.sweep].values[0] for name, arm in study.arms.items() if arm.sweep}
    caps: dict[int, str] = {}
    for pairs in (study.sweep_pairs(None), study.arm_pairs(None, first)):
        for pair in pairs:  # every arm's configuration is checked before anything runs
            if not pair.config.eval_data:
                raise InputError(f"{path}: {pair.arm} has no eval_data; a study compares evaluations")
            _check_branch(path, pair)
            caps.setdefault(pair.config.eval_cap or pair.config.length_schedule().longest, pair.arm)
    if len(caps) > 1:
        listed = ", ".join(f"{arm} at {cap}" for cap, arm in caps.items())
        raise InputError(f"{path}: arms are evaluated at different caps ({listed}); set one eval_cap in [common]")
    return study


def _seeds(path: Path, seeds: Any) -> tuple[int, ...]:
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds) or len(set(seeds)) < len(seeds):
        raise InputError(f"{path}: seeds is {seeds!r}; it must be a list of different whole numbers")
    return tuple(seeds)


def _levels(path: Path, key: str, text: Mapping[str, Any]) -> tuple[float, ...]:
    values = text.get(key, [])
    if not all(type(value) in (int, float) and value > 0 for value in values):
        raise InputError(f"{path}: {key} is {values!r}; it must be a list of numbers above 0")
    return tuple(values)


def _check_trunk(path: Path, name: str, arm: Arm, arms: Mapping[str, Arm]) -> None:
    if arm.trunk is None:
        return
    trunk = arms.get(arm.trunk[0])
    if trunk is None or trunk.trunk or trunk.sweep:
        plain = [other for other, each in arms.items() if not each.trunk and not each.sweep]
        raise InputError(f"{path}: arm {name} branches off {arm.trunk[0]!r}; it must be one of {', '.join(plain)}")


def _check_branch(path: Path, pair: Pair) -> None:
    """That there will be a checkpoint to branch off, and that it is kept."""
    if pair.trunk is None:
        return
    config, at = pair.trunk.config, pair.at
    saved = config.save_every or max(1, config.cycle // 4)
    if not 0 < at < config.steps:
        raise InputError(f"{path}: arm {pair.arm} branches off after step {at} of {config.steps}")
    if at % saved or not config.keep_every or at % config.keep_every:
        raise InputError(
            f"{path}: {pair.trunk.arm} keeps no checkpoint after step {at} for {pair.arm} to branch off; "
            f"set its save_every and keep_every to {at}, or to a part of it"
        )


def _check_name(path: Path, kind: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise InputError(
            f"{path}: {kind} {name!r} cannot name a folder; begin with a letter or digit, and use at most 100 letters, "
            "digits, spaces and . + = , @ _ -"
        )


def _arm(path: Path, name: str, table: Any, sweeps: Mapping[str, Sweep]) -> Arm:
    _check_name(path, "arm", name)
    if not isinstance(table, dict):
        raise InputError(f"{path}: arm {name} is {table!r}; write [arms.{name}] and its settings below")
    settings = dict(table)
    sweep = settings.pop("sweep", None)
    if sweep is not None and (not isinstance(sweep, str) or sweep not in sweeps):
        raise InputError(f"{path}: arm {name} names the sweep {sweep!r}; there are {sorted(sweeps)}")
    choose = settings.pop("choose", "accuracy") if sweep else "accuracy"
    if choose not in CHOICES:
        raise InputError(f"{path}: arm {name} chooses by {choose!r}; it must be one of {', '.join(CHOICES)}")
    branch = settings.pop("branch", None)
    if branch is not None and not (
        isinstance(branch, dict)
        and branch.keys() == {"arm", "at"}
        and isinstance(branch["arm"], str)
        and type(branch["at"]) is int
    ):
        raise InputError(f'{path}: arm {name} has branch {branch!r}; write branch = {{ arm = "NAME", at = STEP }}')
    check_keys(settings, Config, f"{path}, arm {name}", "siri train")
    return Arm(settings, sweep, choose, (branch["arm"], branch["at"]) if branch else None)


def _sweep(path: Path, name: str, table: Any) -> Sweep:
    _check_name(path, "sweep", name)
    if not isinstance(table, dict):
        raise InputError(f"{path}: sweep {name} is {table!r}; write [sweeps.{name}] and its settings below")
    table = dict(table)
    for key, kind in (("key", str), ("values", list), ("seeds", list)):
        if not table.get(key):
            raise InputError(f"{path}: sweep {name} lacks {key}")
        if not isinstance(table[key], kind):
            raise InputError(f"{path}: sweep {name}: {key} is {table[key]!r}; it must be a {kind.__name__}")
    key, values, seeds = table.pop("key"), tuple(table.pop("values")), _seeds(path, table.pop("seeds"))
    check_keys([key, *table], Config, f"{path}, sweep {name}", "siri train")
    return Sweep(key, values, seeds, table)


def _reasoner(path: Path, table: dict[str, Any]) -> Reasoner:
    from siri.demo.warmup import TASKS

    try:
        reasoner = Reasoner(**{"steps": 2900, "seed": 0, **table})
    except TypeError:
        allowed = ", ".join(field.name for field in fields(Reasoner))
        raise InputError(f"{path}: [reasoner] holds {', '.join(table)}; it takes {allowed}") from None
    if not isinstance(reasoner.task, str) or reasoner.task not in TASKS:
        raise InputError(f"{path}: reasoner's task is {reasoner.task!r}; it must be one of {', '.join(TASKS)}")
    for key, kind in (("steps", int), ("seed", int), ("device", str)):
        if type(value := getattr(reasoner, key)) is not kind:
            raise InputError(f"{path}: reasoner's {key} is {value!r}; it must be a {kind.__name__}")
    return reasoner
