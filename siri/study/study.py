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
    choose = "accuracy"               # or "score", the paper's efficiency score, at the last step; or "lengths"
    schedule = "constant"
    [sweeps.cap]
    key = "l_max"
    values = [24, 32, 40]
    seeds = [100, 101]
    schedule = "constant"

A study may have several tasks, each with a base of its own. What stands under a task goes over what stands above:

    halves = true                     # the held-out problems in two halves, each measured: one to choose checkpoints by
    [tasks.settle]
    lengths = [12, 16, 20]            # mean response tokens at which arms are compared
    budgets = [100, 200]              # thousand training tokens at which they are
    reasoner = { task = "settle", steps = 1500 }
    common = { l_max = 48 }
    arms.fixed-low.l_max = 24         # only in this task
    [arms.branches]                   # a run that starts from a checkpoint of another arm's run with the same seed
    branch = { arm = "fixed-high", at = 144 }

Pairs that results.jsonl holds under the same configuration are skipped, and a pair that was stopped continues from its
checkpoint, so a study can be run in short pieces.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from siri.config import Config, machine_keys
from siri.config.recipe import from_settings, load_recipe
from siri.store.jsonl import MetricsLog, efficiency_score, read_jsonl

HALVES = ("heldout-a.jsonl", "heldout-b.jsonl")
"""The held-out problems of a reasoner in two halves."""


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
    trunk: tuple[str, int] | None = None
    """The arm whose run it starts from, and after which step."""


@dataclass(frozen=True)
class Pair:
    """One run of a study."""

    arm: str
    seed: int
    config: Config
    settings: dict[str, Any]
    """What of the configuration counts for the hash."""
    task: str = ""
    """Of the study, where it has several."""
    trunk: "Pair | None" = None
    """The run that it starts from, and after how many steps of that."""
    at: int = 0

    @property
    def config_hash(self) -> str:
        """Twelve hex digits of the settings."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        return f"{self.task}-{self.arm}-{self.seed}".lstrip("-")

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
    task: str = ""
    halves: bool = False
    lengths: tuple[float, ...] = ()
    budgets: tuple[float, ...] = ()

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
            files = HALVES if self.halves else ("heldout.jsonl",)
            made["eval_data"] = [str(folder / name) for name in files]
        merged = {**load_recipe(self.recipe), **made, **self.common, **settings}
        return from_settings(merged, Config, f"{self.path}, {arm}")

    def pair(self, arm: str, seed: int, config: Config) -> Pair:
        config = replace(config, seed=seed)
        return Pair(arm, seed, config, learning_settings(config, self.reasoner), self.task)

    def sweep_pairs(self, folder: Path | None, arms: Collection[str] = ()) -> Iterator[Pair]:
        """The runs of every sweep, `NAME=VALUE` their arms. arms: only those of the sweeps that these wait for."""
        awaited = {self.arms[name].sweep for name in arms}
        for name, sweep in self.sweeps.items():
            if arms and name not in awaited:
                continue
            arms = {f"{name}={value}": {**sweep.settings, sweep.key: value} for value in sweep.values}
            configs = {arm: self.config(arm, settings, folder) for arm, settings in arms.items()}
            for seed in sweep.seeds:
                for arm, config in configs.items():
                    yield self.pair(arm, seed, config)

    def arm_pairs(self, folder: Path | None, chosen: Mapping[str, Any]) -> Iterator[Pair]:
        """The runs of the comparison, seed by seed, so that a study cut short has every arm; without the arms whose
        sweep has not chosen yet."""
        configs = {}
        for name, arm in self.arms.items():
            if arm.sweep and name not in chosen:
                continue
            filled = {self.sweeps[arm.sweep].key: chosen[name]} if arm.sweep else {}
            under = self.arms[arm.trunk[0]].settings if arm.trunk else {}
            configs[name] = self.config(name, {**under, **arm.settings, **filled}, folder)
        for seed in self.seeds:
            for name, config in configs.items():
                pair = self.pair(name, seed, config)
                if trunk := self.arms[name].trunk:
                    below, at = self.pair(trunk[0], seed, configs[trunk[0]]), trunk[1]
                    settings = pair.settings | {"branch_of": f"{below.config_hash}@{at}"}
                    pair = replace(pair, settings=settings, trunk=below, at=at)
                yield pair


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
        if len(config.eval_data) > 1:
            settings["eval_data"] = [f"{reasoner.key}/{Path(name).name}" for name in config.eval_data]
    return settings


# --- what was found ---


def finished(study: Study) -> list[dict[str, Any]]:
    """The rows of results.jsonl."""
    return read_jsonl(study.results) if study.results.exists() else []


def find(rows: list[dict], pair: Pair) -> dict | None:
    """The latest row of this very run, perhaps under the name of another arm: a sweep may choose what an arm has."""
    mine = (pair.seed, pair.config_hash)
    return next((row for row in reversed(rows) if (row.get("seed"), row.get("config_hash")) == mine), None)


def swept_values(study: Study, rows: list[dict]) -> dict[str, Any]:
    """The value that its sweep chose for each arm that has one: the highest mean over the sweep's seeds, the first of
    equals. An arm of whose sweep a run is missing is not there."""
    tried: dict[tuple[str, int], dict[str, Any] | None] = {}
    for pair in study.sweep_pairs(None):
        tried[pair.arm, pair.seed] = find(rows, pair)
    chosen = {}
    for name, arm in study.arms.items():
        if not arm.sweep:
            continue
        sweep = study.sweeps[arm.sweep]
        by_value = [[tried[f"{arm.sweep}={value}", seed] for seed in sweep.seeds] for value in sweep.values]
        if all(row is not None for group in by_value for row in group):
            sums = [sum(merit(row, arm.choose, study.lengths) for row in group if row) for group in by_value]
            chosen[name] = sweep.values[sums.index(max(sums))]
    return chosen


def unchosen(study: Study, chosen: Mapping[str, Any]) -> list[str]:
    """The arms that wait for their sweep."""
    return [name for name, arm in study.arms.items() if arm.sweep and name not in chosen]


def merit(row: Mapping[str, Any], by: str, lengths: Sequence[float] = ()) -> float:
    """Accuracy of a run's last evaluation, its efficiency score against the run's own base, or (lengths) the run's mean
    accuracy at the lengths of the study."""
    if by == "lengths":
        from siri.study.lengths import mean_accuracy

        return mean_accuracy(row["evals"], lengths)
    first, last = row["evals"][0], row["evals"][-1]
    if by == "accuracy":
        return last["accuracy"]
    pairs = [{"": (evaluation["accuracy"], evaluation["tokens_mean"])} for evaluation in (last, first)]
    return efficiency_score(*pairs) or 0.0


def append(study: Study, row: Mapping[str, Any]) -> None:
    """Add a finished pair to results.jsonl."""
    MetricsLog(study.results, fsync=True).append(row)
