"""What runs with several seeds say: curves, 95 % intervals, and the table that compares arms.

The figures of a run come from its evaluations, all made at the same cap:

- accuracy and tokens at the last step, and the paper's efficiency score there;
- accuracy at equal tokens: the best of the run's checkpoints whose mean response is no longer than a given length;
- tokens at equal accuracy: the shortest of its checkpoints that are at least as accurate as given;
- accuracy at equal training tokens: linear between evaluations;
- area under the Pareto front: the best accuracy within a length, averaged over lengths from 0 to the cap.

A mean over seeds has a t-interval (Student); a difference to the reference arm is taken seed by seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from siri.config import Config
from siri.errors import InputError
from siri.intervals import half_width
from siri.store.jsonl import efficiency_score, read_run
from siri.text import printable

APART = ("seed", "versions", "format", "made")
"""Keys of config.json in which runs of one arm may differ."""


@dataclass(frozen=True)
class Curve:
    """One run: its evaluations in order, base first, and per-step columns."""

    arm: str
    seed: int
    evals: list[dict[str, Any]]
    steps: dict[str, list[Any]]

    @property
    def base(self) -> dict[str, Any]:
        return self.evals[0]

    @property
    def last(self) -> dict[str, Any]:
        return self.evals[-1]

    def at(self, steps: Sequence[int]) -> "Curve":
        """The run with its evaluations at these steps only."""
        return replace(self, evals=[row for row in self.evals if row["step"] in steps])


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and half the width of its 95 % interval; None where there is no figure, or but one seed."""

    mean: float | None
    half: float | None
    count: int
    """Seeds that have a figure."""

    def text(self, scale: float = 1, *, digits: int = 1, signed: bool = False, total: int = 0) -> str:
        """`mean ± half`, with how many of the `of` seeds have a figure where some have none."""
        if self.mean is None:
            return "-"
        shown = f"{self.mean * scale:{'+' if signed else ''}.{digits}f}"
        if self.half is not None:
            shown += f" ± {self.half * scale:.{digits}f}"
        return shown + (f" ({self.count} of {total})" if self.count < total else "")


def estimate(values: Sequence[float | None]) -> Estimate:
    """Mean and 95 % t-interval of the values that are there."""
    known = [value for value in values if value is not None]
    n = len(known)
    if n < 2:
        return Estimate(known[0] if known else None, None, n)
    return Estimate(sum(known) / n, half_width(known), n)


def accuracy_within(curve: Curve, tokens: float) -> float | None:
    """Best accuracy among the checkpoints whose mean response has at most `tokens` tokens; None if there is none."""
    return max((row["accuracy"] for row in curve.evals if row["tokens_mean"] <= tokens), default=None)


def tokens_reaching(curve: Curve, accuracy: float) -> float | None:
    """Shortest mean response among the checkpoints that are at least so accurate; None if there is none."""
    return min((row["tokens_mean"] for row in curve.evals if row["accuracy"] >= accuracy), default=None)


def accuracy_after(curve: Curve, train_tokens: float) -> float | None:
    """Accuracy after so many sampled training tokens, linear between evaluations; None where the run ends before."""
    for before, after in zip(curve.evals, curve.evals[1:], strict=False):
        start, end = before["train_tokens"], after["train_tokens"]
        if start <= train_tokens <= end:
            share = (train_tokens - start) / (end - start) if end > start else 1.0
            return before["accuracy"] + share * (after["accuracy"] - before["accuracy"])
    return None


def front(curve: Curve) -> list[tuple[float, float]]:
    """The (tokens, accuracy) of checkpoints that no other beats in both, by rising tokens."""
    points: list[tuple[float, float]] = []
    for row in sorted(curve.evals, key=lambda row: (row["tokens_mean"], -row["accuracy"])):
        if not points or row["accuracy"] > points[-1][1]:
            points.append((row["tokens_mean"], row["accuracy"]))
    return points


def front_area(curve: Curve) -> float:
    """Mean, over lengths from 0 to the cap of the evaluations, of the best accuracy within that length; 0 where no
    checkpoint is so short."""
    end, area = curve.base["cap"], 0.0
    points = front(curve)
    for (tokens, accuracy), after in zip(points, [*(tokens for tokens, _ in points[1:]), end], strict=True):
        area += accuracy * max(0.0, min(after, end) - min(tokens, end))
    return area / end


def score(curve: Curve) -> float | None:
    """Efficiency score of the last checkpoint against the run's base."""
    pairs = [{"": (row["accuracy"], row["tokens_mean"])} for row in (curve.last, curve.base)]
    return efficiency_score(*pairs)


@dataclass(frozen=True)
class Levels:
    """Where arms are compared: the reference arm's means at its last step."""

    arm: str
    tokens: float
    accuracy: float
    train_tokens: float


@dataclass(frozen=True)
class ArmRow:
    """One arm of the table; `against` is its accuracy minus the reference's, seed by seed."""

    arm: str
    seeds: int
    accuracy: Estimate
    tokens: Estimate
    train_tokens: Estimate
    at_equal_tokens: Estimate
    at_equal_accuracy: Estimate
    at_equal_training: Estimate
    score: Estimate
    area: Estimate
    against: Estimate


def by_arm(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    """The runs of each arm, in the order in which the arms first come."""
    arms: dict[str, list[Curve]] = {}
    for curve in curves:
        arms.setdefault(curve.arm, []).append(curve)
    return arms


def shared_steps(curves: Sequence[Curve]) -> list[int]:
    """The steps at which every run was evaluated, so that no arm has more checkpoints to choose from than another; all
    steps where runs share none but the base's."""
    sets = [{row["step"] for row in curve.evals} for curve in curves]
    shared = set.intersection(*sets)
    return sorted(shared if len(shared) > 1 else set.union(*sets))


def compare_arms(curves: Sequence[Curve], reference: str = "") -> tuple[Levels, list[ArmRow]]:
    """The table's rows, one an arm; the reference is the first arm unless named. Raises InputError without runs."""
    arms = by_arm(curves)
    if not arms:
        raise InputError("there is no finished run to compare")
    reference = reference or next(iter(arms))
    if reference not in arms:
        raise InputError(f"reference {reference!r} has no finished run; there are {', '.join(arms)}")
    reference_curves = arms[reference]
    finals = {curve.seed: curve.last["accuracy"] for curve in reference_curves}
    shared = shared_steps(curves)
    keys = ("tokens_mean", "accuracy", "train_tokens")
    levels = Levels(
        reference, *(sum(curve.last[key] for curve in reference_curves) / len(reference_curves) for key in keys)
    )
    rows = []
    for arm, runs in arms.items():
        differences = [run.last["accuracy"] - finals[run.seed] for run in runs if run.seed in finals]
        same = [run.at(shared) for run in runs]
        rows.append(
            ArmRow(
                arm=arm,
                seeds=len(runs),
                accuracy=estimate([run.last["accuracy"] for run in runs]),
                tokens=estimate([run.last["tokens_mean"] for run in runs]),
                train_tokens=estimate([run.last["train_tokens"] for run in runs]),
                at_equal_tokens=estimate([accuracy_within(run, levels.tokens) for run in same]),
                at_equal_accuracy=estimate([tokens_reaching(run, levels.accuracy) for run in same]),
                at_equal_training=estimate([accuracy_after(run, levels.train_tokens) for run in same]),
                score=estimate([score(run) for run in runs]),
                area=estimate([front_area(run) for run in same]),
                against=Estimate(None, None, 0) if arm == reference else estimate(differences),
            )
        )
    return levels, rows


# --- runs at hand ---


def phases_of(caps: Sequence[int]) -> list[str]:
    """Phases of a cap that found its own way: compression from where it falls to where it rises again."""
    phases: list[str] = []
    for cap, before in zip(caps, [caps[0], *caps[:-1]], strict=True):
        same = phases[-1] if phases else "expansion"
        phases.append("compression" if cap < before else "expansion" if cap > before else same)
    return phases


def curve_of_row(row: Mapping[str, Any]) -> Curve:
    """The curve in a row of a study's results.jsonl."""
    keys = ("schedule", "l_max", "l_min", "cycle", "schedule_offset")
    settings = {key: value for key, value in row["settings"].items() if key in keys}
    schedule = Config(**settings, stages=tuple(map(tuple, row["settings"].get("stages", ())))).length_schedule()
    caps = row["steps"]["cap"]
    by_itself = schedule.kind == "auto" or "trunk" in row  # a branch has another schedule than its trunk
    phases = phases_of(caps) if by_itself else [schedule.phase(step) for step in range(len(caps))]
    return Curve(row["arm"], row["seed"], row["evals"], {**row["steps"], "phase": phases})


def curve_of_run(run_dir: Path, arm: str) -> Curve:
    """The curve of a run folder. InputError if it holds no base evaluation, or none after training."""
    run = read_run(run_dir)
    if len(run.evals) < 2 or run.evals[0]["step"] != 0:
        raise InputError(
            f"{run_dir}: a comparison needs an evaluation of the base and one after it; train with eval_data"
        )
    keys = {key for row in run.metrics for key in row}
    steps = {key: [row.get(key) for row in run.metrics] for key in sorted(keys)}
    return Curve(arm, int(run.config.get("seed", 0)), run.evals, steps)


def curves_of_runs(run_dirs: Sequence[Path]) -> list[Curve]:
    """Runs as curves; those whose configuration differs in nothing but the seed are one arm. It is named after the
    recipe, or after its first folder where another arm has the same recipe.

    Every run must have been evaluated at the same cap, or neither length nor accuracy can be compared.
    """
    configs = [read_run(run_dir).config for run_dir in run_dirs]
    alike = [
        repr(sorted((key, repr(value)) for key, value in config.items() if key not in APART)) for config in configs
    ]
    recipes = {same: config.get("recipe") for same, config in zip(alike, configs, strict=True)}
    names: dict[str, str] = {}
    curves, caps = [], {}
    for run_dir, same in zip(run_dirs, alike, strict=True):
        recipe = recipes[same]
        alone = recipe and list(recipes.values()).count(recipe) == 1
        name = names.setdefault(same, printable(recipe if alone else run_dir.resolve().name))
        curves.append(curve_of_run(run_dir, name))
        caps.setdefault(curves[-1].last["cap"], run_dir)
    if len(caps) > 1:
        listed = ", ".join(f"{folder} at {cap}" for cap, folder in caps.items())
        raise InputError(f"the runs were evaluated at different caps ({listed}); evaluate them at one --eval-cap")
    return curves


def until(curve: Curve, step: int) -> Curve:
    """The run as it was after so many steps. InputError where it had not been evaluated then but for its base."""
    evals = [row for row in curve.evals if row["step"] <= step]
    if len(evals) < 2:
        after = ", ".join(str(row["step"]) for row in curve.evals[1:])
        raise InputError(f"--until {step}: {curve.arm} was not evaluated by then; it was after steps {after}")
    return replace(curve, evals=evals, steps={key: values[:step] for key, values in curve.steps.items()})


def unlike(run_dirs: Sequence[Path], curves: Sequence[Curve]) -> list[str]:
    """A line for each thing that makes the columns of two runs mean different things."""
    lines = []
    rewards = {run_dir: printable(str(read_run(run_dir).config.get("reward"))) for run_dir in run_dirs}
    if len(set(rewards.values())) > 1:
        listed = ", ".join(f"{printable(folder)} by {reward}" for folder, reward in rewards.items())
        lines.append(f"note: accuracy and score are by different rewards: {listed}")
    ends = dict.fromkeys(curve.last["step"] for curve in curves)
    if len(ends) > 1:
        listed = ", ".join(dict.fromkeys(f"{curve.arm} after {curve.last['step']}" for curve in curves))
        lines.append(
            f"note: the runs were last evaluated after different steps ({listed}); "
            f"--until {min(ends)} leaves out what came later"
        )
    return lines
