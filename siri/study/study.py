"""`siri study STUDY.toml`: arms x seeds of the same training, one line of results.jsonl a finished pair.

A study file names a recipe, settings that all arms share, and for each arm what it changes:

    recipe = "demo"
    seeds = [0, 1, 2, 3, 4]
    [reasoner]                        # optional: a model and data that the repository's warm-up makes, once
    task = "settle"
    [common]                          # any keys of a recipe
    steps = 96
    [arms.siri]                       # the first arm is the one that the others are compared with
    [arms.fixed-high]
    schedule = "constant"
    [arms.fixed-best]
    sweep = "cap"                     # takes the winner of [sweeps.cap], chosen before, on seeds of its own
    choose = "accuracy"               # or "score", the paper's efficiency score, at the last step
    schedule = "constant"
    [sweeps.cap]
    key = "l_max"
    values = [24, 32, 40]
    seeds = [100, 101]
    schedule = "constant"

Pairs that results.jsonl holds under the same configuration are skipped, and a pair that was stopped continues from its
checkpoint, so a study can be run in short pieces.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from siri.config import Config, machine_keys
from siri.config.parse import check_keys
from siri.config.recipe import from_settings, load_recipe
from siri.errors import InputError
from siri.store.jsonl import MetricsLog, efficiency_score, read_jsonl

CHOICES = ("accuracy", "score")
NAME = re.compile(r"[^\W_][\w.+=,@ -]{0,99}")
"""Of an arm or a sweep: it becomes the name of a folder."""


@dataclass(frozen=True)
class Sweep:
    """Runs that choose one value for an arm, on seeds that the comparison does not use."""

    key: str
    values: tuple[Any, ...]
    seeds: tuple[int, ...]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """What an arm changes, and the sweep that fills in one more key."""

    settings: dict[str, Any]
    sweep: str | None = None
    choose: str = "accuracy"


@dataclass(frozen=True)
class Pair:
    """One run of a study."""

    arm: str
    seed: int
    config: Config
    settings: dict[str, Any]
    """What of the configuration counts for the hash."""

    @property
    def config_hash(self) -> str:
        """Twelve hex digits of the settings."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.seed}"

    @property
    def folder(self) -> str:
        """Name of its run folder: one, wherever the values of a sweep would lead. The hash tells apart what is cut."""
        arm = re.sub(r"[^\w.+=,@\[\]() -]+", "_", self.arm)[:100]
        return f"{arm}-{self.seed}-{self.config_hash}"


@dataclass(frozen=True)
class Reasoner:
    """A model and problems to be made by `siri.demo.warmup`, once for each machine and version of its code."""

    task: str
    steps: int
    seed: int
    device: str = "cpu"

    @cached_property
    def key(self) -> str:
        """The task's name and the hash of what is taught."""
        from siri.demo.warmup import fingerprint

        return f"{self.task}-{fingerprint(self.task, self.steps, self.seed)}"


@dataclass(frozen=True)
class Study:
    """A study file, checked."""

    path: Path
    recipe: str
    seeds: tuple[int, ...]
    common: dict[str, Any]
    arms: dict[str, Arm]
    sweeps: dict[str, Sweep]
    reasoner: Reasoner | None

    @property
    def results(self) -> Path:
        return self.path.parent / "results.jsonl"

    def config(self, arm: str, settings: Mapping[str, Any], folder: Path | None) -> Config:
        """An arm's configuration; `folder` holds the model and problems of the reasoner, if the study has one
        (None where nothing will be run)."""
        made: dict[str, Any] = {}
        if self.reasoner:
            folder = folder or Path(self.reasoner.key)
            made = {"model": str(folder / "model"), "data": str(folder / "train.jsonl"), "template": "plain"}
            made["eval_data"] = [str(folder / "heldout.jsonl")]
        merged = {**load_recipe(self.recipe), **made, **self.common, **settings}
        return from_settings(merged, Config, f"{self.path}, {arm}")

    def pair(self, arm: str, seed: int, config: Config) -> Pair:
        config = replace(config, seed=seed)
        return Pair(arm, seed, config, learning_settings(config, self.reasoner))

    def sweep_pairs(self, folder: Path | None) -> Iterator[Pair]:
        """The runs of every sweep, `NAME=VALUE` their arms."""
        for name, sweep in self.sweeps.items():
            arms = {f"{name}={value}": {**sweep.settings, sweep.key: value} for value in sweep.values}
            configs = {arm: self.config(arm, settings, folder) for arm, settings in arms.items()}
            for seed in sweep.seeds:
                for arm, config in configs.items():
                    yield self.pair(arm, seed, config)

    def arm_pairs(self, folder: Path | None, chosen: Mapping[str, Any]) -> Iterator[Pair]:
        """The runs of the comparison, seed by seed, so that a study cut short has every arm."""
        configs = {}
        for name, arm in self.arms.items():
            filled = {self.sweeps[arm.sweep].key: chosen[name]} if arm.sweep else {}
            configs[name] = self.config(name, {**arm.settings, **filled}, folder)
        for seed in self.seeds:
            for name, config in configs.items():
                yield self.pair(name, seed, config)


def learning_settings(config: Config, reasoner: Reasoner | None) -> dict[str, Any]:
    """The settings that say what a run learns from and how, where they are not at their defaults.

    Where the files of a study's own reasoner lie does not count; its hash stands for them. A key that is added to siri
    later, at its default, leaves the results of today as they are.
    """
    defaults = Config().to_json()
    counts = [key for key in defaults if key not in machine_keys()]
    values = config.to_json()
    settings = {key: values[key] for key in counts if values[key] != defaults[key]}
    if reasoner:
        settings |= dict.fromkeys(("model", "data", "eval_data"), reasoner.key)
    return settings


def read_study(path: str | Path) -> Study:
    """Read and check a study file. InputError names the file and the key that is wrong."""
    path = Path(path)
    try:
        text = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a study's .toml file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None
    known = {"recipe": str, "seeds": list, "reasoner": dict, "common": dict, "arms": dict, "sweeps": dict}
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
    )
    for name, sweep in sweeps.items():
        if both := sorted(set(sweep.seeds) & set(study.seeds)):
            raise InputError(f"{path}: sweep {name} shares seeds {both} with the comparison; give it others")
    first = {name: sweeps[arm.sweep].values[0] for name, arm in study.arms.items() if arm.sweep}
    caps: dict[int, str] = {}
    for pairs in (study.sweep_pairs(None), study.arm_pairs(None, first)):
        for pair in pairs:  # every arm's configuration is checked before anything runs
            if not pair.config.eval_data:
                raise InputError(f"{path}: {pair.arm} has no eval_data; a study compares evaluations")
            caps.setdefault(pair.config.eval_cap or pair.config.length_schedule().longest, pair.arm)
    if len(caps) > 1:
        listed = ", ".join(f"{arm} at {cap}" for cap, arm in caps.items())
        raise InputError(f"{path}: arms are evaluated at different caps ({listed}); set one eval_cap in [common]")
    return study


def _seeds(path: Path, seeds: Any) -> tuple[int, ...]:
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds) or len(set(seeds)) < len(seeds):
        raise InputError(f"{path}: seeds is {seeds!r}; it must be a list of different whole numbers")
    return tuple(seeds)


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
    check_keys(settings, Config, f"{path}, arm {name}", "siri train")
    return Arm(settings, sweep, choose)


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


# --- what was found ---


def finished(study: Study) -> list[dict[str, Any]]:
    """The rows of results.jsonl."""
    return read_jsonl(study.results) if study.results.exists() else []


def find(rows: list[dict], pair: Pair) -> dict | None:
    """The latest row of this very run, perhaps under the name of another arm: a sweep may choose what an arm has."""
    mine = (pair.seed, pair.config_hash)
    return next((row for row in reversed(rows) if (row.get("seed"), row.get("config_hash")) == mine), None)


def swept_values(study: Study, rows: list[dict]) -> dict[str, Any] | None:
    """The value that its sweep chose for each arm that has one: the highest mean over the sweep's seeds, the first of
    equals. None while a run of a sweep is missing."""
    tried: dict[tuple[str, int], dict[str, Any]] = {}
    for pair in study.sweep_pairs(None):
        row = find(rows, pair)
        if row is None:
            return None
        tried[pair.arm, pair.seed] = row
    chosen = {}
    for name, arm in study.arms.items():
        if arm.sweep:
            sweep = study.sweeps[arm.sweep]
            sums = [
                sum(merit(tried[f"{arm.sweep}={value}", seed], arm.choose) for seed in sweep.seeds)
                for value in sweep.values
            ]
            chosen[name] = sweep.values[sums.index(max(sums))]
    return chosen


def merit(row: Mapping[str, Any], by: str) -> float:
    """Accuracy of a run's last evaluation, or its efficiency score against the run's own base."""
    first, last = row["evals"][0], row["evals"][-1]
    if by == "accuracy":
        return last["accuracy"]
    pairs = [{"": (evaluation["accuracy"], evaluation["tokens_mean"])} for evaluation in (last, first)]
    return efficiency_score(*pairs) or 0.0


def append(study: Study, row: Mapping[str, Any]) -> None:
    """Add a finished pair to results.jsonl."""
    MetricsLog(study.results, fsync=True).append(row)
