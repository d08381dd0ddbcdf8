"""What `report.html` shows of a run, as text: tiles, tables, captions and facts. The markup is in `templates`."""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from siri.report.effects import HEADINGS, Effect, caption, effect_cells, effects, verdict
from siri.report.format import compact, duration, percent, points, tokens
from siri.report.lineage import lineage_text
from siri.report.step_charts import chosen_plans, parts_of
from siri.report.timeline import timeline_alt, timeline_note
from siri.report.update_chart import clipped
from siri.store.jsonl import RunRecord

MINUS = "\N{MINUS SIGN}"
FACTS = (
    *("recipe", "model", "data", "schedule", "stages", "l_max", "l_min", "cycle", "steps", "prompts_per_step"),
    *("group_size", "mini_batch_prompts", "lr", "temperature", "loss", "aggregation", "clip_low", "clip_high"),
    *("rollout", "staleness", "reward", "seed"),
)
"""Keys of config.json that the page shows at once, where the run has them; the rest folds out."""
IN_TURN = ("staleness", 0)
"""Goes without saying."""
TIME_NOTE = (
    "Shares are of all time shown. Grading is taken out of the rollout that it is part of; a checkpoint counts in the "
    "step after it; evaluations are left out. Predicted: from the plan's cost, at the rate of the earlier steps."
)
PACKING_NOTE = (
    "How the sequences of a step were packed: each bar is what one rank runs in one micro-step (numbered), as wide as "
    "its cost, cut into its sequences where they are few; behind it the rank waits for the slowest. A dark line is an "
    "optimizer step."
)
UPDATES_NOTE = (
    "KL: of the policy, after the earlier optimizer steps of its batch, to the one that sampled; and, where they "
    "differ, of the rollout engine's log-probs to the trainer's of the same weights."
)
FRONT_NOTE = (
    "An arrow leads from each evaluation to the next, in the colour of the phase between them: blue compression, "
    "orange expansion. Filled: no other evaluation is as short and as accurate."
)

Facts = list[tuple[str, str]]
"""Words and what they are in this run."""


@dataclass(frozen=True)
class Picture:
    """A chart as data URIs of SVG, for wide and for narrow windows."""

    wide: str
    narrow: str
    alt: str
    note: str


@dataclass(frozen=True)
class Figure:
    """A headline number of a tile, and what it counts."""

    large: str
    small: str


@dataclass(frozen=True)
class Tile:
    """The two headline figures of a checkpoint."""

    kind: str
    """Its colour: "low", "high" or "ink"."""
    name: str
    step: int
    figures: list[Figure]


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    name: str
    cells: Sequence[str]

    @property
    def kind(self) -> str:
        """Its colour: "low", "high" or "other"."""
        return next((kind for kind in ("low", "high") if self.name.startswith(f"siri-{kind}")), "other")


@dataclass(frozen=True)
class Table:
    headings: Sequence[str]
    lines: list[Line]


@dataclass(frozen=True)
class Page:
    """All that the page shows; None or empty for what this run does not have."""

    title: str
    subtitle: str
    tiles: list[Tile]
    achieved: str
    """What the tiles compare; without tiles, the run's result in words."""
    training: Picture | None
    pareto: Picture | None
    front: Picture | None
    updates: Picture | None
    time: Picture | None
    packing: Picture | None
    timeline: Picture | None
    """Who waits for whom, of a run that samples ahead."""
    effects: Table | None
    evaluated_at: str
    all_effects: Table | None
    """With the routine evaluations, if there are any."""
    benchmarks: Table | None
    phases: Table | None
    turns: Table | None
    """Where a cap that finds its own way turned, and why."""
    swing: str
    """Steps by which the response length follows the cap."""
    efficiency: Facts
    settings: Facts
    origin: Facts
    """Commit, host and time."""
    versions: Facts
    whole_config: str
    beside: tuple[str, Table] | None
    """Another run: its name and its evaluations."""
    samples: str
    """File of the page of responses, if there is one."""


def page_of(run: RunRecord, charts: Mapping[str, tuple[bytes, bytes]], *, title: str, samples: str = "") -> Page:
    """The page of a run; `charts` maps the names of its charts to their SVGs for wide and for narrow windows."""
    rows, every = effects(run.evals), effects(run.evals, every=True)
    tiles, achieved = _tiles(rows)
    phases, swing = _dynamics(run)

    def picture(name: str, alt: str, note: str) -> Picture | None:
        if name not in charts:
            return None
        wide, narrow = (f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}" for svg in charts[name])
        return Picture(wide, narrow, alt, note)

    return Page(
        title=title,
        subtitle=subtitle(run),
        tiles=tiles,
        achieved=achieved,
        training=picture("training", _training_alt(run), _training_note(run)),
        pareto=picture("pareto", f"Accuracy against mean response tokens. {verdict(rows)}", _pareto_note(rows)),
        front=picture("front", _front_alt(run), FRONT_NOTE),
        updates=picture("updates", _updates_alt(run), UPDATES_NOTE),
        time=picture("time", _time_alt(run), TIME_NOTE),
        packing=picture("packing", _packing_alt(run), PACKING_NOTE),
        timeline=picture("timeline", timeline_alt(run), timeline_note(run)),
        effects=_effects_table(rows) if rows else None,
        evaluated_at=caption(rows, {}).capitalize(),
        all_effects=_effects_table(every) if len(every) > len(rows) else None,
        benchmarks=_benchmark_table(rows, run),
        phases=phases,
        turns=_turns(run),
        swing=swing,
        efficiency=_efficiency(run),
        settings=_settings(run.config),
        origin=_origin(run.config),
        versions=[(str(name), _text(version)) for name, version in _versions(run.config).items()],
        whole_config=json.dumps(run.config, indent=2, ensure_ascii=False) if run.config else "",
        beside=(run.beside[0], _effects_table(effects(run.beside[1].evals))) if run.beside else None,
        samples=samples,
    )


def subtitle(run: RunRecord) -> str:
    """A line on what is trained, under which caps, and how far it is."""
    config = run.config
    parts = [_listed(config[key]) for key in ("model", "data") if config.get(key)]
    kind, high, low = (config.get(key) for key in ("schedule", "l_max", "l_min"))
    if kind == "constant" and high:
        parts.append(f"constant cap of {high:,} tokens")
    elif kind == "auto" and high:
        parts.append(f"a cap that finds its own way below {high:,} tokens")
    elif kind == "steps" and config.get("stages"):
        parts.append("caps by stages")
    elif kind and high and low and config.get("cycle"):
        shape = str(kind).replace("_", " ")
        parts.append(f"{shape} cap between {high:,} and {low:,} tokens, cycle of {config['cycle']} steps")
    done = run.metrics[-1]["step"] + 1 if run.metrics else 0
    steps = config.get("steps")
    parts.append(f"{done} of {steps} steps" if steps and steps != done else f"{done} steps")
    return " · ".join(parts)


def _tiles(rows: list[Effect]) -> tuple[list[Tile], str]:
    """The headline figures of the last SIRI-low and SIRI-high (or of the last checkpoint), and what they compare."""
    base = next((row for row in rows if row.name == "base"), None)
    trained = [row for row in rows if row.name != "base" and row.accuracy is not None and row.tokens is not None]
    ends = [[row for row in trained if row.name.startswith(kind)][-1:] for kind in ("siri-low", "siri-high")]
    shown = [row for group in ends for row in group] or trained[-1:]
    tiles = []
    for row in shown:
        kind = "low" if "low" in row.name else "high" if "high" in row.name else "ink"
        compared = base and row.accuracy_change is not None and row.tokens_change is not None
        figures = []
        for word, now, change, before, show in (
            ("accuracy", row.accuracy, f"{points(row.points)} points", base and base.accuracy, percent),
            ("tokens", row.tokens, percent(row.tokens_change, signed=True), base and base.tokens, tokens),
        ):
            large = change if compared else show(now)
            small = f"{word} {show(before)} → {show(now)}" if compared else word
            figures.append(Figure(large.replace("-", MINUS), small))
        tiles.append(Tile(kind, row.name, row.step, figures))
    if any(row.accuracy_change is not None for row in shown):
        return tiles, f"Change against the base model, {caption(rows, {})}."
    return tiles, verdict(rows)


def _effects_table(rows: list[Effect]) -> Table:
    return _table(HEADINGS, [effect_cells(row) for row in rows])


def _benchmark_table(rows: list[Effect], run: RunRecord) -> Table | None:
    """Accuracy and tokens on each benchmark, as in the tables of the paper; None for a run with only one."""
    benchmarks = {row["name"]: row["benchmarks"] for row in run.evals if row.get("benchmarks")}
    names = list(dict.fromkeys(name for figures in benchmarks.values() for name in figures))
    if not names:
        return None
    short = [Path(name).stem for name in names]
    headings = ("accuracy / tokens", *(short if len(set(short)) == len(short) else names))
    lines = []
    for row in rows:
        figures = [benchmarks.get(row.name, {}).get(name, {}) for name in names]
        cells = (f"{percent(each.get('accuracy'))} / {tokens(each.get('tokens_mean'))}" for each in figures)
        lines.append((row.name, *cells))
    return _table(headings, lines)


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    return Table(headings, [Line(name, cells) for name, *cells in lines])


def _training_alt(run: RunRecord) -> str:
    parts = [f"Curves over {len(run.metrics)} training steps."]
    for word, key, show in (
        ("mean tokens", "response_tokens_mean", tokens),
        ("training accuracy", "accuracy", percent),
        ("entropy", "entropy", lambda value: f"{value:.2f}"),
    ):
        known = [row[key] for row in run.metrics if row.get(key) is not None]
        if known:
            parts.append(f"{word.capitalize()} from {show(known[0])} to {show(known[-1])}.")
    return " ".join(parts)


def _training_note(run: RunRecord) -> str:
    notes = []
    if any(row.get("phase") == "compression" for row in run.metrics):
        notes.append("Shaded: compression, where the cap on the response length falls; between: expansion.")
    notes.append("Curves show the rollouts that the model is trained on, sampled under the cap of their step.")
    if run.beside:
        notes.append(f"Dotted: {run.beside[0]}, over the same steps.")
    if run.evals:
        notes.append("Points are evaluations, all under their own cap.")
    return " ".join(notes)


def _pareto_note(rows: list[Effect]) -> str:
    note = "The line follows the training."
    if any(row.name.startswith("siri-") for row in rows):
        cycle = "Low k and high k are the checkpoints at the end of the compression and of the expansion of cycle k."
        return f"{cycle} {note}"
    return note


def _front_alt(run: RunRecord) -> str:
    return f"Accuracy against mean response tokens of all {len(run.evals)} evaluations, in order, coloured by phase."


def _updates_alt(run: RunRecord) -> str:
    newest = run.metrics[-1] if run.metrics else {}
    words = (("loss", newest.get("loss")), ("gradient norm", newest.get("grad_norm")), ("clipped", clipped(newest)))
    told = ", ".join(f"{word} {value:.3g}" for word, value in words if value is not None)
    return f"Curves over {len(run.metrics)} updates; at the last step {told or 'no figure'}."


def _turns(run: RunRecord) -> Table | None:
    lines = [(f"step {row['step'] + 1}", row["turn"]) for row in run.metrics if row.get("turn")]
    return _table(("turn", "why"), lines) if lines else None


def _time_alt(run: RunRecord) -> str:
    total: dict[str, float] = {}
    for row in run.metrics:
        for name, seconds in parts_of(row).items():
            total[name] = total.get(name, 0.0) + seconds
    whole = math.fsum(total.values()) or 1.0
    shares = ", ".join(f"{name} {percent(seconds / whole)}" for name, seconds in total.items() if seconds)
    return f"Time of a step by part: {shares}."


def _packing_alt(run: RunRecord) -> str:
    says = []
    for plan in chosen_plans(run.plans):
        efficiency = percent(plan["lockstep_efficiency"])
        says.append(f"step {plan['step']}: {len(plan['costs'])} micro-steps, lock-step efficiency {efficiency}")
    return f"Ranks by micro-steps; {'; '.join(says)}."


def _dynamics(run: RunRecord) -> tuple[Table | None, str]:
    """What section 4 of the paper looks at, by phase and cycle, and how the response length answers the cap; None for a
    run whose cap does not go up and down, and nothing of too few cycles."""
    from siri.report.phases import phase_cells
    from siri.report.swing import swing_of_run

    headings, lines = phase_cells(run.metrics)
    if len(lines) < 2:
        return None, ""
    rows = [row for row in run.metrics if row.get("cap") is not None]
    swing = swing_of_run([row["cap"] for row in rows], [row.get("response_tokens_mean") for row in rows])
    return _table(headings, lines), swing.text() if swing else ""


def _efficiency(run: RunRecord) -> Facts:
    def column(key: str) -> list[float]:
        return [row[key] for row in run.metrics if row.get(key) is not None]

    facts = []
    times, rollout, train = column("step_time_s"), column("rollout_s"), column("train_s")
    if times:
        facts.append(("time in training steps", duration(math.fsum(times))))
        facts.append(("median step", f"{median(times):.2f} s"))
        if rollout and train:
            shares = percent(math.fsum(rollout) / math.fsum(times)), percent(math.fsum(train) / math.fsum(times))
            facts.append(("spent on", f"rollout {shares[0]}, training {shares[1]}"))
    errors = [
        abs(row["micro_steps_predicted_s"] / row["micro_steps_s"] - 1)
        for row in run.metrics
        if row.get("micro_steps_predicted_s") is not None and row.get("micro_steps_s")
    ]
    if errors:
        facts.append(("micro-steps predicted", f"median error {percent(median(errors))}"))
    peaks = [row for row in run.metrics if row.get("memory_peak") and row.get("memory_predicted")]
    if peaks:
        most = max(peaks, key=lambda row: row["memory_peak"])
        sizes = f"{most['memory_peak'] / 1e9:.1f} GB, {most['memory_predicted'] / 1e9:.1f} GB predicted"
        facts.append(("peak memory of an update", sizes))
    if threads := run.config.get("threads_used"):
        asked = run.config.get("threads", "auto")
        facts.append(("CPU threads of a process", f"{threads}" + " (chosen)" * (asked == "auto")))
    for word, key, show in (
        ("median MFU", "mfu", lambda values: percent(median(values))),
        ("median speed", "tokens_per_s", lambda values: f"{compact(median(values))} tokens/s"),
        ("trained on", "train_tokens", lambda values: f"{compact(values[-1])} response tokens"),
        ("mean lock-step efficiency", "lockstep_efficiency", lambda values: percent(fmean(values))),
        ("mean use of the token budget", "budget_use", lambda values: percent(fmean(values))),
        ("groups without variance", "zero_variance_groups", lambda values: percent(fmean(values))),
    ):
        if values := column(key):
            facts.append((word, show(values)))
    return facts


def _versions(config: Mapping[str, Any]) -> Mapping[str, Any]:
    versions = config.get("versions")
    return versions if isinstance(versions, Mapping) else {}


def _origin(config: Mapping[str, Any]) -> Facts:
    """Where the run was started, or last continued; nothing of runs of older versions."""
    made = config.get("made")
    return [(str(key), _text(value)) for key, value in made.items()] if isinstance(made, Mapping) else []


def _settings(config: Mapping[str, Any]) -> Facts:
    """What the page shows at once of the settings, after the run that this one starts from."""
    lineage = lineage_text(config.get("lineage"))
    facts = [(key, _text(config[key])) for key in FACTS if _given(config.get(key)) and (key, config[key]) != IN_TURN]
    return [("starts from", lineage), *facts] if lineage else facts


def _given(value: Any) -> bool:
    return value is not None and value != [] and value != ""


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
