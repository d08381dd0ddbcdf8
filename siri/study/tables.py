"""The tables of a comparison: arms, the ends of the last compression and expansion, and the dynamics; as Markdown, and
in a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from siri.report.phases import COLUMNS, by_phase
from siri.report.swing import cap_period, swing_of_runs
from siri.study.compare import ArmRow, Curve, Levels, by_arm, compare_arms, estimate
from siri.text import printable

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Sheet:
    """A table: its title, and its cells as text."""

    title: str
    headings: Sequence[str]
    body: Sequence[Sequence[str]]

    def markdown(self) -> str:
        lines = [f"**{self.title}**\n", "| " + " | ".join(self.headings) + " |", "|---" * len(self.headings) + "|"]
        return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in self.body)]) + "\n"


def sheets(curves: Sequence[Curve], reference: str = "") -> list[Sheet]:
    """All tables that the runs have figures for."""
    levels, rows = compare_arms(curves, reference)
    runs = by_arm(curves)[levels.arm]
    tables = [arms_table(levels, rows), ends_table(curves, runs), phases_table(runs), swings_table(curves)]
    return [sheet for sheet in tables if sheet]


def tables(curves: Sequence[Curve], reference: str = "") -> str:
    """The same as Markdown."""
    return "\n".join(sheet.markdown() for sheet in sheets(curves, reference))


def print_sheets(tables: Sequence[Sheet], console: "Console") -> None:
    """Print tables for a person to read. One that is wider than the terminal stands on its side: a line a figure, a
    column an arm."""
    from rich.markup import escape
    from rich.table import Table

    for sheet in tables:
        headings, body = list(sheet.headings), [list(cells) for cells in sheet.body]
        lines = [headings, *body]
        width = sum(max(map(len, column)) + 3 for column in zip(*lines, strict=True))
        if width > console.width and len(body) < len(headings):
            headings, *body = (list(column) for column in zip(*lines, strict=True))
        table = Table(title=escape(printable(sheet.title)), title_justify="left", title_style="bold")
        for place, heading in enumerate(headings):
            table.add_column(escape(printable(heading)), justify="right" if place else "left")
        for cells in body:
            table.add_row(*(escape(printable(cell)) for cell in cells))
        console.print(table)


def arms_table(levels: Levels, rows: Sequence[ArmRow]) -> Sheet:
    """Every arm at its last step and at the levels of the reference arm."""
    headings = ["arm", "seeds", "accuracy, %", f"minus {levels.arm}", "tokens", "training tokens, K"]
    headings += [f"accuracy within {levels.tokens:.1f} tokens, %", f"tokens for {100 * levels.accuracy:.1f} %"]
    headings += [f"accuracy after {levels.train_tokens / 1000:.0f} K training tokens, %", "score", "area"]
    body = []
    for row in rows:
        seeds = row.seeds
        cells = [row.arm, str(seeds), row.accuracy.text(100), row.against.text(100, signed=True), row.tokens.text()]
        cells += [row.train_tokens.text(1e-3, digits=0), row.at_equal_tokens.text(100, total=seeds)]
        cells += [row.at_equal_accuracy.text(total=seeds), row.at_equal_training.text(100, total=seeds)]
        body.append([*cells, row.score.text(digits=2), row.area.text(digits=3)])
    return Sheet("Arms at their last step, mean over seeds and 95 % interval", headings, body)


def last_ends(runs: Sequence[Curve]) -> list[tuple[str, int]]:
    """(name, step) of the last evaluated end of a compression and of an expansion, where these runs have any."""
    names = {row["name"]: row["step"] for row in runs[0].evals if str(row.get("name", "")).startswith("siri-")}
    ends = []
    for kind in ("low", "high"):
        ends_of_kind = [(name, step) for name, step in names.items() if name.startswith(f"siri-{kind}-")]
        ends += ends_of_kind[-1:]
    return ends


def ends_table(curves: Sequence[Curve], runs: Sequence[Curve]) -> Sheet | None:
    """All arms at the steps of the reference's last SIRI-low and SIRI-high. A difference is the reference's figure
    minus the arm's, seed by seed. None where the reference has no such checkpoints."""
    ends = last_ends(runs)
    if not ends:
        return None
    headings = ["arm"]
    for name, step in ends:
        headings += [f"accuracy at step {step}, %", f"{name} minus it", "tokens", f"{name} minus it"]
    body = []
    for arm, runs_of_arm in by_arm(curves).items():
        cells = [arm]
        for _, step in ends:
            mine = {run.seed: row for run in runs_of_arm for row in run.evals if row["step"] == step}
            reference_rows = {run.seed: row for run in runs for row in run.evals if row["step"] == step}
            for key, scale in (("accuracy", 100), ("tokens_mean", 1)):
                gaps = [reference_rows[seed][key] - row[key] for seed, row in mine.items() if seed in reference_rows]
                cells.append(estimate([row[key] for row in mine.values()]).text(scale))
                cells.append(
                    ""
                    if runs_of_arm is runs or runs_of_arm[0].arm == runs[0].arm
                    else estimate(gaps).text(scale, signed=True)
                )
        body.append(cells)
    return Sheet("At the ends of the reference's last phases", headings, body)


def phases_table(runs: Sequence[Curve]) -> Sheet | None:
    """The reference's dynamics: means over the steps of each phase of each cycle, and over seeds."""
    spans = [by_phase(_rows(run)) for run in runs if "phase" in run.steps]
    if not spans:
        return None
    columns = [column for column in COLUMNS if any(span.get(column[1]) is not None for span in spans[0])]
    headings = [f"{runs[0].arm}: phase", "steps", *(heading for heading, _, _, _ in columns)]
    body = []
    for group in zip(*spans, strict=True):
        first = group[0]
        cells = [f"{first['phase']} {first['cycle']}", f"{first['start']} to {first['end'] - 1}"]
        for _, key, scale, digits in columns:
            cells.append(estimate([span[key] for span in group]).text(scale, digits=digits))
        body.append(cells)
    return Sheet("Dynamics in training, by phase and cycle", headings, body)


def swings_table(curves: Sequence[Curve]) -> Sheet | None:
    """How tokens and entropy of training answer a cap that goes up and down, by regression over the seeds of an arm;
    None where no arm has such a cap in at least two whole cycles and three seeds."""
    body = []
    for arm, runs in by_arm(curves).items():
        caps = [run.steps.get("cap", []) for run in runs]
        if any(other != caps[0] for other in caps) or not cap_period(caps[0]):
            continue  # a cap that finds its own way has no period that runs share
        swings = [
            swing_of_runs(caps[0], [run.steps[key] for run in runs if key in run.steps])
            for key in ("response_tokens_mean", "entropy")
        ]
        if any(swings):
            body.append(
                [
                    arm,
                    str(cap_period(caps[0])),
                    *(fitted.text() if fitted else "-" for fitted in swings),
                ]
            )
    title = "Swing of training with the cap after the first cycle: amplitude, lag and the test over seeds"
    return Sheet(title, ["arm", "cycle", "response tokens", "entropy"], body) if body else None


def _rows(run: Curve) -> list[dict]:
    count = len(run.steps["phase"])
    return [{"step": step, **{key: column[step] for key, column in run.steps.items()}} for step in range(count)]
