"""`report.html`: one page that shows what a run did, readable on a phone, in the dark and without a network."""

from dataclasses import replace
from pathlib import Path

from siri.report.charts import pareto_chart, training_chart
from siri.report.front import front_chart
from siri.report.page import Page, page_of
from siri.report.samples import write_samples
from siri.report.step_charts import plan_chart, time_chart
from siri.report.style import DARK, LIGHT, draw
from siri.report.timeline import timeline_chart
from siri.report.update_chart import update_chart
from siri.store.files import write_atomic
from siri.store.jsonl import read_run
from siri.text import encoded, printable

CHARTS = {
    "training": training_chart,
    "pareto": pareto_chart,
    "front": front_chart,
    "updates": update_chart,
    "time": time_chart,
    "packing": plan_chart,
    "timeline": timeline_chart,
}


def write_report(run_dir: str | Path, beside: str | Path | None = None) -> Path:
    """Draw `report.html` and the pictures of CHARTS that the run has (`training.png` and the like) in a run folder, and
    `samples.html` where responses are kept; returns the path of the page.

    The run may be unfinished: what is not there yet is left out. Every file is replaced atomically, and the same run
    gives the same bytes on the same machine. beside: the folder of another run that is shown beside it.

    Raises:
        InputError: `run_dir` holds no metrics.jsonl, or a file in it is damaged (names it).
    """
    run_dir = Path(run_dir)
    run = read_run(run_dir)
    if beside is not None:
        run = replace(run, beside=(printable(Path(beside).resolve().name), read_run(beside)))
    pictures = {}
    for name, chart in CHARTS.items():
        wide = draw(chart, run)
        if wide:
            write_atomic(run_dir / f"{name}.png", wide["png"])
            pictures[name] = (wide["svg"], draw(chart, run, narrow=True, kinds=["svg"])["svg"])
    path = run_dir / "report.html"
    title = str(run.config.get("recipe") or run_dir.resolve().name)
    samples = write_samples(run_dir, title=title)
    write_atomic(path, encoded(render(page_of(run, pictures, title=title, samples=samples.name if samples else ""))))
    return path


def render(page: Page) -> str:
    """The page as HTML, by `templates/report.html`. All text of a run is escaped; a name that the page does not have
    raises jinja2.UndefinedError rather than leaving a gap."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # imported on first use, as matplotlib is

    environment = Environment(
        loader=PackageLoader("siri.report"), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template("report.html").render(page=page, light=LIGHT, dark=DARK)
