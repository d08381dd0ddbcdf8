"""`report.html`: one page that shows what a run did, readable on a phone, in the dark and without a network."""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import fmean, median
from typing import Any

from siri.report.charts import draw, pareto_chart, training_chart
from siri.report.page import PAGE, style
from siri.report.step_charts import chosen_plans, parts_of, plan_chart, time_chart
from siri.report.terminal import (
    HEADINGS,
    Effect,
    caption,
    compact,
    duration,
    effect_cells,
    effects,
    percent,
    tokens,
    verdict,
)
from siri.store.files import write_atomic
from siri.store.jsonl import RunRecord, read_run
from siri.text import encoded

MINUS = "\N{MINUS SIGN}"
FACTS = (
    *("recipe", "model", "data", "schedule", "stages", "l_max", "l_min", "cycle", "steps", "prompts_per_step"),
    *("group_size", "mini_batch_prompts", "lr", "temperature", "loss", "aggregation", "clip_low", "clip_high"),
    *("rollout", "reward", "seed"),
)
"""Keys of config.json that the page shows at once, where the run has them; the rest folds out."""
TIME_NOTE = (
    "Shares are of all time shown. Grading is taken out of the rollout that it is part of; a checkpoint counts in the "
    "step after it; evaluations are left out. Predicted: from the plan's cost, at the rate of the earlier steps."
)
PACKING_NOTE = (
    "How the sequences of a step were packed: each bar is what one rank runs in one micro-step (numbered), as wide as "
    "its cost, cut into its sequences where they are few; behind it the rank waits for the slowest. A dark line is an "
    "optimizer step."
)


def write_report(run_dir: str | Path) -> Path:
    """Draw `training.png`, `pareto.png`, `time.png`, `packing.png` and `report.html` in a run folder; returns the path
    of the page.

    The run may be unfinished: what is not there yet is left out. Every file is replaced atomically, and the same run
    gives the same bytes on the same machine.

    Raises:
        InputError: `run_dir` holds no metrics.jsonl, or a file in it is damaged (names it).
    """
    run_dir = Path(run_dir)
    run = read_run(run_dir)
    pictures = {}
    charts = {"training": training_chart, "pareto": pareto_chart, "time": time_chart, "packing": plan_chart}
    for name, chart in charts.items():
        wide = draw(chart, run)
        if wide:
            write_atomic(run_dir / f"{name}.png", wide["png"])
            pictures[name] = (wide["svg"], draw(chart, run, narrow=True)["svg"])
    path = run_dir / "report.html"
    title = str(run.config.get("recipe") or run_dir.resolve().name)
    write_atomic(path, encoded(page(run, pictures, title=title)))
    return path


def page(run: RunRecord, pictures: Mapping[str, tuple[bytes, bytes]], *, title: str) -> str:
    """The whole page; `pictures` maps the names of the charts to their SVGs for wide and for narrow windows."""
    rows = effects(run.evals)
    subtitle = escape(_subtitle(run))
    parts = [f"<header><p class=eyebrow>SIRI run</p><h1>{escape(title)}</h1><p class=muted>{subtitle}</p></header>"]
    parts.append(_tiles(rows) or f"<p class=lead>{escape(verdict(rows))}</p>")
    if "training" in pictures:
        parts.append(_figure(pictures["training"], _training_alt(run), _training_note(run)))
    else:
        parts.append("<p class=muted>No training step is finished yet.</p>")
    if "pareto" in pictures:
        note = "The line follows the training."
        if any(row.name.startswith("siri-") for row in rows):
            note = (
                "Low k and high k are the checkpoints at the end of the compression and of the expansion of cycle k. "
                + note
            )
        parts.append(_figure(pictures["pareto"], f"Accuracy against mean response tokens. {verdict(rows)}", note))
    if rows:
        parts.append(f"<section><h2>What it achieved</h2><p class=muted>{escape(caption(rows, {}).capitalize())}</p>")
        parts.append(_effects_table(rows))
        every = effects(run.evals, every=True)
        if len(every) > len(rows):
            parts.append(f"<details><summary>All {len(every)} evaluations</summary>{_effects_table(every)}</details>")
        parts.append(_benchmark_table(rows, run))
        parts.append(
            "<p class=note>Changes are relative to the base model. Truncated: share of responses cut at the cap. "
            "Trained on: response tokens sampled in training up to that checkpoint. Score: relative gain in accuracy, "
            "at least 0, divided by the remaining share of tokens.</p></section>"
        )
    parts.append(_dynamics(run))
    parts.append(_section("How it ran", _efficiency(run)))
    if "time" in pictures:
        parts.append(_figure(pictures["time"], _time_alt(run), TIME_NOTE))
    if "packing" in pictures:
        parts.append(_figure(pictures["packing"], _packing_alt(run), PACKING_NOTE))
    parts.append(
        _section("Configuration", [(key, _text(run.config[key])) for key in FACTS if _given(run.config.get(key))])
    )
    parts.append(_section("Versions", [(str(k), _text(v)) for k, v in _versions(run.config).items()]))
    if run.config:
        full = escape(json.dumps(run.config, indent=2, ensure_ascii=False))
        parts.append(f"<details><summary>The whole config.json</summary><pre>{full}</pre></details>")
    body = "\n".join(part for part in parts if part)
    return PAGE.format(title=escape(title), style=style(), body=body)


def _subtitle(run: RunRecord) -> str:
    config = run.config
    parts = [str(config[key]) for key in ("model", "data") if config.get(key)]
    kind, high, low = (config.get(key) for key in ("schedule", "l_max", "l_min"))
    if kind == "constant" and high:
        parts.append(f"constant cap of {high:,} tokens")
    elif kind == "steps" and config.get("stages"):
        parts.append("caps by stages")
    elif kind and high and low and config.get("cycle"):
        shape = str(kind).replace("_", " ")
        parts.append(f"{shape} cap between {high:,} and {low:,} tokens, cycle of {config['cycle']} steps")
    done = run.metrics[-1]["step"] + 1 if run.metrics else 0
    steps = config.get("steps")
    parts.append(f"{done} of {steps} steps" if steps and steps != done else f"{done} steps")
    return " · ".join(parts)


def _tiles(rows: list[Effect]) -> str:
    """The two headline figures of the last SIRI-low and SIRI-high (or of the last checkpoint)."""
    base = next((row for row in rows if row.name == "base"), None)
    trained = [row for row in rows if row.name != "base" and row.accuracy is not None and row.tokens is not None]
    picked = [[row for row in trained if row.name.startswith(kind)][-1:] for kind in ("siri-low", "siri-high")]
    chosen = [row for group in picked for row in group] or trained[-1:]
    tiles = []
    for row in chosen:
        kind = "low" if "low" in row.name else "high" if "high" in row.name else "ink"
        compared = base and row.accuracy_change is not None and row.tokens_change is not None
        figures = []
        for word, now, change, before, show in (
            ("accuracy", row.accuracy, row.accuracy_change, base and base.accuracy, percent),
            ("tokens", row.tokens, row.tokens_change, base and base.tokens, tokens),
        ):
            big = percent(change, signed=True) if compared else show(now)
            small = f"{word} {show(before)} → {show(now)}" if compared else word
            figures.append(f"<div><b>{big.replace('-', MINUS)}</b><span>{escape(small)}</span></div>")
        tiles.append(
            f"<div class='tile {kind}'><h3>{escape(row.name)} <small>step {row.step}</small></h3>"
            f"<div class=figures>{''.join(figures)}</div></div>"
        )
    if not tiles:
        return ""
    against = any(row.accuracy_change is not None for row in chosen)
    about = f"Change against the base model, {caption(rows, {})}." if against else verdict(rows)
    return f"<div class=tiles>{''.join(tiles)}</div><p class=note>{escape(about)}</p>"


def _effects_table(rows: list[Effect]) -> str:
    return _table(HEADINGS, [effect_cells(row) for row in rows])


def _benchmark_table(rows: list[Effect], run: RunRecord) -> str:
    """Accuracy and tokens on each benchmark, as in the tables of the paper; empty for a run with only one."""
    parts = {row["name"]: row["benchmarks"] for row in run.evals if row.get("benchmarks")}
    names = list(dict.fromkeys(name for part in parts.values() for name in part))
    if not names:
        return ""
    short = [Path(name).stem for name in names]
    headings = ("accuracy / tokens", *(short if len(set(short)) == len(short) else names))
    lines = []
    for row in rows:
        figures = (parts.get(row.name, {}).get(name, {}) for name in names)
        lines.append(
            (row.name, *(f"{percent(one.get('accuracy'))} / {tokens(one.get('tokens_mean'))}" for one in figures))
        )
    return _table(headings, lines)


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = []
    for name, *cells in lines:
        kind = next((kind for kind in ("low", "high") if name.startswith(f"siri-{kind}")), "other")
        row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        body.append(f"<tr class={kind}><th>{escape(name)}</th>{row}</tr>")
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"


def _figure(svgs: tuple[bytes, bytes], alt: str, note: str) -> str:
    wide, narrow = (f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}" for svg in svgs)
    return (
        f'<figure><picture><source media="(max-width: 640px)" srcset="{narrow}">'
        f'<img src="{wide}" alt="{escape(alt)}"></picture><figcaption>{escape(note)}</figcaption></figure>'
    )


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
    if run.evals:
        notes.append("Points are evaluations, all under their own cap.")
    return " ".join(notes)


def _time_alt(run: RunRecord) -> str:
    total: dict[str, float] = {}
    for row in run.metrics:
        for name, seconds in parts_of(row).items():
            total[name] = total.get(name, 0.0) + seconds
    whole = math.fsum(total.values()) or 1.0
    shares = ", ".join(f"{name} {percent(part / whole)}" for name, part in total.items() if part)
    return f"Time of a step by part: {shares}."


def _packing_alt(run: RunRecord) -> str:
    says = []
    for plan in chosen_plans(run.plans):
        efficiency = percent(plan["lockstep_efficiency"])
        says.append(f"step {plan['step']}: {len(plan['costs'])} micro-steps, lock-step efficiency {efficiency}")
    return f"Ranks by micro-steps; {'; '.join(says)}."


def _dynamics(run: RunRecord) -> str:
    """What section 4 of the paper looks at, by phase and cycle; empty for a run whose cap does not go up and down."""
    from siri.report.phases import length_lag, phase_cells

    headings, lines = phase_cells(run.metrics)
    if len(lines) < 2:
        return ""
    rows = [row for row in run.metrics if row.get("cap") is not None]
    lag = length_lag([row["cap"] for row in rows], [row.get("response_tokens_mean") for row in rows])
    note = (
        "Means over the responses sampled in training. Back-tracking: wait, hold on; repetition: 4-grams that the "
        "response held before."
    )
    if lag is not None:
        note += f" The response length follows the cap best with a lag of {lag} steps."
    table = _table(headings, lines)
    return f"<section><h2>Dynamics by phase</h2>{table}<p class=note>{escape(note)}</p></section>"


def _efficiency(run: RunRecord) -> list[tuple[str, str]]:
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
    found = config.get("versions")
    return found if isinstance(found, Mapping) else {}


def _given(value: Any) -> bool:
    return value is not None and value != [] and value != ""


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _section(title: str, facts: list[tuple[str, str]]) -> str:
    items = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in facts)
    return f"<section><h2>{escape(title)}</h2><dl>{items}</dl></section>" if facts else ""
