"""Labels beside the points of a chart that cover neither each other nor the points nor the line through them."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""

NEAR = (9, 14)
FAR = (20, 28, 38, 52, 70, 92)
"""Distances of a label from its point, typographic points; the far ones are bridged by a thin line."""


def place_labels(
    axes: "Axes",
    points: Sequence[Point],
    texts: Sequence[str],
    colours: Sequence[str],
    *,
    required: Sequence[bool],
    leader: str = "#c3c9d1",
    size: float = 8.5,
) -> None:
    """Write `texts[i]` beside `points[i]` (data coordinates, joined by a line in this order).

    Greedy: required texts first, each at the cheapest of 16 directions at each distance. A text that is not required is
    left out where it has no free place near its point. Call it when the limits of the axes are final.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(cast("Figure", axes.figure)).get_renderer()
    unit = axes.figure.dpi / 72  # pixels in a typographic point
    spots: list[Point] = [(float(x), float(y)) for x, y in map(axes.transData.transform, points)]
    frame = axes.get_window_extent(renderer)
    room = (frame.x0 + 3 * unit, frame.y0 + 3 * unit, frame.x1, frame.y1 + 4 * unit)
    taken: list[Box] = [_grown((x, y, x, y), 6 * unit) for x, y in spots]
    for start, end in pairwise(spots):
        taken += _chain(start, end, unit)

    for i in sorted(range(len(points)), key=lambda i: (not required[i], -len(texts[i]), i)):
        label = axes.annotate(
            texts[i],
            points[i],
            (0, 0),
            textcoords="offset points",
            va="bottom",
            size=size,
            color=colours[i],
            linespacing=1.25,
            zorder=1.5,  # above the grid, whose lines stop short of the letters, and below the line through the points
            bbox={"facecolor": axes.get_facecolor(), "edgecolor": "none", "pad": 0.5},
        )
        extent = label.get_window_extent(renderer)
        x, y = spots[i]
        others = spots[:i] + spots[i + 1 :]
        best: tuple[float, Box, Point, bool] | None = None
        for distance in NEAR + FAR if required[i] else NEAR:
            for direction in range(16):
                right, up = math.cos(math.pi * direction / 8), math.sin(math.pi * direction / 8)
                end = (x + distance * unit * right, y + distance * unit * up)
                # the box touches `end` with the side or corner that faces the point
                left, bottom = end[0] - extent.width * (1 - right) / 2, end[1] - extent.height * (1 - up) / 2
                box = (left, bottom, left + extent.width, bottom + extent.height)
                spoilt = 3 * (extent.width * extent.height - _overlap(box, room))
                spoilt += sum(_overlap(_grown(box, 2 * unit), other) for other in taken)
                bridged = distance in FAR
                if bridged and any(_gap(spots[i], end, other) < 7 * unit for other in others):
                    spoilt += 1000  # a leader through another point would name that one
                if not required[i] and (
                    spoilt > 0 or any(_reach(box, other) < _reach(box, spots[i]) for other in others)
                ):
                    continue  # a reader would take it for the label of the nearer point
                cost = spoilt + 2 * distance * unit
                if best is None or cost < best[0]:
                    best = (cost, box, end, bridged)
        if best is None:
            label.remove()
            continue
        _, box, end, bridged = best
        taken.append(box)
        label.set_position(((box[0] - x) / unit, (box[1] - y) / unit))
        if bridged:
            taken += _chain(spots[i], end, unit)
            (x0, y0), (x1, y1) = points[i], axes.transData.inverted().transform(end)
            axes.plot([x0, x1], [y0, y1], color=leader, lw=0.8, zorder=3)


def _grown(box: Box, by: float) -> Box:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _overlap(a: Box, b: Box) -> float:
    """Area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _chain(start: Point, end: Point, unit: float) -> list[Box]:
    """A line as small boxes."""
    pieces = max(1, round(math.dist(start, end) / (4 * unit)))
    shares = (i / pieces for i in range(1, pieces))
    spots = ((start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share) for share in shares)
    return [_grown((x, y, x, y), unit) for x, y in spots]


def _reach(box: Box, point: Point) -> float:
    """Distance from `point` to the nearest point of a box."""
    return math.hypot(max(box[0] - point[0], 0, point[0] - box[2]), max(box[1] - point[1], 0, point[1] - box[3]))


def _gap(start: Point, end: Point, point: Point) -> float:
    """Distance from `point` to the line from `start` to `end`."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    share = ((point[0] - start[0]) * dx + (point[1] - start[1]) * dy) / (dx * dx + dy * dy)
    share = min(max(share, 0.0), 1.0)
    return math.dist(point, (start[0] + share * dx, start[1] + share * dy))
