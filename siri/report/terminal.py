"""What a person sees in the terminal: the live bar while a run trains, and the table of its effects at the end."""

import re
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from siri.store.jsonl import efficiency_score, read_run
from siri.text import printable

PHASE_STYLE = {"compression": "blue", "expansion": "dark_orange"}
MISSING = "-"


# --- numbers as text; None, the JSON null, is a dash ---


def percent(share: float | None, *, signed: bool = False) -> str:
    """0.5113 -> "51.1%"; signed for changes: "+93.3%"."""
    return MISSING if share is None else f"{100 * share:{'+' if signed else ''}.1f}%"


def tokens(count: float | None) -> str:
    """A mean number of tokens: "19.4", "7,093"."""
    return MISSING if count is None else f"{count:.1f}" if count < 1000 else f"{count:,.0f}"


def compact(count: float | None) -> str:
    """A large count with three digits: "812", "45.2 K", "1.04 M", "782 M"."""
    if count is None:
        return MISSING
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= 0.9995 * size:
            value = count / size
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return f"{count:.0f}"


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds: "1:02:03", "2:03"."""
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


# --- while it trains ---


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


# --- what it achieved ---


@dataclass(frozen=True)
class Effect:
    """One evaluated checkpoint and its change against the base model; None where there is nothing to say."""

    name: str
    step: int
    cap: int | None
    accuracy: float | None
    accuracy_change: float | None
    """accuracy / base accuracy - 1."""
    tokens: float | None
    """Mean response tokens."""
    tokens_change: float | None
    """tokens / base tokens - 1."""
    truncation_rate: float | None
    train_tokens: int | None
    """Response tokens that the run had trained on by then."""
    score: float | None
    """Efficiency score of the paper: mean over benchmarks of max(accuracy / base accuracy - 1, 0), divided by the mean
    of tokens / base tokens."""


def is_milestone(name: str) -> bool:
    """Whether an evaluation is part of the story of a run (base, ends of phases, final) rather than a routine check."""
    return name in ("base", "final") or re.fullmatch(r"siri-(low|high)-\d+", name) is not None


def effects(evals: Iterable[Mapping[str, Any]], *, every: bool = False) -> list[Effect]:
    """The rows of the closing table, in order of training: base, each cycle's low and high, final.

    An evaluation that was made twice counts once, the later one; so does one with two names, such as the final model
    that is also the last SIRI-high. Changes are given only at the base's own cap: accuracy and length depend on it.
    With `every`, or when there is no milestone but the base, routine evaluations have rows too.
    """
    latest = {row["name"]: row for row in evals}
    chosen = [row for row in latest.values() if every or is_milestone(row["name"])]
    if not any(row["name"] != "base" for row in chosen):
        chosen = list(latest.values())
    # base and ends of phases before final before routine checks, so that of equal rows the telling name stays
    chosen.sort(key=lambda row: (row["step"], not is_milestone(row["name"]), row["name"] == "final"))
    distinct = {}
    for row in chosen:
        distinct.setdefault(tuple(row.get(key) for key in ("step", "cap", "accuracy", "tokens_mean")), row)
    return [_effect(row, latest.get("base")) for row in distinct.values()]


def _effect(row: Mapping[str, Any], base: Mapping[str, Any] | None) -> Effect:
    def change(key: str) -> float | None:
        if base is None or row is base or row.get("cap") != base.get("cap") or not base.get(key):
            return None
        return None if row.get(key) is None else row[key] / base[key] - 1

    accuracy_change, tokens_change = change("accuracy"), change("tokens_mean")
    comparable = accuracy_change is not None and tokens_change is not None
    return Effect(
        name=printable(row["name"]),
        step=row["step"],
        cap=row.get("cap"),
        accuracy=row.get("accuracy"),
        accuracy_change=accuracy_change,
        tokens=row.get("tokens_mean"),
        tokens_change=tokens_change,
        truncation_rate=row.get("truncation_rate"),
        train_tokens=row.get("train_tokens"),
        score=_score(row, base) if base is not None and comparable else None,
    )


def _score(row: Mapping[str, Any], base: Mapping[str, Any]) -> float | None:
    """The efficiency score of a row of eval.jsonl; None where benchmarks differ or figures lack."""
    pairs = []
    for one in (row, base):
        benchmarks = one.get("benchmarks") or {"": one}
        pairs.append(
            {name: (figures.get("accuracy"), figures.get("tokens_mean")) for name, figures in benchmarks.items()}
        )
    mine, others = pairs
    if mine.keys() != others.keys() or any(None in figures for pair in pairs for figures in pair.values()):
        return None
    return efficiency_score(mine, others)


def verdict(rows: list[Effect]) -> str:
    """One line of figures about the last SIRI-low and SIRI-high, or the last evaluation where there is neither."""
    trained = [row for row in rows if row.name != "base"]
    base = next((row for row in rows if row.name == "base"), None)
    if not trained:
        return "No evaluation after training yet." if base else "No evaluation yet."
    picked = [
        next((row for row in reversed(trained) if row.name.startswith(kind)), None)
        for kind in ("siri-low", "siri-high")
    ]
    picked = [row for row in picked if row] or trained[-1:]
    parts = []
    for row in picked:
        where = f"{row.name} (step {row.step})"
        if row.accuracy_change is not None and row.tokens_change is not None:
            parts.append(
                f"{where}: accuracy {percent(row.accuracy_change, signed=True)}, "
                f"tokens {percent(row.tokens_change, signed=True)}"
            )
        else:
            parts.append(f"{where}: accuracy {percent(row.accuracy)} at {tokens(row.tokens)} tokens")
    if base and all(row.accuracy_change is not None and row.tokens_change is not None for row in picked):
        opening = f"Against base at cap {base.cap:,}: " if base.cap is not None else "Against base: "
    else:
        opening = "" if base else "No base evaluation to compare with. "
    return opening + "; ".join(parts) + "."


HEADINGS = ("checkpoint", "step", "accuracy", "vs base", "tokens", "vs base", "truncated", "trained\non", "score")


def effect_cells(row: Effect) -> tuple[str, ...]:
    """The texts of one table row, one a heading of HEADINGS; the terminal and the HTML report both show these."""
    return (
        row.name,
        str(row.step),
        percent(row.accuracy),
        percent(row.accuracy_change, signed=True),
        tokens(row.tokens),
        percent(row.tokens_change, signed=True),
        percent(row.truncation_rate),
        compact(row.train_tokens),
        MISSING if row.score is None else f"{row.score:.2f}",
    )


def caption(rows: list[Effect], config: Mapping[str, Any]) -> str:
    """What the table is about: the recipe and the cap(s) of its evaluations."""
    caps = sorted({row.cap for row in rows if row.cap is not None})
    at = f"evaluated at cap {', '.join(f'{cap:,}' for cap in caps)}" if caps else ""
    return ", ".join(part for part in (str(config.get("recipe") or ""), at) if part)


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
