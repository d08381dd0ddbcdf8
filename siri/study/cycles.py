"""What the paper says of a cap that goes up and down, looked at in a study of several tasks.

- What the first arm's last low and high points are worth: beside them stands what every other arm reaches at the same
  mean length within as many training tokens. The point is what the schedule says, whatever it is; the other arm's
  checkpoint is chosen by one half of the problems and reported on the other, as in `siri.study.tasks`.
- Whether tokens and entropy of training swing with the cap, how far, and how many steps behind it
  (`siri.report.swing`), and what they are in each phase of the first arm.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from siri.intervals import holm, t_test
from siri.study.compare import Curve, estimate
from siri.study.lengths import crossed, value_at
from siri.study.tables import Sheet, last_ends, phases_table, swings_table
from siri.study.tasks import TaskRuns


@dataclass(frozen=True)
class Beside:
    """An arm beside a point of the first arm: a figure for each seed that both have."""

    accuracy: list[float]
    """At the point's length, within its training tokens; of the first arm itself, at the point."""
    gaps: list[float]
    """The point minus that; empty of the first arm itself."""


def cycle_sheets(tasks: Sequence[TaskRuns]) -> list[Sheet]:
    """Points, swings and phases of each task whose first arm ends a compression or an expansion."""
    besides = {runs.task: beside_points(runs) for runs in tasks}
    keys = [(task, place) for task, table in besides.items() for place in table]
    p_values = {key: p for key in keys if (p := t_test(besides[key[0]][key[1]].gaps)) is not None}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    tables: list[Sheet] = []
    for runs in tasks:
        if not besides[runs.task]:
            continue
        mine = {place: p for (task, place), p in adjusted.items() if task == runs.task}
        tables.append(_points_table(runs, besides[runs.task], mine))
        curves = [curve for of_arm in runs.arms.values() for curve in of_arm]
        for sheet in (swings_table(curves), phases_table(next(iter(runs.arms.values())))):
            if sheet:
                tables.append(replace(sheet, title=f"Task {runs.task}: {sheet.title[0].lower()}{sheet.title[1:]}"))
    return tables


def at_point(curve: Curve, tokens: float, train_tokens: float) -> float:
    """Accuracy of a run at a mean length within so many training tokens, of the checkpoint that is best there."""
    return crossed([row for row in curve.evals if row["train_tokens"] <= train_tokens], value_at(tokens))


def beside_points(runs: TaskRuns) -> dict[tuple[str, str], Beside]:
    """By the name of a point and an arm: every arm at the last low and high point of the first, paired by seed."""
    table: dict[tuple[str, str], Beside] = {}
    reference = next(iter(runs.arms.values()), [])
    for name, step in last_ends(reference) if reference else []:
        points = {curve.seed: row for curve in reference for row in curve.evals if row["step"] == step}
        for arm, curves in runs.arms.items():
            if curves is reference:
                table[name, arm] = Beside([row["accuracy"] for row in points.values()], [])
                continue
            pairs = [(points[curve.seed], curve) for curve in curves if curve.seed in points]
            values = [at_point(curve, row["tokens_mean"], row["train_tokens"]) for row, curve in pairs]
            gaps = [row["accuracy"] - value for (row, _), value in zip(pairs, values, strict=True)]
            table[name, arm] = Beside(values, gaps)
    return table


def _points_table(
    runs: TaskRuns, besides: dict[tuple[str, str], Beside], adjusted: dict[tuple[str, str], float]
) -> Sheet:
    first, reference = next(iter(runs.arms.items()))
    headings, where = ["arm"], []
    for name, step in last_ends(reference):
        rows = [row for curve in reference for row in curve.evals if row["step"] == step]
        tokens, spent = (estimate([row[key] for row in rows]) for key in ("tokens_mean", "train_tokens"))
        where.append(f"{name} ({tokens.text()} tokens, {spent.text(1e-3, digits=0)} K training tokens)")
        headings += [f"at {name}, %", f"{name} minus it", "p, adjusted"]
    body = []
    for arm in runs.arms:
        cells = [arm]
        for name, _ in last_ends(reference):
            beside, p = besides[name, arm], adjusted.get((name, arm))
            cells.append(estimate(beside.accuracy).text(100))
            cells.append(estimate(beside.gaps).text(100, signed=True) if beside.gaps else "")
            cells.append("" if p is None else f"{p:.2g}")
        body.append(cells)
    title = f"Task {runs.task}: {first} at {' and '.join(where)}; others at that length within as many training tokens"
    return Sheet(title, headings, body)
