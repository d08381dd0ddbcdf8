"""What a run achieved: its evaluated checkpoints, their change against the base model, and the cells of their table."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from siri.report.format import MISSING, compact, percent, points, tokens
from siri.store.jsonl import efficiency_score
from siri.text import printable


@dataclass(frozen=True)
class Effect:
    """One evaluated checkpoint and its change against the base model; None where there is nothing to say."""

    name: str
    step: int
    cap: int | None
    accuracy: float | None
    accuracy_change: float | None
    """accuracy / base accuracy - 1."""
    points: float | None
    """accuracy - base accuracy, a share."""
    tokens: float | None
    """Mean response tokens."""
    tokens_change: float | None
    """tokens / base tokens - 1."""
    truncation_rate: float | None
    train_tokens: int | None
    """Response tokens that the run had trained on by then."""
    score: float | None
    """Efficiency score of the paper: mean over benchmarks of max(accuracy / base accuracy - 1, 0), divided by the mean
    of tokens / base tokens."""


def is_milestone(name: str) -> bool:
    """Whether an evaluation is part of the story of a run (base, ends of phases, final) rather than a routine check."""
    return name in ("base", "final") or re.fullmatch(r"siri-(low|high)-\d+", name) is not None


def effects(evals: Iterable[Mapping[str, Any]], *, every: bool = False) -> list[Effect]:
    """The rows of the closing table, in order of training: base, each cycle's low and high, final.

    An evaluation that was made twice counts once, the later one; so does one with two names, such as the final model
    that is also the last SIRI-high. Changes are given only at the base's own cap: accuracy and length depend on it.
    With `every`, or when there is no milestone but the base, routine evaluations have rows too.
    """
    latest = {row["name"]: row for row in evals}
    shown = [row for row in latest.values() if every or is_milestone(row["name"])]
    if not any(row["name"] != "base" for row in shown):
        shown = list(latest.values())
    # base and ends of phases before final before routine checks, so that of equal rows the telling name stays
    shown.sort(key=lambda row: (row["step"], not is_milestone(row["name"]), row["name"] == "final"))
    distinct = {}
    for row in shown:
        distinct.setdefault(tuple(row.get(key) for key in ("step", "cap", "accuracy", "tokens_mean")), row)
    return [_effect(row, latest.get("base")) for row in distinct.values()]


def _effect(row: Mapping[str, Any], base: Mapping[str, Any] | None) -> Effect:
    def change(key: str) -> float | None:
        if base is None or row is base or row.get("cap") != base.get("cap") or not base.get(key):
            return None
        return None if row.get(key) is None else row[key] / base[key] - 1

    accuracy_change, tokens_change = change("accuracy"), change("tokens_mean")
    comparable = accuracy_change is not None and tokens_change is not None
    return Effect(
        name=printable(row["name"]),
        step=row["step"],
        cap=row.get("cap"),
        accuracy=row.get("accuracy"),
        accuracy_change=accuracy_change,
        points=row["accuracy"] - base["accuracy"] if base is not None and accuracy_change is not None else None,
        tokens=row.get("tokens_mean"),
        tokens_change=tokens_change,
        truncation_rate=row.get("truncation_rate"),
        train_tokens=row.get("train_tokens"),
        score=_score(row, base) if base is not None and comparable else None,
    )


def _score(row: Mapping[str, Any], base: Mapping[str, Any]) -> float | None:
    """The efficiency score of a row of eval.jsonl; None where benchmarks differ or figures lack."""
    pairs = []
    for evaluation in (row, base):
        benchmarks = evaluation.get("benchmarks") or {"": evaluation}
        pairs.append(
            {name: (figures.get("accuracy"), figures.get("tokens_mean")) for name, figures in benchmarks.items()}
        )
    mine, others = pairs
    if mine.keys() != others.keys() or any(None in figures for pair in pairs for figures in pair.values()):
        return None
    return efficiency_score(mine, others)


def verdict(rows: list[Effect]) -> str:
    """One line of figures about the last SIRI-low and SIRI-high, or the last evaluation where there is neither."""
    trained = [row for row in rows if row.name != "base"]
    base = next((row for row in rows if row.name == "base"), None)
    if not trained:
        return "No evaluation after training yet." if base else "No evaluation yet."
    picked = [
        next((row for row in reversed(trained) if row.name.startswith(kind)), None)
        for kind in ("siri-low", "siri-high")
    ]
    picked = [row for row in picked if row] or trained[-1:]
    parts = []
    for row in picked:
        where = f"{row.name} (step {row.step})"
        if row.accuracy_change is not None and row.tokens_change is not None:
            parts.append(
                f"{where}: accuracy {points(row.points)} points, tokens {percent(row.tokens_change, signed=True)}"
            )
        else:
            parts.append(f"{where}: accuracy {percent(row.accuracy)} at {tokens(row.tokens)} tokens")
    if base and all(row.accuracy_change is not None and row.tokens_change is not None for row in picked):
        opening = f"Against base at cap {base.cap:,}: " if base.cap is not None else "Against base: "
    else:
        opening = "" if base else "No base evaluation to compare with. "
    return opening + "; ".join(parts) + "."


HEADINGS = ("checkpoint", "step", "accuracy", "points", "tokens", "vs base", "truncated", "trained\non", "score")


def effect_cells(row: Effect) -> tuple[str, ...]:
    """The texts of one table row, one a heading of HEADINGS; the terminal and the HTML report both show these."""
    return (
        row.name,
        str(row.step),
        percent(row.accuracy),
        points(row.points),
        tokens(row.tokens),
        percent(row.tokens_change, signed=True),
        percent(row.truncation_rate),
        compact(row.train_tokens),
        MISSING if row.score is None else f"{row.score:.2f}",
    )


def caption(rows: list[Effect], config: Mapping[str, Any]) -> str:
    """What the table is about: the recipe and the cap(s) of its evaluations."""
    caps = sorted({row.cap for row in rows if row.cap is not None})
    at = f"evaluated at cap {', '.join(f'{cap:,}' for cap in caps)}" if caps else ""
    return ", ".join(word for word in (str(config.get("recipe") or ""), at) if word)
