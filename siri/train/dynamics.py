"""How responses change while the cap moves: words of back-tracking, repetition, and the lag of length behind the cap
(arXiv 2509.25176, section 4).

Words are counted on token ids, without decoding: a word is any token that spells it, whatever its case and with or
without the space before it.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from siri.train.collect import Group

BACKTRACKING = ("wait", "hold on")
"""Words that follow the cap in the paper."""
FORWARD = ("so", "alternatively")
"""Words that stay flat in the paper."""
NGRAM = 4
MULTIPLIER = np.uint64(6364136223846793005)
"""Of Knuth's linear congruential generator modulo 2^64."""
SPACES = " \t\n\u0120\u010a\u2581"  # and how byte-level BPE and SentencePiece write a space or a line end


class WordCounter:
    """Counts phrases of one or more words in token ids."""

    def __init__(self, tokenizer: Any, phrases: Sequence[str]) -> None:
        """tokenizer: anything with transformers' `get_vocab()`. A word that no single token spells counts nothing."""
        spelled: dict[str, list[int]] = {}
        wanted = {word for phrase in phrases for word in phrase.split()}
        for token, index in tokenizer.get_vocab().items():
            if (word := token.strip(SPACES).lower()) in wanted:
                spelled.setdefault(word, []).append(index)
        self.phrases_ids = [[spelled.get(word, []) for word in phrase.split()] for phrase in phrases]

    def count(self, token_ids: np.ndarray) -> int:
        """How often the phrases occur among `token_ids` [T]."""
        total = 0
        for words in self.phrases_ids:
            starts = max(0, len(token_ids) - len(words) + 1)
            found = np.ones(starts, bool)
            for offset, ids in enumerate(words):
                found &= np.isin(token_ids[offset : offset + starts], ids)
            total += int(found.sum())
        return total


def repetition_rate(token_ids: np.ndarray, n: int = NGRAM) -> float:
    """Share of the n-grams of one response that it already held before (seq-rep-n, arXiv 1908.04319); 0 for a response
    of fewer than n tokens."""
    if len(token_ids) < n:
        return 0.0
    ids = np.asarray(token_ids).astype(np.uint64)
    count = len(ids) - n + 1
    grams = np.zeros(count, np.uint64)
    for offset in range(n):  # a hash modulo 2^64 each, because numbers sort far quicker than rows
        grams = grams * MULTIPLIER + ids[offset : offset + count]
    grams.sort()
    return 1 - (1 + np.count_nonzero(grams[1:] != grams[:-1])) / count


class Dynamics:
    """The figures of a rollout batch that concern wording; made once a run."""

    def __init__(self, tokenizer: Any) -> None:
        self.backtracking = WordCounter(tokenizer, BACKTRACKING)
        self.forward = WordCounter(tokenizer, FORWARD)

    def metrics(self, groups: Sequence["Group"]) -> dict[str, float]:
        """Means over all sampled responses, as keys of metrics.jsonl."""
        responses = [np.array(completion.token_ids, np.int64) for group in groups for completion in group.completions]
        between = np.array([-1])  # no phrase goes on in the next response
        joined = np.concatenate([part for ids in responses for part in (ids, between)])
        return {
            "backtracking_per_response": self.backtracking.count(joined) / len(responses),
            "forward_words_per_response": self.forward.count(joined) / len(responses),
            "repetition_rate": float(np.mean([repetition_rate(ids) for ids in responses])),
        }


# --- over a whole run ---

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
    found = [(step, cap, length) for step, (cap, length) in enumerate(zip(caps, lengths, strict=True)) if length]
    if len(found) < 8:
        return None
    step_T, cap_T, length_T = (np.array(column, float) for column in zip(*found, strict=True))
    above = cap_T > (cap_T.max() + cap_T.min()) / 2
    rises = np.flatnonzero(above[1:] & ~above[:-1])
    if len(rises) < 2:
        return None
    period = int(np.diff(rises).max())
    if len(found) >= 3 * period:
        step_T, cap_T, length_T = (column[len(found) // 3 :] for column in (step_T, cap_T, length_T))
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
