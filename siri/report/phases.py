"""A whole run by the phases of its schedule, and the lag of length behind the cap (arXiv 2509.25176, section 4)."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

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


def length_lag(caps: Sequence[float], lengths: Sequence[float | None]) -> int | None:
    """Steps by which the mean response follows the cap: the shift, up to half of a cycle, at which the two correlate
    best. None where the cap does not go up and down twice, or no shift gives a positive correlation.

    caps and lengths: one a step. Of a run of three cycles or more the first third is left out, where the length moves
    from the base's to the run's own; and a linear drift is taken out, or it would pass for a lag.
    """
    known = [(step, cap, length) for step, (cap, length) in enumerate(zip(caps, lengths, strict=True)) if length]
    if len(known) < 8:
        return None
    step_T, cap_T, length_T = (np.array(column, float) for column in zip(*known, strict=True))
    above = cap_T > (cap_T.max() + cap_T.min()) / 2
    rises = np.flatnonzero(above[1:] & ~above[:-1])
    if len(rises) < 2:
        return None
    period = int(np.diff(rises).max())
    if len(known) >= 3 * period:
        step_T, cap_T, length_T = (column[len(known) // 3 :] for column in (step_T, cap_T, length_T))
    length_T = length_T - np.polyval(np.polyfit(step_T, length_T, 1), step_T)
    best, lag = 0.0, None
    for shift in range(period // 2 + 1):
        a, b = cap_T[: len(cap_T) - shift], length_T[shift:]
        if min(a.std(), b.std()) < 1e-6:  # rounding left of a constant
            continue
        correlation = float(np.corrcoef(a, b)[0, 1])
        if correlation > best + 1e-9:
            best, lag = correlation, shift
    return lag
