"""The front of one run: every evaluation as a step of a path through tokens and accuracy, coloured by phase, so that it
shows whether a run has both ends, a short one and an accurate one."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from siri.report.effects import Effect, effects
from siri.report.style import LIGHT
from siri.store.jsonl import RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"compression": "low", "expansion": "high"}


def path_of(run: RunRecord) -> list[tuple[Effect, str]]:
    """Every evaluation that has both figures, in order, and the phase of most of the steps that led to it; "" for the
    base."""
    points = [row for row in effects(run.evals, every=True) if row.accuracy is not None and row.tokens is not None]
    path = [(row, "") for row in points[:1]]
    for before, row in pairwise(points):
        path.append((row, _phase_between(run.metrics, before.step, row.step)))
    return path


def _phase_between(rows: Sequence[Mapping[str, Any]], start: int, end: int) -> str:
    phases = [row["phase"] for row in rows if start <= row["step"] < end and row.get("phase") in COLOURS]
    return max(COLOURS, key=phases.count) if phases else ""


def on_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each point of (tokens, accuracy), whether no other is as short and as accurate, and better in one of both."""

    def beats(point: tuple[float, float], other: tuple[float, float]) -> bool:
        return point[0] <= other[0] and point[1] >= other[1] and point != other

    return [not any(beats(other, point) for other in points) for point in points]


def front_chart(run: RunRecord, *, narrow: bool = False) -> "Figure | None":
    """The path of a run whose cap goes down and up; None for another, or with fewer than three evaluations."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    path = path_of(run)
    if len(path) < 3 or {phase for _, phase in path} & COLOURS.keys() != COLOURS.keys():
        return None
    points = [(float(row.tokens or 0), 100 * float(row.accuracy or 0)) for row, _ in path]
    width, height = (4.3, 4.2) if narrow else (8.6, 4.8)
    figure = Figure((width, height))
    axes = figure.add_axes((0.56 / width, 0.56 / height, 1 - (0.56 + 0.25) / width, 1 - (0.56 + 0.42) / height))
    axes.grid(True, axis="both")
    axes.set_title("The way of the run" + ("" if narrow else ": every evaluation, coloured by the phase before it"))
    for (start, end), (_, phase) in zip(pairwise(points), path[1:], strict=True):
        colour = LIGHT[COLOURS.get(phase, "muted")]
        style = {"arrowstyle": "-|>", "color": colour, "lw": 1.4, "shrinkA": 3, "shrinkB": 3, "mutation_scale": 9}
        axes.annotate("", end, start, arrowprops=style, zorder=3)
    for (x, y), (_, phase), front in zip(points, path, on_front(points), strict=True):
        colour = LIGHT[COLOURS.get(phase, "ink")]
        axes.plot(
            [x], [y], marker="o", ms=5.5, color=colour if front else LIGHT["paper"], mec=colour, mew=1.2, zorder=5
        )
    axes.annotate("base", points[0], (7, -3), textcoords="offset points", size=8.5, color=LIGHT["ink"])
    handles = [Line2D([], [], color=LIGHT[colour], lw=1.8, label=phase) for phase, colour in COLOURS.items()]
    best = Line2D([], [], ls="", marker="o", ms=5.5, color=LIGHT["ink"], label="none is shorter and as accurate")
    axes.legend(handles=[*handles, best], loc="lower right", frameon=False, fontsize=8.5)
    axes.margins(0.09)
    axes.set_xlabel("mean response tokens")
    axes.xaxis.set_major_locator(MaxNLocator(5 if narrow else 8, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.6g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}%"))
    return figure
