"""The table of a run's effects, in the terminal at its end."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from siri.report.effects import HEADINGS, caption, effect_cells, effects, verdict
from siri.report.progress import PHASE_STYLE
from siri.store.jsonl import read_run
from siri.text import printable


def closing_table(evals: Iterable[Mapping[str, Any]], config: Mapping[str, Any]) -> Table:
    """The table at the end of a run: base, each cycle's low and high, final, and one line of figures below.

    Args:
        evals: rows of eval.jsonl.  config: the resolved configuration (config.json).
    """
    rows = effects(evals)
    table = Table(
        title=escape(printable(caption(rows, config))) or None,
        caption=Text(verdict(rows), justify="left"),
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        caption_style="",
        header_style="dim",
        # no side borders: nine columns fit into 80 characters
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        kind = "compression" if row.name.startswith("siri-low") else "expansion" if "high" in row.name else ""
        table.add_row(*(Text(printable(cell)) for cell in effect_cells(row)), style=PHASE_STYLE.get(kind))
    return table


def print_closing(run_dir: str | Path, console: Console | None = None) -> None:
    """Print the closing table of a run folder.

    Raises:
        InputError: not a run folder, or a damaged file in it.
    """
    run = read_run(run_dir)
    console = console or Console()
    if not run.evals:
        path = printable(Path(run_dir) / "eval.jsonl")
        console.print(f"no evaluation recorded in {path}", markup=False, highlight=False)
        return
    console.print(closing_table(run.evals, run.config))
