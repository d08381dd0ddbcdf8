"""The two pictures of a study of several tasks: accuracy at fixed lengths, and regret (style: `siri.report.charts`)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from siri.report.style import LIGHT
from siri.study.compare import estimate
from siri.study.tasks import TaskRuns, accuracy_at, overall, regrets

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHADES = (0.35, 0.65, 1.0)
"""Of the dots of the lengths, the shortest first."""


def lengths_chart(tasks: Sequence[TaskRuns], *, narrow: bool = False) -> "Figure | None":
    """A panel for each task, a line for each arm, a dot with its interval for each length, the longest the darkest."""
    shown = [runs for runs in tasks if runs.arms]
    if not shown:
        return None
    names = list(dict.fromkeys(arm for runs in shown for arm in runs.arms))
    figure, panels = _panels(len(shown), names, narrow)
    for axes, runs in zip(panels, shown, strict=True):
        for number, length in enumerate(runs.lengths):
            shade = SHADES[min(number, len(SHADES) - 1)]
            for place, arm in enumerate(names):
                if arm in runs.arms:
                    mark = estimate([accuracy_at(curve, length) for curve in runs.arms[arm]])
                    _dot(axes, place, mark.mean, mark.half, "low", shade)
        _by_means(axes)
        listed = ", ".join(f"{length:g}" for length in runs.lengths)
        axes.set_title(f"{runs.task}: accuracy, %, at {listed} tokens", size=9)
    return figure


def regret_chart(tasks: Sequence[TaskRuns], *, narrow: bool = False) -> "Figure | None":
    """A panel for each task and one for their mean, a line for each arm: points of score below the best arm."""
    table = regrets(tasks)
    shown = [runs.task for runs in tasks if runs.arms]
    if not table:
        return None
    means = {arm: overall(by_task, tasks) for arm, by_task in table.items()}
    names = sorted(table, key=lambda arm: (means[arm].mean is None, means[arm].mean or 0.0))
    figure, panels = _panels(len(shown) + 1, names, narrow)
    for axes, task in zip(panels, [*shown, None], strict=True):
        for place, arm in enumerate(names):
            mark = means[arm] if task is None else estimate(list(table[arm].get(task, {}).values()))
            _dot(axes, place, mark.mean, mark.half, "high" if task is None else "low", 1.0)
        _by_means(axes)
        axes.axvline(0, color=LIGHT["faint"], lw=1.0, zorder=1)
        axes.set_title("mean over tasks" if task is None else f"{task}: regret, points", size=9)
    return figure


def _panels(count: int, names: Sequence[str], narrow: bool) -> tuple["Figure", list]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = 1 if narrow else count
    lines = count if narrow else 1
    width, height = (4.3 if narrow else 10.6), lines * (0.21 * len(names) + 0.7)
    figure = Figure((width, height))
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    figure.subplots_adjust(left=1.35 / width, right=1 - 0.1 / width, top=1 - 0.3 / height, bottom=0.3 / height)
    figure.subplots_adjust(wspace=0.08, hspace=0.35)
    panels = [axes for row in grid for axes in row]
    for axes in panels:
        axes.grid(True, axis="x")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    return figure, panels


def _dot(axes, place: int, mean: float | None, half: float | None, colour: str, shade: float) -> None:
    if mean is None:
        return
    style = {"color": LIGHT[colour], "alpha": shade}
    axes.errorbar(100 * mean, place, xerr=100 * (half or 0), fmt="o", ms=4.5, elinewidth=0.9, zorder=3, **style)


def _by_means(axes) -> None:
    """Limits by the dots: an interval of two seeds would push them into a corner."""
    dots = [x for line in axes.get_lines() if line.get_marker() == "o" for x in line.get_xdata()]
    if dots:
        room = 0.15 * (max(dots) - min(dots) or 1)
        axes.set_xlim(min(dots) - room, max(dots) + room)
