"""The model card of an export: where the weights come from, how they were trained, and what was measured how."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from siri.config import of_today
from siri.errors import InputError, first_line, parse_json
from siri.store import files
from siri.store.about import PROTOCOL, read_about, run_of
from siri.store.held import CONFIG
from siri.store.jsonl import MetricsLog
from siri.text import printable

CARD = "README.md"
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
SETTINGS = ("schedule", "l_max", "l_min", "cycle", "steps", "prompts_per_step", "group_size", "mini_batch_prompts")
SETTINGS += ("temperature", "loss", "aggregation", "clip_low", "clip_high", "lr", "lr_schedule", "lora_rank", "reward")
SETTINGS += ("overlong", "seed")
"""Keys of config.json that the card lists."""


def model_card(
    checkpoint: Path, state: Mapping[str, Any], *, title: str, adapter: bool, dtype: str, results: Sequence[Path] = ()
) -> str:
    """README.md of an export as the hub reads it. What is not known is left out. results: of `siri eval --out`."""
    about, run = read_about(checkpoint), run_of(checkpoint)
    config = of_today(_config(run)) if run else {}
    base = about.get("base") or config.get("model", "")
    data = [str(each).partition("@")[0] for each in about.get("data", config.get("data", []))]
    front: dict[str, Any] = {"library_name": "peft" if adapter else "transformers", "pipeline_tag": "text-generation"}
    if _on_hub(base):
        front["base_model"] = base
    if known := [each.partition(":")[0] for each in data if _on_hub(each)]:
        front["datasets"] = list(dict.fromkeys(known))
    front["tags"] = ["siri", "reinforcement-learning", "reasoning"]
    # JSON is YAML
    lines = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in front.items()),
        "---",
        "",
        f"# {_cell(title)}",
        "",
    ]
    recipe = about.get("recipe") or config.get("recipe", "")
    what = "A LoRA adapter of" if adapter else "Trained from"
    lines += [
        f"{what} {_name(base) if base else 'a base that is not known any more'} by reinforcement learning under a "
        "length cap that oscillates (SIRI, [arXiv 2509.25176](https://arxiv.org/abs/2509.25176))"
        f"{f', recipe `{_cell(recipe)}`' * bool(recipe)}.",
        "",
        f"- checkpoint: after {state['steps_done']:,} steps"
        + (f", `{_cell(state['name'])}`" if state.get("name") else "")
        + f"; {state.get('train_tokens', 0):,} response tokens sampled",
        f"- training data: {', '.join(map(_name, data)) or 'not known'}",
        f"- weights: {'as trained' if adapter else dtype}",
        "",
    ]
    if settings := {key: config[key] for key in SETTINGS if key in config}:
        lines += ["## Settings", "", "| key | value |", "|---|---|"]
        lines += [f"| `{key}` | {_cell(value)} |" for key, value in settings.items()]
        lines += [""]
    lines += _measured(run, state, about) + _results(results)
    lines += ["Licence: that of the base and of the data hold. This card was written by `siri export`.", ""]
    return "\n".join(lines)


def _measured(run: Path | None, state: Mapping[str, Any], about: Mapping[str, Any]) -> list[str]:
    """What the run itself measured at this step, beside the base."""
    rows = MetricsLog(run / "eval.jsonl").rows() if run else []
    at = [row for row in rows if row.get("step") == state["steps_done"]]
    if not at:
        return []
    shown = [("base", row) for row in rows if row.get("step") == 0] + [("this model", at[-1])]
    said = _protocol(about.get("evaluation", {}), at[-1])
    return ["## Evaluation in the run", "", f"Held-out problems; {said}.", "", *_table(shown), ""]


def _results(paths: Sequence[Path]) -> list[str]:
    """The figures of files of siri eval, each with its protocol."""
    lines = []
    for path in paths:
        try:
            row = parse_json(files.read(path))
            table = _table([(_name(str(row["model"])), row)])
            said = _protocol(row.get("protocol", {}), row)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"--results {path}: not a result file of siri eval --out ({first_line(error)})") from None
        lines += [f"## Evaluation: {_cell(path.stem)}", "", f"Measured with `siri eval`; {said}.", "", *table, ""]
    return lines


def _protocol(protocol: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    held = {name: protocol[name] for name in PROTOCOL if name in protocol} | {"cap": row["cap"]}
    said = [f"{row['samples']} samples of each problem", *(f"{name} {_cell(value)}" for name, value in held.items())]
    return ", ".join(said) + "; intervals are 95 %, over problems"


def _table(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    lines = ["| benchmark | model | problems | accuracy | mean tokens | truncated |", "|---|---|---|---|---|---|"]
    for who, row in rows:
        for name, figures in (row.get("benchmarks") or {"held-out problems": row}).items():
            within = figures.get("accuracy_half")
            accuracy = f"{100 * figures['accuracy']:.1f} %" + (f" ± {100 * within:.1f}" if within is not None else "")
            lines.append(
                f"| {_name(name)} | {who} | {figures['problems']} | {accuracy} | {figures['tokens_mean']:,.1f} | "
                f"{100 * figures['truncation_rate']:.1f} % |"
            )
    return lines


def _config(run: Path) -> dict[str, Any]:
    try:
        held = parse_json(files.read(run / CONFIG))
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def _on_hub(name: str) -> bool:
    return bool(_HUB.fullmatch(name.partition(":")[0].partition("@")[0])) and not Path(name).exists()


def _name(source: str) -> str:
    """A source for strangers: names of the hub and of the package in full, of a path the end alone."""
    return _cell(source if _on_hub(source) or source.startswith("siri:") else Path(source).name)


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return printable(text).replace("|", "\\|").replace("`", "'") if text else "none"
