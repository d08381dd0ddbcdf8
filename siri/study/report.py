"""What a study or a handful of runs shows: a table in the terminal and in Markdown, and three pictures."""

import io
from collections.abc import Sequence
from pathlib import Path

from siri.errors import InputError
from siri.store.files import write_atomic
from siri.study.compare import Curve, curve_of_row
from siri.study.study import Study, find, finished, swept_values
from siri.study.tables import tables
from siri.text import encoded

PICTURES = ("pareto", "steps", "training_tokens")


def study_curves(study: Study) -> list[Curve]:
    """The finished runs of the comparison, by arm in the order of the study file."""
    rows = finished(study)
    chosen = swept_values(study, rows)
    if chosen is None:
        raise InputError(f"{study.path}: its sweeps are not finished yet; run the study without --draw")
    pairs = [(pair, find(rows, pair)) for pair in study.arm_pairs(None, chosen)]
    order = list(study.arms)
    pairs.sort(key=lambda one: order.index(one[0].arm))
    return [curve_of_row({**row, "arm": pair.arm}) for pair, row in pairs if row]


def progress(study: Study, curves: Sequence[Curve]) -> str:
    """How many of the comparison's runs there are, and what the sweeps chose."""
    total = len(study.arms) * len(study.seeds)
    chosen = swept_values(study, finished(study)) or {}
    keys = {name: study.sweeps[arm.sweep].key for name, arm in study.arms.items() if arm.sweep}
    picked = "".join(f", {arm}: {keys[arm]} = {value}" for arm, value in chosen.items())
    return f"{len(curves)} of {total} runs{picked}"


def write_comparison(curves: Sequence[Curve], folder: Path | None, *, reference: str = "", head: str = "") -> str:
    """The table as Markdown; with a folder, also table.md and the pictures in it."""
    text = tables(curves, reference)
    if folder:
        from siri.report.charts import draw
        from siri.study.charts import pareto_chart, steps_chart, training_tokens_chart

        folder.mkdir(exist_ok=True)
        write_atomic(folder / "table.md", encoded((f"{head}\n\n" if head else "") + text))
        for name, chart in zip(PICTURES, (pareto_chart, steps_chart, training_tokens_chart), strict=True):
            write_atomic(folder / f"{name}.png", _small(draw(chart, curves)["png"]))
    return text


def _small(png: bytes) -> bytes:
    """The picture in 96 colours, a third of its size, because it is committed with the results."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(96)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
