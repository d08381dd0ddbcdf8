"""The picture of the updates: loss, gradient norm, share of clipped tokens, and how far the policy is from its sampler.

Same style and colours as `siri.report.charts`, whose `draw` makes the files. matplotlib is imported on first use.
"""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from siri.report.charts import shade, smoothed, step_ticks
from siri.report.style import LIGHT
from siri.store.jsonl import RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def clipped(row: Mapping[str, Any]) -> float | None:
    """Share of the tokens whose ratio was clipped, on either side."""
    sides = [row.get(key) for key in ("clip_low_fraction", "clip_high_fraction")]
    return None if None in sides else math.fsum(side for side in sides if side is not None)


Value = Callable[[Mapping[str, Any]], float | None]
PANELS: tuple[tuple[str, tuple[tuple[str, str, Value], ...], float], ...] = (
    ("Loss", (("", "ink", lambda row: row.get("loss")),), 1),
    ("Gradient norm, before it is clipped", (("", "ink", lambda row: row.get("grad_norm")),), 1),
    ("Clipped tokens, %", (("", "ink", clipped),), 100),
    (
        "KL to the sampler, nats per token",
        (
            ("of the update", "ink", lambda row: row.get("approx_kl")),
            ("of the engine", "high", lambda row: row.get("mismatch_k3")),
        ),
        1,
    ),
)
"""Title, lines (name, colour, value of a row) and scale of each panel."""


def figures(row: Mapping[str, Any]) -> list[float | None]:
    """All that the chart draws of a step."""
    return [value(row) for _, lines, _ in PANELS for _, _, value in lines]


def update_chart(run: RunRecord, *, narrow: bool = False) -> "Figure | None":
    """A panel for each of PANELS that the run has figures for; compression shaded."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    rows = run.metrics
    panels = [panel for panel in PANELS if any(value(row) is not None for row in rows for _, _, value in panel[1])]
    if not panels:
        return None
    width, inch = (4.3, 0.8) if narrow else (8.6, 0.9)
    height = inch * len(panels) + 0.42 * len(panels) + (0.92 if narrow else 0.5)
    figure = Figure((width, height))
    grid = {"left": 0.66 / width, "right": 1 - 0.3 / width, "top": 1 - 0.36 / height, "bottom": 0.5 / height}
    all_axes = figure.subplots(len(panels), sharex=True, squeeze=False, gridspec_kw={**grid, "hspace": 0.46 / inch})[
        :, 0
    ]
    steps = [float(row["step"]) for row in rows]
    window = 1
    for axes, (title, lines, scale) in zip(all_axes, panels, strict=True):
        axes.set_title(title)
        shade(axes, rows)
        dot = {"marker": "o", "ms": 3.5, "clip_on": False} if len(rows) < 3 else {}
        drawn = []
        for name, colour, value in lines:
            values = [math.nan if value(row) is None else scale * float(value(row) or 0.0) for row in rows]
            if all(map(math.isnan, values)):
                continue
            smooth, window = smoothed(values)
            if window > 1:
                axes.plot(steps, values, color=LIGHT["faint"], lw=0.7)
            drawn += axes.plot(steps, smooth, color=LIGHT[colour], lw=1.5, label=name, **dot)
        if len(drawn) > 1:
            axes.legend(handles=drawn, loc="upper right", frameon=False, fontsize=8, ncols=2, labelcolor=LIGHT["muted"])
        axes.margins(y=0.12)
        axes.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.4g}"))
    last = rows[-1]["step"] + 1
    all_axes[-1].set_xlim(min(0, rows[0]["step"]), last)
    step_ticks(all_axes[-1], run, last, narrow)
    all_axes[-1].set_xlabel("training step" + (f" (bold: mean over {window} steps)" if window > 1 else ""), loc="left")
    return figure
