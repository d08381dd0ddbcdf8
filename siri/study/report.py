"""What a study or a handful of runs shows: a table in the terminal and in Markdown, and three pictures."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from siri.errors import InputError
from siri.store.jsonl import write_atomic
from siri.study.compare import Curve, curve_of_row, curves_of_runs
from siri.study.study import Study, choose, find, finished, read_study
from siri.study.tables import tables

PICTURES = ("pareto", "steps", "training_tokens")


@dataclass(frozen=True)
class StudyOptions:
    jobs: int = 1
    """Runs at a time, each in a process of its own."""
    threads: int = 1
    """CPU threads of each."""
    limit: int = 0
    """Most runs of this call; 0 = all that are missing."""
    only: tuple[str, ...] = ()
    """Only these arms (and the sweeps)."""
    runs: str = ""
    """Folder of the run folders; default runs/study-NAME."""
    draw: bool = False
    """Run nothing: table and pictures of what results.jsonl holds."""

    def __post_init__(self) -> None:
        for name, least in (("jobs", 1), ("threads", 1), ("limit", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least {least}")


@dataclass(frozen=True)
class CompareOptions:
    out: str = ""
    """Folder for table.md and the pictures; none = only the table in the terminal."""
    reference: str = ""
    """Arm that the others are compared with; default the first."""


def run_study(path: str, options: StudyOptions) -> int:
    """`siri study`: run what is missing, then write table.md and the pictures beside the study file; the exit code."""
    from siri.study.runner import Stopped, run_pairs

    study = read_study(path)
    if not options.draw:
        runs = Path(options.runs or f"runs/study-{study.path.resolve().parent.name}")
        try:
            run_pairs(
                study, jobs=options.jobs, limit=options.limit, runs=runs, only=options.only, threads=options.threads
            )
        except Stopped:
            print("stopped, state saved; the same command continues")
            return 75
        if choose(study, finished(study)) is None:
            print("the sweeps are not finished yet; the same command continues")
            return 0
    curves = study_curves(study)
    print(write_comparison(curves, study.path.parent, head=f"`{study.path.name}`, {_progress(study, curves)}"))
    return 0


def study_curves(study: Study) -> list[Curve]:
    """The finished runs of the comparison, by arm in the order of the study file."""
    rows = finished(study)
    chosen = choose(study, rows)
    if chosen is None:
        raise InputError(f"{study.path}: its sweeps are not finished yet; run the study without --draw")
    pairs = [(pair, find(rows, pair)) for pair in study.arm_pairs(None, chosen)]
    order = list(study.arms)
    pairs.sort(key=lambda one: order.index(one[0].arm))
    return [curve_of_row({**row, "arm": pair.arm}) for pair, row in pairs if row]


def _progress(study: Study, curves: Sequence[Curve]) -> str:
    total = len(study.arms) * len(study.seeds)
    chosen = choose(study, finished(study)) or {}
    picked = "".join(f", {arm}: {study.sweeps[study.arms[arm].sweep].key} = {value}" for arm, value in chosen.items())
    return f"{len(curves)} of {total} runs{picked}"


def run_compare(run_dirs: Sequence[str], options: CompareOptions) -> int:
    """`siri compare`: the same table and pictures for run folders at hand; the exit code."""
    curves = curves_of_runs([Path(run_dir) for run_dir in run_dirs])
    if options.out and not Path(options.out).absolute().parent.is_dir():
        raise InputError(f"--out {options.out}: its parent is no folder; make it first")
    folder = Path(options.out) if options.out else None
    print(write_comparison(curves, folder, reference=options.reference))
    return 0


def write_comparison(curves: Sequence[Curve], folder: Path | None, *, reference: str = "", head: str = "") -> str:
    """The table as Markdown; with a folder, also table.md and the pictures in it."""
    text = tables(curves, reference)
    if folder:
        from siri.report.charts import draw
        from siri.study.charts import pareto_chart, steps_chart, training_tokens_chart

        folder.mkdir(exist_ok=True)
        write_atomic(folder / "table.md", (f"{head}\n\n" if head else "").encode() + text.encode())
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
