"""A comparison as Markdown: the table of arms, the ends of the last compression and expansion, and the dynamics."""

from collections.abc import Sequence

from siri.report.phases import COLUMNS, by_phase, length_lag
from siri.study.compare import ArmRow, Curve, Levels, by_arm, compare_arms, estimate


def tables(curves: Sequence[Curve], reference: str = "") -> str:
    """All tables that the runs have figures for."""
    levels, rows = compare_arms(curves, reference)
    runs = by_arm(curves)[levels.arm]
    sections = [arms_table(levels, rows), ends_table(curves, runs), phases_table(runs), lags_table(curves)]
    return "\n".join(section for section in sections if section)


def arms_table(levels: Levels, rows: Sequence[ArmRow]) -> str:
    """Every arm at its last step and at the levels of the reference arm."""
    headings = ["arm", "seeds", "accuracy, %", f"minus {levels.arm}", "tokens", "training tokens, K"]
    headings += [f"accuracy within {levels.tokens:.1f} tokens, %", f"tokens for {100 * levels.accuracy:.1f} %"]
    headings += [f"accuracy after {levels.train_tokens / 1000:.0f} K training tokens, %", "score", "area"]
    body = []
    for row in rows:
        of = row.seeds
        cells = [row.arm, str(of), row.accuracy.text(100), row.against.text(100, signed=True), row.tokens.text()]
        cells += [row.train_tokens.text(1e-3, digits=0), row.at_equal_tokens.text(100, of=of)]
        cells += [row.at_equal_accuracy.text(of=of), row.at_equal_training.text(100, of=of)]
        body.append([*cells, row.score.text(digits=2), row.area.text(digits=3)])
    return _table("Arms at their last step, mean over seeds and 95 % interval", headings, body)


def last_ends(runs: Sequence[Curve]) -> list[tuple[str, int]]:
    """(name, step) of the last evaluated end of a compression and of an expansion, where these runs have any."""
    names = {row["name"]: row["step"] for row in runs[0].evals if str(row.get("name", "")).startswith("siri-")}
    ends = []
    for kind in ("low", "high"):
        ends_of_kind = [(name, step) for name, step in names.items() if name.startswith(f"siri-{kind}-")]
        ends += ends_of_kind[-1:]
    return ends


def ends_table(curves: Sequence[Curve], runs: Sequence[Curve]) -> str:
    """All arms at the steps of the reference's last SIRI-low and SIRI-high. A difference is the reference's figure
    minus the arm's, seed by seed. Empty where the reference has no such checkpoints."""
    ends = last_ends(runs)
    if not ends:
        return ""
    headings = ["arm"]
    for name, step in ends:
        headings += [f"accuracy at step {step}, %", f"{name} minus it", "tokens", f"{name} minus it"]
    body = []
    for arm, runs_of_arm in by_arm(curves).items():
        cells = [arm]
        for _, step in ends:
            mine = {run.seed: row for run in runs_of_arm for row in run.evals if row["step"] == step}
            theirs = {run.seed: row for run in runs for row in run.evals if row["step"] == step}
            for key, scale in (("accuracy", 100), ("tokens_mean", 1)):
                gaps = [theirs[seed][key] - row[key] for seed, row in mine.items() if seed in theirs]
                cells.append(estimate([row[key] for row in mine.values()]).text(scale))
                cells.append(
                    ""
                    if runs_of_arm is runs or runs_of_arm[0].arm == runs[0].arm
                    else estimate(gaps).text(scale, signed=True)
                )
        body.append(cells)
    return _table("At the ends of the reference's last phases", headings, body)


def phases_table(runs: Sequence[Curve]) -> str:
    """The reference's dynamics: means over the steps of each phase of each cycle, and over seeds."""
    spans = [by_phase(_rows(run)) for run in runs if "phase" in run.steps]
    if not spans:
        return ""
    columns = [column for column in COLUMNS if any(span.get(column[1]) is not None for span in spans[0])]
    headings = [f"{runs[0].arm}: phase", "steps", *(heading for heading, _, _, _ in columns)]
    body = []
    for group in zip(*spans, strict=True):
        first = group[0]
        cells = [f"{first['phase']} {first['cycle']}", f"{first['start']} to {first['end'] - 1}"]
        for _, key, scale, digits in columns:
            cells.append(estimate([span[key] for span in group]).text(scale, digits=digits))
        body.append(cells)
    return _table("Dynamics in training, by phase and cycle", headings, body)


def lags_table(curves: Sequence[Curve]) -> str:
    """Steps by which the response length follows the cap, for the arms whose cap goes up and down."""
    body = []
    for arm, runs in by_arm(curves).items():
        lags = [length_lag(run.steps["cap"], run.steps["response_tokens_mean"]) for run in runs if "cap" in run.steps]
        if any(lag is not None for lag in lags):
            body.append([arm, estimate(lags).text(of=len(runs))])
    return _table("Lag of the response length behind the cap, steps", ["arm", "lag"], body) if body else ""


def _rows(run: Curve) -> list[dict]:
    count = len(run.steps["phase"])
    return [{"step": step, **{key: column[step] for key, column in run.steps.items()}} for step in range(count)]


def _table(title: str, headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [f"**{title}**\n", "| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in body)]) + "\n"
