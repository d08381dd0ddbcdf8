"""The two pictures of a step: where its time goes, and how its sequences were dealt to ranks and micro-steps.

Same style and colours as `siri.report.charts`, whose `draw` makes the files. matplotlib is imported on first use.
"""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

from siri.report.format import percent
from siri.report.style import LIGHT
from siri.store.jsonl import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARTS = (
    *(("rollout", "rollout_s"), ("reward", "reward_s"), ("plan", "plan_s"), ("old log-probs", "old_logp_s")),
    *(("forward", "forward_s"), ("head and loss", "head_s"), ("backward", "backward_s")),
    *(("optimizer", "optimizer_s"), ("weight sync", "sync_s"), ("save", "save_s")),
)
"""Parts of a step and their keys in metrics.jsonl, in the order in which they happen."""
BARS = 60
"""Most bars; longer runs show means over equally many steps."""
UNITS = ((1e3, "P"), (1.0, "T"), (1e-3, "G"))
"""TFLOP in a unit of cost, the largest first."""
LINES = 400
"""Most sequences of a plan that are told apart."""


def parts_of(row: dict) -> dict[str, float]:
    """Seconds of each part of a step, from its row of metrics.jsonl; what no part names is "other". Grading is no part
    of the rollout here, though it happens within; saving is that of the step before."""
    seconds = {name: float(row.get(key) or 0.0) for name, key in PARTS}
    seconds["rollout"] = max(0.0, seconds["rollout"] - seconds["reward"])
    named = sum(seconds.values()) - seconds["save"]
    return seconds | {"other": max(0.0, float(row.get("step_time_s") or 0.0) - named)}


def time_chart(run: RunRecord, *, narrow: bool = False) -> "Figure | None":
    """Seconds of a step by part as stacked bars over the steps; below, its micro-steps measured and predicted."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = [row for row in run.metrics if row.get("step_time_s") is not None]
    if not rows:
        return None
    compared = [row for row in rows if row.get("micro_steps_predicted_s") is not None]
    width, heights = (4.3 if narrow else 8.6), [2.3, 1.2][: 1 + bool(compared)]
    columns = 3 if narrow else 6
    foot = 0.6 + 0.19 * -(-(len(PARTS) + 1) // columns)
    height = sum(heights) + 0.36 + 0.42 * (len(heights) - 1) + foot
    figure = Figure((width, height))
    grid = {"left": 0.56 / width, "right": 1 - 0.3 / width, "top": 1 - 0.3 / height, "bottom": foot / height}
    grid |= {"height_ratios": heights, "hspace": 0.42 * len(heights) / sum(heights)}
    all_axes = figure.subplots(len(heights), sharex=True, squeeze=False, gridspec_kw=grid)[:, 0]

    size = -(-len(rows) // BARS)
    groups = [rows[start : start + size] for start in range(0, len(rows), size)]
    bars = [{name: fmean(values) for name, values in _columns(map(parts_of, group)).items()} for group in groups]
    edges = [*(group[0]["step"] for group in groups), rows[-1]["step"] + 1]
    total, handles = sum(sum(bar.values()) for bar in bars) or 1.0, []
    stack = [0.0] * len(bars)
    for index, name in enumerate(bars[0]):
        tall = [bar[name] for bar in bars]
        if not any(tall):
            continue
        colour = LIGHT["faint" if name == "other" else f"part{index}"]
        below, stack = stack, [low + more for low, more in zip(stack, tall, strict=True)]
        area = [[*line, line[-1]] for line in (below, stack)]  # one shape for all bars of a part
        all_axes[0].fill_between(edges, *area, step="post", color=colour, lw=0, label=name)
        handles.append(Patch(color=colour, lw=0, label=f"{name} {percent(sum(tall) / total)}"))
    mean = f", mean of {size} steps" if size > 1 else ""
    all_axes[0].set_title(f"Seconds of a step by part{mean}")
    all_axes[0].set_ylim(0, 1.06 * max(stack) or 1.0)
    if compared:
        steps, dot = [row["step"] + 0.5 for row in compared], {"marker": "o", "ms": 3} if len(compared) < 3 else {}
        measured = [row["micro_steps_s"] for row in compared]
        predicted = [row["micro_steps_predicted_s"] for row in compared]
        all_axes[1].plot(steps, measured, color=LIGHT["ink"], lw=1.4, label="measured", **dot)
        all_axes[1].plot(steps, predicted, color=LIGHT["muted"], lw=1.1, dashes=(3, 2), label="predicted", **dot)
        all_axes[1].set_title("Seconds of all micro-steps")
        all_axes[1].set_ylim(0, 1.15 * max(measured + predicted) or 1.0)
        all_axes[1].legend(loc="lower right", frameon=False, fontsize=8, ncols=2, labelcolor=LIGHT["muted"])
    all_axes[-1].set_xlim(rows[0]["step"], rows[-1]["step"] + 1)
    all_axes[-1].xaxis.get_major_locator().set_params(integer=True)
    all_axes[-1].set_xlabel("training step", loc="left")
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.4 / width, 0.02),
        ncols=columns,
        frameon=False,
        fontsize=8,
        labelcolor=LIGHT["muted"],
        handlelength=0.9,
        handletextpad=0.4,
        columnspacing=1.0,
    )
    return figure


def _columns(rows: Any) -> dict[str, list[float]]:
    rows = list(rows)
    return {name: [row[name] for row in rows] for name in rows[0]}


# --- ranks x micro-steps ---


def chosen_plans(plans: Sequence[dict]) -> list[dict]:
    """The newest plan of each phase, compression first; plans without micro-steps are left out."""
    newest = {plan.get("phase"): plan for plan in plans if plan.get("costs")}
    return [newest[phase] for phase in sorted(newest, key=str)]


def plan_chart(run: RunRecord, *, narrow: bool = False) -> "Figure | None":
    """Ranks down, micro-steps across: a bar is what a rank runs, as wide as it costs; the gap behind it is waiting."""
    from matplotlib.figure import Figure

    plans = chosen_plans(run.plans)
    if not plans:
        return None
    width = 4.3 if narrow else 8.6
    tall = [min(2.6, 0.3 + 0.2 * len(plan["costs"][0])) for plan in plans]
    title = 0.5 if narrow else 0.34
    height = sum(tall) + len(plans) * (0.5 + title) + 0.1
    figure = Figure((width, height))
    top = height - title
    for plan, inches in zip(plans, tall, strict=True):
        axes = figure.add_axes((0.62 / width, (top - inches) / height, 1 - 0.92 / width, inches / height))
        _draw_plan(axes, plan, narrow)
        top -= inches + 0.5 + title
    return figure


def _draw_plan(axes: "Axes", plan: dict, narrow: bool) -> None:
    lengths, total = plan["lengths"], sum(max(row) for row in plan["costs"])
    scale, unit = next(((scale, unit) for scale, unit in UNITS if total >= scale), UNITS[-1])
    costs = [[cost / scale for cost in row] for row in plan["costs"]]
    ranks, slowest = len(costs[0]), [max(row) for row in costs]
    edges = [0.0, *accumulate(slowest)]
    every = -(-len(costs) // (10 if narrow else 25))  # as many numbers as there is room for
    told_apart = sum(len(sequences) for row in lengths for sequences in row) <= LINES
    for rank in range(ranks):
        bars = [(left, row[rank]) for left, row in zip(edges, costs, strict=False)]
        axes.broken_barh(bars, (rank - 0.38, 0.76), color=LIGHT["part0"], lw=0)
        if told_apart:
            cuts = []
            for (left, cost), row in zip(bars, lengths, strict=True):
                ends = list(accumulate(row[rank]))
                cuts += [left + cost * end / ends[-1] for end in ends[:-1]]
            axes.vlines(cuts, rank - 0.38, rank + 0.38, color=LIGHT["paper"], lw=0.5)
    for index, (left, right) in enumerate(pairwise(edges)):
        first = index in plan["starts"] and index > 0
        axes.axvline(left, color=LIGHT["ink" if first else "muted"], lw=1.4 if first else 0.8, zorder=3)
        if index % every == 0:
            axes.annotate(
                f"{index + 1}", ((left + right) / 2, -0.55), ha="center", va="bottom", size=7.5, annotation_clip=False
            )
    efficiency = plan["lockstep_efficiency"]
    head = f"Step {plan['step']}, {plan.get('phase')}, cap {plan['cap']:,}"
    counts = f"{len(costs)} micro-step{'s' * (len(costs) > 1)} on {ranks} rank{'s' * (ranks > 1)}"
    says = f"{counts}, lock-step efficiency {percent(efficiency)}"
    axes.set_title(f"{head}:{chr(10) if narrow else ' '}{says}", pad=14, size=8.5 if narrow else 10)
    axes.set_facecolor(LIGHT["shade"])
    axes.grid(False)
    axes.set_xlim(0, edges[-1] or 1.0)
    axes.set_ylim(ranks - 0.5, -0.5)
    axes.set_yticks(range(0, ranks, -(-ranks // 8)))
    axes.set_ylabel("rank")
    cost = f"cost, {unit}FLOP" if narrow else f"cost of the slowest rank, {unit}FLOP of a forward pass"
    axes.set_xlabel(f"{cost}{_duration_note(plan)}", loc="left")


def _duration_note(plan: dict) -> str:
    seconds, predicted = plan.get("seconds"), plan.get("predicted")
    if not seconds:
        return ""
    expected = "" if predicted is None else f", {math.fsum(predicted):.3g} s predicted"
    return f"; took {math.fsum(seconds):.3g} s{expected}"
