"""What a study or a handful of runs shows: a table in the terminal and in Markdown, and pictures."""

import io
from collections.abc import Sequence
from pathlib import Path

from siri.errors import InputError
from siri.store.files import write_atomic
from siri.study.compare import Curve, curve_of_row
from siri.study.study import Study, find, finished, swept_values, unchosen
from siri.study.tables import Sheet, print_sheets, sheets, tables
from siri.text import encoded, say

PICTURES = ("pareto", "steps", "training_tokens")


def study_curves(study: Study) -> list[Curve]:
    """The finished runs of the comparison, by arm in the order of the study file."""
    rows = finished(study)
    chosen = swept_values(study, rows)
    if unchosen(study, chosen):
        raise InputError(f"{study.path}: its sweeps are not finished yet; run the study without --draw")
    pairs = [(pair, find(rows, pair)) for pair in study.arm_pairs(None, chosen)]
    order = list(study.arms)
    pairs.sort(key=lambda pair_row: order.index(pair_row[0].arm))
    return [curve_of_row({**row, "arm": pair.arm}) for pair, row in pairs if row]


def progress(study: Study, curves: Sequence[Curve]) -> str:
    """How many of the comparison's runs there are, and what the sweeps chose."""
    total = len(study.arms) * len(study.seeds)
    chosen = swept_values(study, finished(study))
    keys = {name: study.sweeps[arm.sweep].key for name, arm in study.arms.items() if arm.sweep}
    picked = "".join(f", {arm}: {keys[arm]} = {value}" for arm, value in chosen.items())
    return f"{len(curves)} of {total} runs{picked}"


def write_comparison(curves: Sequence[Curve], folder: Path | None, *, reference: str = "", head: str = "") -> str:
    """The tables as Markdown; with a folder, also table.md and the pictures in it."""
    text = tables(curves, reference)
    if folder:
        from siri.report.style import draw
        from siri.study.charts import pareto_chart, steps_chart, training_tokens_chart

        folder.mkdir(exist_ok=True)
        write_atomic(folder / "table.md", encoded((f"{head}\n\n" if head else "") + text))
        for name, chart in zip(PICTURES, (pareto_chart, steps_chart, training_tokens_chart), strict=True):
            write_atomic(folder / f"{name}.png", _small(draw(chart, curves, kinds=["png"])["png"]))
    return text


def write_tasks(studies: Sequence[Study]) -> list[Sheet]:
    """table.md and the pictures of a study of several tasks beside its file; returns the tables. InputError where no
    run is finished."""
    from siri.report.style import draw
    from siri.study.cycles import cycle_sheets
    from siri.study.task_charts import lengths_chart, regret_chart
    from siri.study.tasks import missing_runs, task_runs, task_sheets

    first = studies[0]
    rows = finished(first)
    tasks = [task_runs(study, rows) for study in studies]
    count = sum(len(curves) for runs in tasks for curves in runs.arms.values())
    if not count:
        raise InputError(f"{first.path}: no run of its arms is finished yet; run the study without --draw")
    chosen = [_choices(study, rows) for study in studies]
    total = len(first.arms) * len(first.seeds) * len(studies)
    head = f"`{first.path.name}`, {count} of {total} runs{''.join(chosen)}"
    task_tables, folder = [*task_sheets(tasks), *cycle_sheets(tasks)], first.path.parent
    parts = [head + "\n", *(sheet.markdown() for sheet in task_tables), *missing_runs(tasks)]
    write_atomic(folder / "table.md", encoded("\n".join(parts)))
    for name, chart in (("lengths", lengths_chart), ("regret", regret_chart)):
        write_atomic(folder / f"{name}.png", _small(draw(chart, tasks, kinds=["png"])["png"]))
    return task_tables


def _choices(study: Study, rows: list[dict]) -> str:
    chosen = swept_values(study, rows)
    keys = {name: study.sweeps[arm.sweep].key for name, arm in study.arms.items() if arm.sweep}
    return "".join(f"; {study.task}, {arm}: {keys[arm]} = {value}" for arm, value in chosen.items())


def show_comparison(text: str, curves: Sequence[Curve], reference: str = "") -> None:
    """Print tables on a terminal, and their Markdown elsewhere."""
    _show(sheets(curves, reference), text)


def show_tasks(task_tables: Sequence[Sheet]) -> None:
    """The same of a study of several tasks."""
    _show(task_tables, "\n".join(sheet.markdown() for sheet in task_tables))


def _show(tables: Sequence[Sheet], text: str) -> None:
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        print_sheets(tables, console)
    else:
        say(text)


def _small(png: bytes) -> bytes:
    """The picture in 96 colours, a third of its size, because it is committed with the results."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(96)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
