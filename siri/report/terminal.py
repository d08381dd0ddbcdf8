"""What a person sees in the terminal: the live bar while a run trains, and the table of its effects at the end."""

import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from siri.report.effects import HEADINGS, caption, effect_cells, effects, verdict
from siri.report.format import compact, duration, percent, tokens
from siri.store.jsonl import read_run
from siri.text import printable

PHASE_STYLE = {"compression": "blue", "expansion": "dark_orange"}


class TrainProgress:
    """Context manager: a live two-line display in a terminal, one plain line every tenth of the run elsewhere.

    Args:
        steps: training steps of the whole run.
        start: steps already done (a resumed run).
        quiet: show nothing at all (every rank but the first).
        console: where to write; default the standard output.
    """

    def __init__(self, steps: int, start: int = 0, quiet: bool = False, *, console: Console | None = None):
        self.steps, self.done, self.quiet = steps, start, quiet
        self.console = console or Console()
        self._row: Mapping[str, Any] = {}
        self._began = self._last = time.monotonic()
        self._recent: deque[float] = deque(maxlen=20)  # seconds of the last steps: the cap moves, and the speed with it
        self._tenth = 10 * start // max(steps, 1)
        self._live = None
        if not quiet and self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = Live(get_renderable=self._render, console=self.console, refresh_per_second=4)

    def __enter__(self) -> "TrainProgress":
        self._began = self._last = time.monotonic()
        if self._live:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, row: Mapping[str, Any]) -> None:
        """Show a finished step; `row` is its object for `metrics.jsonl` (missing or null numbers are left out)."""
        now = time.monotonic()
        seconds = row.get("step_time_s")
        self._recent.append(now - self._last if seconds is None else seconds)
        self._last, self._row, self.done = now, row, row["step"] + 1
        first, tenth = len(self._recent) == 1, 10 * self.done // max(self.steps, 1)
        if self._live:
            self._live.refresh()
        elif not self.quiet and (first or tenth > self._tenth):
            self._line(f"{self._count()}  {self._numbers().plain}  eta {duration(self._eta())}")
        self._tenth = tenth

    def note(self, message: str) -> None:
        """Print a line above the bar (an evaluation, a saved checkpoint)."""
        if not self.quiet:
            self._line(message)

    def _line(self, text: str) -> None:
        # soft_wrap: a log line is one line, however narrow the console; no markup: a path may hold brackets
        self.console.print(printable(text), soft_wrap=True, markup=False, highlight=False)

    def _count(self) -> str:
        return f"step {self.done:>{len(str(self.steps))}}/{self.steps}"

    def _eta(self) -> float | None:
        if not self._recent:
            return None
        return max(self.steps - self.done, 0) * sum(self._recent) / len(self._recent)

    def _numbers(self) -> Text:
        row = self._row
        text = Text(overflow="ellipsis", no_wrap=True)
        if phase := row.get("phase"):
            text.append(f"{phase:<11}", PHASE_STYLE.get(phase, ""))
        for label, key, show in (
            ("cap", "cap", lambda cap: f"{cap:,}"),
            ("reward", "reward_mean", lambda reward: f"{reward:.3f}"),
            ("tokens", "response_tokens_mean", tokens),
            ("truncated", "truncation_rate", percent),
            ("", "tokens_per_s", lambda speed: f"{compact(speed)} tok/s"),
        ):
            if (value := row.get(key)) is not None:
                text.append("  " if text else "")
                text.append(f"{label} " if label else "", "dim")
                text.append(show(value))
        return text

    def _render(self) -> Group:
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        style = PHASE_STYLE.get(self._row.get("phase", ""), "blue")
        clock = f"{duration(time.monotonic() - self._began)} eta {duration(self._eta())}"
        bar.add_row(
            Text(self._count(), "bold"),
            ProgressBar(total=max(self.steps, 1), completed=self.done, complete_style=style, finished_style=style),
            Text(clock, "dim"),
        )
        return Group(bar, self._numbers() if self._row else Text("first step is on its way", "dim"))


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
