"""The pictures of a comparison: arms between accuracy and length, and every arm over steps or training tokens.

Same style and colours as `siri.report.charts`, whose `draw` makes the files: blue is a response length or an arm whose
cap oscillates, orange one whose cap does not. Bars and bands are 95 % intervals over seeds. matplotlib is imported on
first use.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from siri.report.labels import place_labels
from siri.report.style import LIGHT
from siri.study.compare import Curve, Estimate, by_arm, estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 5
BAND = 0.22


def oscillates(runs: Sequence[Curve]) -> bool:
    """Whether the cap of these runs goes up and down by its schedule, however early they ended."""
    return "compression" in runs[0].steps.get("phase", [])


def _colour(runs: Sequence[Curve]) -> str:
    return LIGHT["low" if oscillates(runs) else "high"]


def pareto_chart(curves: Sequence[Curve], *, narrow: bool = False) -> "Figure | None":
    """Accuracy against mean tokens: a point for each arm at its last step, and one for the first arm's last SIRI-low.
    The bars are the intervals of both figures."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    arms = by_arm(curves)
    if not arms:
        return None
    reference = next(iter(arms.values()))
    points = [
        (
            "base",
            estimate([c.base["tokens_mean"] for c in reference]),
            estimate([c.base["accuracy"] for c in reference]),
        )
    ]
    colours = [LIGHT["ink"]]
    low = last_low(reference)
    if low:
        points.append((f"{reference[0].arm}, low", *_point(reference, low)))
        colours.append(LIGHT["low"])
    for name, runs in arms.items():
        points.append(
            (name if runs is not reference or not low else f"{name}, high", *_point(runs, runs[0].last["step"]))
        )
        colours.append(_colour(runs))
    width, height = (4.3, 4.6) if narrow else (8.6, 5.4)
    figure = Figure((width, height))
    axes = figure.add_axes((0.56 / width, 0.62 / height, 1 - 0.8 / width, 1 - 1.02 / height))
    axes.grid(True, axis="both")
    axes.set_title("Accuracy against length" + ("" if narrow else ": further up and to the left is better"))
    points, colours = _merged(points, colours)
    x, y = [point[1].mean for point in points], [100 * point[2].mean for point in points]
    for (name, tokens, accuracy), px, py, colour in zip(points, x, y, colours, strict=True):
        bars = {"ecolor": colour, "elinewidth": 0.9, "alpha": 0.45, "zorder": 3}
        axes.errorbar(px, py, xerr=tokens.half or 0, yerr=100 * (accuracy.half or 0), fmt="none", **bars)
        hollow = name == "base"
        face = LIGHT["paper"] if hollow else colour
        axes.plot([px], [py], "o", ms=6.5, color=face, mec=colour if hollow else LIGHT["paper"], mew=1.0, zorder=5)
    # limits by the means: an interval of two seeds would push everything into a corner
    for set_limits, values in ((axes.set_xlim, x), (axes.set_ylim, y)):
        room = 0.18 * (max(values) - min(values) or 1)
        set_limits(max(0, min(values) - room), max(values) + room)
    place_labels(
        axes, list(zip(x, y, strict=True)), [point[0] for point in points], colours, required=[True] * len(points)
    )
    axes.set_xlabel("mean response tokens")
    axes.xaxis.set_major_locator(MaxNLocator(5 if narrow else 8))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    bottom, top = axes.get_ylim()
    axes.set_yticks([tick for tick in axes.get_yticks() if bottom <= tick <= min(top, 100)])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
    counts = sorted({len(runs) for runs in arms.values()})
    seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    kinds = (("cap oscillates", "low"), ("cap does not", "high"))
    handles = [Line2D([], [], ls="", marker="o", ms=4.5, color=LIGHT[key], label=label) for label, key in kinds]
    _legend(figure, handles, f"last step, mean and 95 % interval of {seeds} seed{'s' * (seeds != '1')}")
    return figure


def _merged(points: list[tuple[str, Estimate, Estimate]], colours: list[str]) -> tuple[list, list[str]]:
    """Arms that turned out to be the same runs, as where a sweep chose the cap of another arm, as one point."""
    names: dict[tuple[Estimate, Estimate], list[str]] = {}
    kept = {}
    for (name, length, accuracy), colour in zip(points, colours, strict=True):
        names.setdefault((length, accuracy), []).append(name)
        kept.setdefault((length, accuracy), colour)
    return [(" = ".join(equals), *place) for place, equals in names.items()], list(kept.values())


def last_low(runs: Sequence[Curve]) -> int | None:
    """The last step at which a compression of these runs was evaluated."""
    steps = [row["step"] for row in runs[0].evals if str(row.get("name", "")).startswith("siri-low")]
    return steps[-1] if steps else None


def _point(runs: Sequence[Curve], step: int) -> tuple[Estimate, Estimate]:
    rows = [row for run in runs for row in run.evals if row["step"] == step]
    return estimate([row["tokens_mean"] for row in rows]), estimate([row["accuracy"] for row in rows])


def steps_chart(curves: Sequence[Curve], *, narrow: bool = False) -> "Figure | None":
    """Every arm over the steps: accuracy of its evaluations, and below it response tokens in training under the cap."""
    return _grid(curves, "step", narrow)


def training_tokens_chart(curves: Sequence[Curve], *, narrow: bool = False) -> "Figure | None":
    """The same against the response tokens that the run has trained on."""
    return _grid(curves, "train_tokens", narrow)


def _grid(curves: Sequence[Curve], along: str, narrow: bool) -> "Figure | None":
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    arms = by_arm(curves)
    if not arms:
        return None
    columns = min(len(arms), 2 if narrow else COLUMNS)
    lines = -(-len(arms) // columns)
    width, height = (4.3 if narrow else 10.6), 2.75 * lines + 0.75
    figure = Figure((width, height))
    shape = {"height_ratios": [1.0, 1.0, 0.32] * lines, "hspace": 0.12, "wspace": 0.12, "left": 0.5 / width}
    shape |= {"right": 1 - 0.12 / width, "top": 1 - 0.34 / height, "bottom": 0.42 / height}
    grid = figure.add_gridspec(3 * lines, columns, **shape)
    reference = next(iter(arms.values()))
    ends = [run.last[along] for runs in arms.values() for run in runs]
    above, below = None, None
    for number, (name, runs) in enumerate(arms.items()):
        line, column = divmod(number, columns)
        above = figure.add_subplot(grid[3 * line, column], sharex=above, sharey=above)
        below = figure.add_subplot(grid[3 * line + 1, column], sharex=above, sharey=below)
        above.set_title(name, color=_colour(runs), size=9, pad=4)
        if runs is not reference:
            x, y = _accuracy(reference, along)
            means = [math.nan if value.mean is None else 100 * value.mean for value in y]
            above.plot(x, means, color=LIGHT["faint"], lw=1.1)
        x, y = _accuracy(runs, along)
        _band(above, x, y, LIGHT["ink"], 100, marker="o")
        x, y, caps = _lengths(runs, along)
        _band(below, x, y, LIGHT["low"], 1)
        below.plot(x, caps, color=LIGHT["muted"], lw=1.0, dashes=(4, 2))
        above.tick_params(labelbottom=False, labelleft=column == 0)
        below.tick_params(labelleft=column == 0)
        below.set_xlim(0, max(ends))
        below.xaxis.set_major_locator(MaxNLocator(3 if along == "train_tokens" else 4, integer=True))
        if along == "train_tokens":
            below.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:g} K"))
        above.yaxis.set_major_locator(MaxNLocator(4))
        above.set_ylim(top=min(above.get_ylim()[1], 104))
        above.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
        below.yaxis.set_major_locator(MaxNLocator(4))
    assert below is not None  # there is an arm
    below.set_ylim(0, 1.1 * max(cap for run in curves for cap in run.steps["cap"]))
    styles = [
        Line2D([], [], color=LIGHT["ink"], marker="o", ms=3.5, label="accuracy, held out"),
        Line2D([], [], color=LIGHT["faint"], label=reference[0].arm),
        Line2D([], [], color=LIGHT["low"], label="response tokens, training"),
        Line2D([], [], color=LIGHT["muted"], dashes=(4, 2), label="cap"),
    ]
    _legend(figure, styles, "training tokens" if along == "train_tokens" else "training step")
    return figure


def _accuracy(runs: Sequence[Curve], along: str) -> tuple[list[float], list[Estimate]]:
    """Mean place and accuracy of the evaluations that every run has."""
    shared = sorted(set.intersection(*({row["step"] for row in run.evals} for run in runs)))
    rows = [[next(row for row in run.evals if row["step"] == step) for run in runs] for step in shared]
    return [sum(row[along] for row in group) / len(group) for group in rows], [
        estimate([row["accuracy"] for row in group]) for group in rows
    ]


def _lengths(runs: Sequence[Curve], along: str) -> tuple[list[float], list[Estimate], list[float]]:
    """Mean place, response tokens and cap of every step that all runs have."""
    count = min(len(run.steps.get("response_tokens_mean", [])) for run in runs)
    lengths = [estimate([run.steps["response_tokens_mean"][step] for run in runs]) for step in range(count)]
    caps = [runs[0].steps["cap"][step] for step in range(count)]
    if along == "step":
        return list(range(count)), lengths, caps
    # rows of a study hold no running total: the evaluations give it, and steps between two share what lies between
    places = []
    for step in range(count):
        values = []
        for run in runs:
            before = [row for row in run.evals if row["step"] <= step][-1]
            after = next((row for row in run.evals if row["step"] > step), before)
            span = after["step"] - before["step"] or 1
            share = (step - before["step"]) / span
            values.append(before["train_tokens"] + share * (after["train_tokens"] - before["train_tokens"]))
        places.append(sum(values) / len(values))
    return places, lengths, caps


def _band(axes: "Axes", x: Sequence[float], y: Sequence[Estimate], colour: str, scale: float, marker: str = "") -> None:
    means = [math.nan if value.mean is None else scale * value.mean for value in y]
    halves = [scale * (value.half or 0) for value in y]
    low = [mean - half for mean, half in zip(means, halves, strict=True)]
    high = [mean + half for mean, half in zip(means, halves, strict=True)]
    axes.fill_between(x, low, high, color=colour, alpha=BAND, lw=0)
    axes.plot(x, means, color=colour, lw=1.3, marker=marker, ms=2.6)


def _legend(figure: "Figure", handles: list, note: str) -> None:
    left, foot = figure.get_figwidth(), 0.05 / figure.get_figheight()
    style = {
        "frameon": False,
        "fontsize": 8.5,
        "labelcolor": LIGHT["muted"],
        "handletextpad": 0.4,
        "columnspacing": 1.2,
    }
    figure.legend(
        handles=handles, loc="lower right", bbox_to_anchor=(1 - 0.1 / left, foot), ncols=len(handles), **style
    )
    figure.text(0.5 / left, 0.12 / figure.get_figheight(), note, color=LIGHT["muted"], size=8.5)
