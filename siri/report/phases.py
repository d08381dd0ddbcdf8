"""A whole run by the phases of its schedule (arXiv 2509.25176, section 4)."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

COLUMNS = (
    ("cap", "cap", 1, 0),
    ("tokens", "response_tokens_mean", 1, 1),
    ("right", "tokens_right_mean", 1, 1),
    ("wrong", "tokens_wrong_mean", 1, 1),
    ("entropy", "entropy", 1, 3),
    ("truncated, %", "truncation_rate", 100, 1),
    ("back-tracking", "backtracking_per_response", 1, 2),
    ("so, alternatively", "forward_words_per_response", 1, 2),
    ("repetition, %", "repetition_rate", 100, 1),
    ("zero variance, %", "zero_variance_groups", 100, 1),
)
"""Heading, key of metrics.jsonl, scale and digits of what is shown by phase: tokens of all, of right and of wrong
responses, back-tracking and forward words a response, repeated n-grams, groups whose rewards are all the same."""


def by_phase(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means of the keys of COLUMNS over each run of steps in the same phase of metrics.jsonl: {"phase", "cycle" (from
    1), "start", "end" (one past the last step), key: mean or None}. Rows without a phase are left out."""
    spans: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for phase, group in groupby((row for row in rows if row.get("phase")), key=lambda row: row["phase"]):
        members = list(group)
        seen[phase] = seen.get(phase, 0) + 1
        span = {"phase": phase, "cycle": seen[phase], "start": members[0]["step"], "end": members[-1]["step"] + 1}
        for _, key, _, _ in COLUMNS:
            values = [row[key] for row in members if row.get(key) is not None]
            span[key] = sum(values) / len(values) if values else None
        spans.append(span)
    return spans


def phase_cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of a table of `by_phase`; columns without a figure are left out."""
    spans = by_phase(rows)
    columns = [column for column in COLUMNS if any(span[column[1]] is not None for span in spans)]
    lines = []
    for span in spans:
        cells = [f"{span['phase']} {span['cycle']}", f"{span['start']} to {span['end'] - 1}"]
        for _, key, scale, digits in columns:
            cells.append("-" if span[key] is None else f"{scale * span[key]:,.{digits}f}")
        lines.append(cells)
    return ["phase", "steps", *(heading for heading, _, _, _ in columns)], lines
