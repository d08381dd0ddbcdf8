"""Pictures of a run: what happened over the steps, and where its checkpoints stand between accuracy and length.

matplotlib is imported on first use.
"""

import math
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

from siri.report.effects import effects, is_milestone
from siri.report.format import percent, tokens
from siri.report.labels import place_labels
from siri.report.style import LIGHT
from siri.store.jsonl import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _column(rows: Sequence[dict], key: str) -> list[float]:
    return [math.nan if row.get(key) is None else float(row[key]) for row in rows]


def smoothed(values: Sequence[float]) -> tuple[list[float], int]:
    """Centred running mean without the missing values, and its window in steps (1: nothing to smooth)."""
    half = len(values) // 80
    means = []
    for i, value in enumerate(values):
        window = [x for x in values[max(0, i - half) : i + half + 1] if not math.isnan(x)]
        means.append(math.nan if math.isnan(value) else sum(window) / len(window))
    return means, 2 * half + 1


# --- over the steps ---


def training_chart(run: RunRecord, *, narrow: bool = False) -> "Figure | None":
    """Length and cap, accuracy, truncation and entropy over the steps; compression shaded, evaluations as points."""
    from matplotlib.figure import Figure

    rows, others = run.metrics, run.beside[1].metrics if run.beside else []
    if not rows:
        return None
    checks = effects(run.evals, every=True)
    shaped = any(row.get("reward_mean") != row.get("accuracy") for row in rows)
    panels = [  # title, height, key of the steps, name of that line, figure of the evaluations, in percent
        ("Response length, tokens", 1.5, "response_tokens_mean", "mean", "tokens", False),
        ("Accuracy, %", 1.3, "accuracy", "training", "accuracy", True),
        ("Reward", 0.8, "reward_mean" if shaped else "", "", "", False),
        ("Truncated responses, %", 0.8, "truncation_rate", "", "", True),
        ("Entropy, nats per token", 0.8, "entropy", "", "", False),
    ]
    panels = [panel for panel in panels if any(row.get(panel[2]) is not None for row in rows)] or panels[:1]
    heights = [panel[1] for panel in panels]
    width, inch = (4.3, 1.05) if narrow else (8.6, 1.2)
    height = inch * sum(heights) + 0.42 * len(panels) + (0.92 if narrow else 0.7)
    figure = Figure((width, height))
    all_axes = figure.subplots(
        len(panels),
        sharex=True,
        squeeze=False,
        gridspec_kw={
            "height_ratios": heights,
            "left": 0.56 / width,
            "right": 1 - (0.72 if narrow else 0.9) / width,
            "top": 1 - 0.36 / height,
            "bottom": (0.74 if narrow else 0.52) / height,
            "hspace": 0.44 * len(panels) / (inch * sum(heights)),
        },
    )[:, 0]
    steps = _column(rows, "step")
    for axes, (title, _, key, name, eval_key, is_percent) in zip(all_axes, panels, strict=True):
        scale = 100 if is_percent else 1
        axes.set_title(title)
        shade(axes, rows)
        labels = []
        if eval_key == "tokens":
            caps = _column(rows, "cap")
            style = {"drawstyle": "steps-post"} if len(set(caps)) < 9 else {}
            axes.plot(steps, caps, color=LIGHT["muted"], lw=1.1, dashes=(4, 2), **style)
            labels.append((caps[-1], "cap", "muted"))
        values = [scale * value for value in _column(rows, key)]
        smooth, window = smoothed(values)
        dot = {"marker": "o", "ms": 3.5, "clip_on": False} if len(rows) < 3 else {}
        if window > 1:
            axes.plot(steps, values, color=LIGHT["faint"], lw=0.7)
        axes.plot(steps, smooth, color=LIGHT["ink"], lw=1.6, **dot)
        beside = smoothed([scale * value for value in _column(others, key)])[0]
        axes.plot(_column(others, "step"), beside, color=LIGHT["muted"], lw=1.2, dashes=(1, 1.2))
        labels.append((next((v for v in reversed(smooth) if not math.isnan(v)), math.nan), name, "ink"))
        points = [row for row in checks if eval_key and getattr(row, eval_key) is not None]
        for row in points:
            _mark(axes, row.name, row.step, scale * getattr(row, eval_key), size=4.5)
        if points:
            labels.append((scale * getattr(points[-1], eval_key), "evaluated", "muted"))
        _limits(axes, is_percent, from_zero=key != "accuracy")
        _name_lines(axes, [label for label in labels if label[1] and not math.isnan(label[0])])
    last = max([steps[-1] + 1, *(row.step for row in checks), *(row["step"] + 1 for row in others)])
    all_axes[0].set_xlim(min(0, steps[0]), last)
    step_ticks(all_axes[-1], run, last, narrow)
    _name_phases(all_axes[0], rows, narrow=narrow)
    all_axes[-1].set_xlabel("training step" + (f" (bold: mean over {window} steps)" if window > 1 else ""), loc="left")
    _legend(figure, [row.name for row in checks], narrow)
    return figure


def shade(axes: "Axes", rows: Sequence[dict]) -> None:
    """Colour the steps of compression."""
    for phase, start, end in _phases(rows):
        if phase == "compression":
            axes.axvspan(start, end, color=LIGHT["shade"], lw=0, zorder=0)


def _phases(rows: Sequence[dict]) -> list[tuple[str | None, int, int]]:
    """(phase, first step, one past the last) of each run of rows in the same phase."""
    spans = []
    for phase, group in groupby(rows, key=lambda row: row.get("phase")):
        members = list(group)
        spans.append((phase, members[0]["step"], members[-1]["step"] + 1))
    return spans


def _name_phases(axes: "Axes", rows: Sequence[dict], *, narrow: bool) -> None:
    """The word for each phase at the top of its span, the first time that the span is wide enough for it."""
    spans = _phases(rows)
    if {phase for phase, _, _ in spans} <= {"expansion", None}:
        return
    unit = axes.get_window_extent().width / axes.figure.dpi * 72 / (axes.get_xlim()[1] - axes.get_xlim()[0])
    named = set()
    for phase, start, end in spans:
        if phase and phase not in named and (end - start) * unit > 58:
            named.add(phase)
            axes.annotate(
                phase,
                ((start + end) / 2, 1),
                (0, -3),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="center",
                va="top",
                size=8.5,
                color=LIGHT["low" if phase == "compression" else "high"],
            )
    if "compression" not in named and not narrow:  # a phone has no room beside the title; the note below says it
        axes.set_title("shaded: compression", loc="right", size=8.5, color=LIGHT["low"], weight="normal")


def _legend(figure: "Figure", names: Sequence[str], narrow: bool) -> None:
    """What the points mean, for the kinds of evaluation that this run has."""
    from matplotlib.lines import Line2D

    kinds = [
        ("base", [name for name in names if name == "base"]),
        ("SIRI-low", [name for name in names if name.startswith("siri-low")]),
        ("SIRI-high", [name for name in names if name.startswith("siri-high")]),
        ("final", [name for name in names if name == "final"]),
        ("routine check", [name for name in names if not is_milestone(name)]),
    ]
    handles = [Line2D([], [], ls="", ms=4.5, label=kind, **_marker(members[0])) for kind, members in kinds if members]
    if handles:
        sides = figure.subplotpars
        figure.legend(
            handles=handles,
            loc="lower left" if narrow else "lower right",
            bbox_to_anchor=(sides.left if narrow else sides.right, 0.06 / figure.get_figheight()),
            ncols=len(handles),
            frameon=False,
            fontsize=8.5,
            labelcolor=LIGHT["muted"],
            handlelength=1.0,
            handletextpad=0.3,
            columnspacing=1.1,
            borderaxespad=0,
            borderpad=0.3,
        )


def _limits(axes: "Axes", is_percent: bool, from_zero: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    low, high = axes.dataLim.y0, axes.dataLim.y1
    if not (math.isfinite(low) and math.isfinite(high)):
        low, high = 0.0, 1.0
    if from_zero or low < 0.3 * high:
        low = min(low, 0.0)
    room = 0.14 * (high - low) or max(abs(high), 1.0) * 0.1
    # room above for the names of the phases; shares do not need more than their hundred percent
    top = min(high + room, 104) if is_percent else high + room
    axes.set_ylim(low if low == 0 else low - room, top)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.6g}"))


def step_ticks(axes: "Axes", run: RunRecord, last: float, narrow: bool) -> None:
    """Ticks where the phases change, if there are few enough of them to read."""
    from matplotlib.ticker import MaxNLocator

    edges = sorted({start for _, start, _ in _phases(run.metrics)} | {int(last)})
    gaps = [later - earlier for earlier, later in pairwise(edges)]
    if 3 <= len(edges) <= (7 if narrow else 13) and min(gaps) * (24 if narrow else 40) > last:
        axes.set_xticks(edges)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5 if narrow else 8, integer=True))


def _name_lines(axes: "Axes", labels: list[tuple[float, str, str]]) -> None:
    """Write the names of the lines at their right ends, pushed apart where they would touch."""
    if not labels:
        return
    height = axes.get_window_extent().height / axes.figure.dpi * 72
    low, high = axes.get_ylim()
    labels = sorted(labels)
    spots = [(value - low) / (high - low) * height for value, _, _ in labels]
    for _ in range(60):  # push neighbours apart by halves until they are a line of text away from each other
        for i, (below, above) in enumerate(pairwise(spots)):
            push = max(11.0 - (above - below), 0) / 2
            spots[i], spots[i + 1] = below - push, above + push
    for spot, (_, text, colour) in zip(spots, labels, strict=True):
        axes.annotate(
            text,
            (1, spot / height),
            (6, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            size=8.5,
            color=LIGHT[colour],
            annotation_clip=False,
        )


def _marker(name: str) -> dict[str, Any]:
    """How an evaluation looks: low and high filled in their colours, final in ink, the others hollow."""
    for kind in ("low", "high"):
        if name.startswith(f"siri-{kind}"):
            return {"marker": "o", "color": LIGHT[kind], "mec": LIGHT["paper"], "mew": 1.0}
    if name == "final":
        return {"marker": "o", "color": LIGHT["ink"], "mec": LIGHT["paper"], "mew": 1.0}
    return {"marker": "o", "color": LIGHT["paper"], "mec": LIGHT["ink" if name == "base" else "muted"], "mew": 1.0}


def _mark(axes: "Axes", name: str, x: float, y: float, *, size: float) -> None:
    size = size if is_milestone(name) else 0.75 * size
    axes.plot([x], [y], ms=size, zorder=5, clip_on=False, **_marker(name))


# --- accuracy against length ---


def pareto_chart(run: RunRecord, *, narrow: bool = False) -> "Figure | None":
    """Accuracy against mean tokens: base, each cycle's low and high (all checks if there are none), in that order."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    cycles = any(row["name"].startswith("siri-") for row in run.evals)
    points = [
        row for row in effects(run.evals, every=not cycles) if row.accuracy is not None and row.tokens is not None
    ]
    if len(points) < 2:
        return None
    width, height = (4.3, 4.2) if narrow else (8.6, 4.8)
    figure = Figure((width, height))
    axes = figure.add_axes((0.56 / width, 0.56 / height, 1 - (0.56 + 0.25) / width, 1 - (0.56 + 0.42) / height))
    axes.grid(True, axis="both")
    axes.set_title("Accuracy against length" + ("" if narrow else ": further up and to the left is better"))
    x = [row.tokens for row in points if row.tokens is not None]
    y = [100 * row.accuracy for row in points if row.accuracy is not None]
    # the shortest answers are the interesting end: room on the left for their labels
    for values, set_limits, before, after in (
        (x, axes.set_xlim, 0.32 if narrow else 0.17, 0.08),
        (y, axes.set_ylim, 0.13, 0.13),
    ):
        spread = max(max(values) - min(values), 0.04 * max(values), 1e-3)
        set_limits(max(min(values) - before * spread, 0), max(values) + after * spread)
    axes.plot(x, y, color=LIGHT["faint"], lw=1.2, zorder=2)
    for row, px, py in zip(points, x, y, strict=True):
        _mark(axes, row.name, px, py, size=7.5)
    key = {row.name: row for row in points if row.name in ("base", "final")}
    for kind in ("siri-low", "siri-high"):  # the last of each kind is what people take away: name its figures too
        key |= {row.name: row for row in [row for row in points if row.name.startswith(kind)][-1:]}
    texts = []
    for row in points:
        text = row.name.removeprefix("siri-").replace("-", " ")
        figures = f"{percent(row.accuracy)}, {tokens(row.tokens)}" + ("" if narrow else " tokens")
        texts.append(f"{text}\n{figures}" if row.name in key else text)
    colours = [LIGHT["low" if "low" in row.name else "high" if "high" in row.name else "ink"] for row in points]
    place_labels(axes, list(zip(x, y, strict=True)), texts, colours, required=[row.name in key for row in points])
    axes.set_xlabel("mean response tokens")
    axes.xaxis.set_major_locator(MaxNLocator(5 if narrow else 8, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.6g}"))
    bottom, top = axes.get_ylim()
    axes.set_yticks([tick for tick in axes.get_yticks() if bottom <= tick <= min(top, 100)])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}%"))
    return figure
