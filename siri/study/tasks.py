"""What a study of several tasks says of its arms: accuracy at fixed lengths and budgets, costs, and regret.

Every evaluation measures two halves of the held-out problems. A checkpoint is chosen by one half and reported on the
other, and then the other way round, so that no arm gains by having been lucky where it was chosen. All arms choose
among the same steps.

- Accuracy at a length L: of a checkpoint whose mean response has n tokens, its accuracy times min(1, L / n). A model
  that is too long meets the length by giving no answer to a share of the prompts, which is what it can always do.
- Score: the mean of that over the lengths of the task.
- Accuracy after a budget: the best checkpoint within so many training tokens, at whatever length.
- Regret: the score of the arm with the highest mean score in the task minus the arm's, seed by seed.

Comparisons with the first arm are paired by seed, and their p-values adjusted for all of them in all tasks (Holm).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from siri.intervals import holm, t_test
from siri.study.compare import Curve, Estimate, by_arm, curve_of_row, estimate, shared_steps
from siri.study.lengths import best_within, crossed, mean_accuracy, value_at
from siri.study.study import Study, find, swept_values
from siri.study.tables import Sheet


@dataclass(frozen=True)
class TaskRuns:
    """The finished runs of a task."""

    task: str
    lengths: tuple[float, ...]
    """Mean response tokens at which arms are compared."""
    budgets: tuple[float, ...]
    """Training tokens, in thousands, at which they are."""
    arms: dict[str, list[Curve]]
    """With their evaluations at the steps that all have; arms without a run are not there."""
    core_seconds: dict[tuple[str, int], float | None]
    """By arm and seed; None where a run was continued by another process."""
    missing: list[str]
    """Names of the runs that are not there, ARM-SEED, and of the arms that wait for a sweep."""


def task_runs(study: Study, rows: list[dict[str, Any]]) -> TaskRuns:
    """The runs of a study's task in its rows of results.jsonl."""
    chosen = swept_values(study, rows)
    curves, seconds, missing = [], {}, []
    order = {name: place for place, name in enumerate(study.arms)}
    pairs = sorted(study.arm_pairs(None, chosen), key=lambda pair: order[pair.arm])
    for pair in pairs:
        row = find(rows, pair)
        if row is None:
            missing.append(f"{pair.arm}-{pair.seed}")
            continue
        curves.append(curve_of_row({**row, "arm": pair.arm}))
        cost = row.get("cpu_s")
        if pair.trunk:
            under = (find(rows, pair.trunk) or {}).get("cpu_s")
            cost = None if cost is None or under is None else cost + under * pair.at / pair.trunk.config.steps
        seconds[pair.arm, pair.seed] = cost
    missing += [f"{name}: its sweep" for name, arm in study.arms.items() if arm.sweep and name not in chosen]
    steps = shared_steps(curves) if curves else []
    arms = by_arm([curve.at(steps) for curve in curves])
    return TaskRuns(study.task, study.lengths, study.budgets, arms, seconds, missing)


def accuracy_at(curve: Curve, length: float) -> float:
    """Accuracy at a mean length (tokens), of the checkpoint that is best there."""
    return crossed(curve.evals, value_at(length))


def score(curve: Curve, lengths: Sequence[float]) -> float:
    """Mean accuracy at the lengths."""
    return mean_accuracy(curve.evals, lengths)


def tokens_of(row: Mapping[str, Any], right: bool) -> float | None:
    """Mean tokens of the right or of the wrong responses of an evaluation, over both halves."""
    key = "tokens_right_mean" if right else "tokens_wrong_mean"
    total = count = 0.0
    for half in row["halves"]:
        weight = half["problems"] * (half["accuracy"] if right else 1 - half["accuracy"])
        if half[key] is not None and weight:
            total, count = total + weight * half[key], count + weight
    return total / count if count else None


def scores(runs: TaskRuns) -> dict[str, dict[int, float]]:
    """The score of every run, by arm and seed."""
    return {arm: {curve.seed: score(curve, runs.lengths) for curve in curves} for arm, curves in runs.arms.items()}


def regrets(tasks: Sequence[TaskRuns]) -> dict[str, dict[str, dict[int, float]]]:
    """Regret by arm, task and seed, in the seeds in which both the arm and the best one of the task have run."""
    table: dict[str, dict[str, dict[int, float]]] = {}
    for runs in tasks:
        by_seed = scores(runs)
        if not by_seed:
            continue
        best = max(by_seed, key=lambda arm: sum(by_seed[arm].values()) / len(by_seed[arm]))
        for arm, values in by_seed.items():
            both = {seed: by_seed[best][seed] - value for seed, value in values.items() if seed in by_seed[best]}
            table.setdefault(arm, {})[runs.task] = both
    return table


def overall(by_task: Mapping[str, Mapping[int, float]], tasks: Sequence[TaskRuns]) -> Estimate:
    """Mean regret over all tasks, over the seeds that have run in every one."""
    if len(by_task) < len(tasks) or not by_task:
        return Estimate(None, None, 0)
    seeds = set.intersection(*(set(values) for values in by_task.values()))
    return estimate([sum(values[seed] for values in by_task.values()) / len(by_task) for seed in sorted(seeds)])


@dataclass(frozen=True)
class Against:
    """An arm's score minus that of the first arm."""

    difference: Estimate
    p: float | None
    """Adjusted for the number of comparisons in the study; None of fewer than two seeds."""


def comparisons(tasks: Sequence[TaskRuns]) -> dict[tuple[str, str], Against]:
    """Every arm against the first, by task and arm."""
    compared: dict[tuple[str, str], tuple[Estimate, float | None]] = {}
    for runs in tasks:
        by_seed = scores(runs)
        reference = next(iter(by_seed), None)
        for arm, values in by_seed.items():
            if arm == reference or reference is None:
                continue
            gaps = [value - by_seed[reference][seed] for seed, value in values.items() if seed in by_seed[reference]]
            compared[runs.task, arm] = estimate(gaps), t_test(gaps)
    tested = [key for key, (_, p) in compared.items() if p is not None]
    adjusted = dict(zip(tested, holm([p for _, p in compared.values() if p is not None]), strict=True))
    return {key: Against(difference, adjusted.get(key)) for key, (difference, _) in compared.items()}


# --- tables ---


def task_sheets(tasks: Sequence[TaskRuns]) -> list[Sheet]:
    """A table for each task that has run, and that of the regret."""
    against = comparisons(tasks)
    tables = [_task_table(runs, against) for runs in tasks if runs.arms]
    return [*tables, _regret_table(tasks)] if tables else []


def missing_runs(tasks: Sequence[TaskRuns]) -> list[str]:
    """A line of Markdown for each task of which runs are missing."""
    return [f"Not run yet in {runs.task}: {', '.join(runs.missing)}.\n" for runs in tasks if runs.missing]


def _task_table(runs: TaskRuns, against: Mapping[tuple[str, str], Against]) -> Sheet:
    reference = next(iter(runs.arms))
    headings = ["arm", "seeds", *(f"at {length:g} tokens, %" for length in runs.lengths), "score", f"minus {reference}"]
    headings += ["p, adjusted", *(f"after {budget:g} K training tokens, %" for budget in runs.budgets)]
    headings += ["last: %", "tokens", "of right", "of wrong", "training tokens, K", "core-seconds"]
    body = []
    for arm, curves in runs.arms.items():
        cells = [arm, str(len(curves))]
        cells += [estimate([accuracy_at(curve, length) for curve in curves]).text(100) for length in runs.lengths]
        cells.append(estimate([score(curve, runs.lengths) for curve in curves]).text(100))
        compared = against.get((runs.task, arm))
        cells.append(compared.difference.text(100, signed=True) if compared else "")
        cells.append(f"{compared.p:.2g}" if compared and compared.p is not None else "")
        cells += [estimate([best_within(curve.evals, budget) for curve in curves]).text(100) for budget in runs.budgets]
        lasts = [curve.last for curve in curves]
        cells += [estimate([row[key] for row in lasts]).text(scale) for key, scale in LAST]
        cells += [estimate([tokens_of(row, right) for row in lasts]).text() for right in (True, False)]
        cells.append(estimate([row["train_tokens"] for row in lasts]).text(1e-3, digits=0))
        cells.append(estimate([runs.core_seconds[arm, curve.seed] for curve in curves]).text(digits=0))
        body.append(cells)
    return Sheet(f"Task {runs.task}: accuracy at fixed lengths and budgets, mean over seeds and 95 %", headings, body)


LAST = (("accuracy", 100), ("tokens_mean", 1))


def _regret_table(tasks: Sequence[TaskRuns]) -> Sheet:
    table = regrets(tasks)

    def order(arm: str) -> float:
        mean = overall(table[arm], tasks).mean
        return math.inf if mean is None else mean

    body = []
    for arm in sorted(table, key=order):
        by_task = [estimate(list(table[arm].get(runs.task, {}).values())) for runs in tasks]
        cells = [arm, *(each.text(100) for each in by_task), overall(table[arm], tasks).text(100)]
        worst = [each.mean for each in by_task if each.mean is not None]
        body.append([*cells, f"{100 * max(worst):.1f}" if len(worst) == len(tasks) else "-"])
    headings = ["arm", *(runs.task for runs in tasks), "mean over tasks", "worst task"]
    return Sheet("Regret, points of score (0: the best arm of the task)", headings, body)
