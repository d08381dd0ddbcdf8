"""Who waits for whom in a run that samples ahead: the rollout of each batch above, the training below, and what to do.

Same style and colours as `siri.report.charts`, whose `draw` makes the files. matplotlib is imported on first use.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from siri.report.format import duration, percent
from siri.report.style import LIGHT
from siri.store.jsonl import RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCHES = 12
"""Most batches that are drawn: the newest."""
LITTLE = 0.1
"""A share of time up to which nobody counts as waiting."""
KEYS = ("rollout_began_time", "rollout_ended_time", "train_began_time", "train_ended_time")


def timed(run: RunRecord) -> list[Mapping[str, Any]]:
    """The rows of steps that were sampled ahead."""
    return [row for row in run.metrics if all(row.get(key) for key in KEYS)]


def timeline_chart(run: RunRecord, *, narrow: bool = False) -> "Figure | None":
    """The newest batches: when the responses of each were sampled, and when it was trained on."""
    from matplotlib.figure import Figure

    rows = timed(run)[-BATCHES:]
    if not rows:
        return None
    lanes = _lanes(rows)
    width, height = (4.3 if narrow else 8.6), 0.9 + 0.3 * (max(lanes) + 2)
    figure = Figure((width, height))
    axes = figure.add_axes((0.9 / width, 0.5 / height, 1 - 1.2 / width, 1 - 0.86 / height))
    start, bottom = min(row["rollout_began_time"] for row in rows), max(lanes) + 1
    for row, lane in zip(rows, lanes, strict=True):
        for (first, last), y, colour in (
            (KEYS[:2], lane, LIGHT["part0"]),
            (KEYS[2:], bottom, LIGHT["part4"]),
        ):
            left, length = row[first] - start, max(0.0, row[last] - row[first])
            axes.broken_barh([(left, length)], (y - 0.38, 0.76), color=colour, lw=0)
            axes.annotate(f"{row['step']}", (left + length / 2, y), ha="center", va="center", size=7.5, clip_on=True)
    axes.set_yticks([(max(lanes)) / 2, bottom], ["rollout", "training"])
    axes.set_ylim(bottom + 0.6, -0.6)
    axes.set_xlim(0, max(row["train_ended_time"] for row in rows) - start or 1.0)
    axes.set_title("Steps in flight" if narrow else "Rollouts of each step, and its training with the weight sync")
    axes.set_xlabel("seconds", loc="left")
    return figure


def _lanes(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """For each batch the first lane that is free when its rollout begins."""
    free: list[float] = []
    lanes = []
    for row in rows:
        lane = next((place for place, end in enumerate(free) if end <= row[KEYS[0]]), len(free))
        free[lane : lane + 1] = [row[KEYS[1]]]
        lanes.append(lane)
    return lanes


def settled(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The rows that tell who is short: without the first step, which waits for a whole rollout, and the last ones, for
    which less and less is in flight. All rows of a run that has no others."""
    full = max((row.get("batches_in_flight") or 0 for row in rows), default=0)
    return [row for row in rows[1:] if (row.get("batches_in_flight") or 0) == full] or rows


def waits(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float | None]:
    """Share of their time for which the trainer waited for responses, and share of the servers' places that stood empty
    (None of an engine that is none)."""
    known = [row for row in rows if row.get("rollout_wait_s") is not None and row.get("step_time_s")]
    time = sum(row["step_time_s"] for row in known)
    idle = [row["rollout_idle_time_share"] for row in known if row.get("rollout_idle_time_share") is not None]
    return (sum(row["rollout_wait_s"] for row in known) / time if time else 0.0), (fmean(idle) if idle else None)


def advice(trainer: float, servers: float | None) -> str:
    """What to add, by who waits."""
    told = f"The trainer waited for responses in {percent(trainer)} of its time"
    if servers is None:
        return f"{told}; the embedded engine samples in turn with it, so that nothing overlaps."
    told += f", and {percent(servers)} of the places on the servers stood empty"
    if max(trainer, servers) <= LITTLE:
        return f"{told}: servers and trainers fit each other."
    if min(trainer, servers) > LITTLE:
        return f"{told}: both wait, so a higher --staleness would let more batches overlap, before you add anything."
    priced = "siri plan RECIPE --gpus N --lengths-of RUN simulates other splits with this run's lengths."
    if trainer > servers:
        return f"{told}: servers are what is short; add servers, or give them GPUs of the trainer's. {priced}"
    return f"{told}: the trainer is what is short; add GPUs to it, or take servers away. {priced}"


def timeline_note(run: RunRecord) -> str:
    """The advice, and how old the weights were."""
    rows = timed(run)
    if not rows:
        return ""
    mean = fmean(row.get("staleness_mean") or 0.0 for row in rows)
    most = max(row.get("staleness_max") or 0 for row in rows)
    stale = f"Tokens were sampled by weights {mean:.2f} steps old in the mean, {most:g} at most."
    return f"{advice(*waits(settled(rows)))} {stale}"


def timeline_alt(run: RunRecord) -> str:
    rows = timed(run)[-BATCHES:]
    if not rows:
        return ""
    spans = [
        f"step {row['step']}: sampled for {duration(row[KEYS[1]] - row[KEYS[0]])}, trained for "
        f"{duration(row[KEYS[3]] - row[KEYS[2]])}"
        for row in rows
    ]
    return "Rollouts above, training below; " + "; ".join(spans) + "."
