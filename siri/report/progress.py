"""The display of a run while it trains: a live bar in a terminal, lines elsewhere, and all lines in log.txt."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from siri.report.eta import Forecast
from siri.report.format import compact, duration, percent, tokens
from siri.report.timeline import waits
from siri.store import files
from siri.text import encoded, printable

PHASE_STYLE = {"compression": "blue", "expansion": "dark_orange"}
LINE_S = 60.0
"""Without a terminal a finished step has a line if so many seconds have passed since the last one."""
STAGE_S = 180.0
"""And what happens within a step has one after so many."""
LOG = "log.txt"
EVALUATION = "evaluation"
"""What the stage of an evaluation begins with: its seconds count in the time that is left."""


class TrainProgress:
    """Context manager: a live display of two or three lines in a terminal; elsewhere a line for the first step, for
    every tenth of the run, and at least every few minutes."""

    def __init__(
        self,
        steps: int,
        start: int = 0,
        quiet: bool = False,
        *,
        cap: Callable[[int], int] | None = None,
        evaluations: Callable[[int], int] | None = None,
        log: Path | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """steps: of the whole run, of which `start` are done. quiet: show nothing (every rank but the first). cap: of a
        step, tokens, and evaluations: due after more than so many steps; both for the time that is left. log: the run
        folder, whose log.txt gets every line with its time, quiet or not; None = no log. console: where to write, by
        default the standard output."""
        self.steps, self.done, self.quiet = steps, start, quiet
        self.console = console or Console()
        self.log, self.clock = log, clock
        self.forecast = Forecast(cap, evaluations)
        self._row: Mapping[str, Any] = {}
        self._began = self._last = self._shown = clock()
        self._left: tuple[float, float] | None = None  # seconds that were left, and when
        self._tenth = 10 * start // max(steps, 1)
        self._first = True
        self._stage = ""
        self._count = self._total = 0
        self._stage_began = 0.0
        self._live = None
        if not quiet and self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = Live(get_renderable=self._render, console=self.console, refresh_per_second=4)

    def __enter__(self) -> "TrainProgress":
        self._began = self._last = self._shown = self.clock()
        if self._live:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, row: Mapping[str, Any]) -> None:
        """Show a finished step; `row` is its object for `metrics.jsonl` (missing or null numbers are left out)."""
        now = self.clock()
        seconds = row.get("step_time_s")
        self.forecast.step(row["step"], now - self._last if seconds is None else seconds)
        self._last, self._row, self.done = now, row, row["step"] + 1
        left = self.forecast.left(self.done, self.steps)
        self._left = None if left is None else (left, now)
        first, self._first, tenth = self._first, False, 10 * self.done // max(self.steps, 1)
        line = f"{self._counted()}  {self._numbers().plain}  eta {duration(left)}"
        self._write(line)
        if self._live:
            self._live.refresh()
        elif first or tenth > self._tenth or now - self._shown >= LINE_S:
            self._line(line)
        self._tenth = tenth

    def note(self, message: str) -> None:
        """Print a line above the bar (an evaluation, a saved checkpoint)."""
        self._write(message)
        self._line(message)

    @contextmanager
    def stage(self, what: str, total: int = 0) -> Iterator[Callable[[int], None]]:
        """What happens within a step from here on: a name, and how many responses it is made of (0 = it has no parts).
        Yields what is told how many more are finished."""
        self._stage, self._count, self._total, self._stage_began = what, 0, total, self.clock()
        try:
            yield self._advance
            if what.startswith(EVALUATION):
                self.forecast.evaluation(self.clock() - self._stage_began)
        finally:
            self._stage = ""

    def _advance(self, count: int) -> None:
        self._count += count
        if not self._live and self.clock() - self._shown >= STAGE_S:
            line = f"{self._counted()}  {self._within()}  eta {duration(self._eta())}"
            self._write(line)
            self._line(line)

    def _line(self, text: str) -> None:
        self._shown = self.clock()
        if not self.quiet:
            # soft_wrap: a log line is one line, however narrow the console; no markup: a path may hold brackets
            self.console.print(printable(text), soft_wrap=True, markup=False, highlight=False)

    def _write(self, text: str) -> None:
        """A line of log.txt, once there is a folder for it. A log that cannot be written is told once, and left."""
        if self.log is None or not self.log.is_dir():
            return
        path, moment = self.log / LOG, datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        try:
            files.append(path, encoded(f"{moment}  {printable(text)}\n"), fsync=False)
        except OSError as error:
            self.log = None
            self._line(f"warning: {path} cannot be written ({files.reason(error)}); the run goes on without it")

    def _counted(self) -> str:
        return f"step {self.done:>{len(str(self.steps))}}/{self.steps}"

    def _within(self) -> str:
        share = f" {self._count:,}/{self._total:,} responses" if self._total else ""
        return f"{self._stage}{share}, {duration(self.clock() - self._stage_began)}"

    def _eta(self) -> float | None:
        if self._left is None:
            return None
        left, when = self._left
        return max(0.0, left - (self.clock() - when))

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
            ("GPU", "gpu_memory", lambda size: f"{size / 1e9:.1f} GB"),
            ("stale", "staleness_mean", lambda steps: f"{steps:.1f}"),
            ("queue", "batches_ready", lambda ready: f"{ready:g} of {row.get('batches_in_flight') or 0:g}"),
            ("waits:", "rollout_wait_s", lambda seconds: who_waits(row)),
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
        clock = f"{duration(self.clock() - self._began)} eta {duration(self._eta())}"
        bar.add_row(
            Text(self._counted(), "bold"),
            ProgressBar(total=max(self.steps, 1), completed=self.done, complete_style=style, finished_style=style),
            Text(clock, "dim"),
        )
        numbers = self._numbers() if self._row else Text("first step is on its way", "dim")
        if not self._stage:
            return Group(bar, numbers)
        return Group(bar, numbers, Text(self._within(), "dim", overflow="ellipsis", no_wrap=True))


def who_waits(row: Mapping[str, Any]) -> str:
    """Who waited in a step that was sampled ahead: the trainer for responses, and servers for work."""
    trainer, servers = waits([row])
    told = f"trainer {percent(trainer)}"
    return told if servers is None else f"{told}, servers {percent(servers)}"
