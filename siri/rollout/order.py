"""Which response is sampled when: expected lengths, longest first, and as many at once as the cache holds.

Responses are independent, so a rollout batch is list scheduling on identical slots, and starting the longest first is
Graham's LPT rule: what starts last is short, and the end of the batch is not one long response in an idle engine.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from siri.store.jsonl import MetricsLog, read_jsonl


class ExpectedLengths:
    """Mean response length of each prompt when it was last sampled, which is in the last epoch.

    path: a JSON lines file that keeps them for a resumed run; None = only in memory. Lengths decide the order of the
    work and nothing else, so a lost line costs time, not correctness.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.log = MetricsLog(path) if path else None
        self.means: dict[str, float] = {}
        if path and path.exists():
            for row in read_jsonl(path):
                self.means |= row

    def __call__(self, prompt_ids: Sequence[int], cap: int) -> float:
        """Tokens to expect under `cap`: a prompt not seen yet counts as the mean of those seen, or as half the cap."""
        known = self.means.get(_key(prompt_ids))
        if known is None:
            known = self.mean(cap)
        return min(known, cap)

    def mean(self, cap: int) -> float:
        """Mean over the prompts seen, each cut at `cap`; half the cap if there are none."""
        if not self.means:
            return cap / 2
        return float(np.minimum(np.fromiter(self.means.values(), float), cap).mean())

    @staticmethod
    def row(prompts: Sequence[Sequence[int]], means: Sequence[float]) -> dict[str, float]:
        """Mean lengths of prompts that were just sampled, as `record` takes them."""
        return {_key(prompt): round(mean, 1) for prompt, mean in zip(prompts, means, strict=True)}

    def record(self, row: dict[str, float], *, write: bool = True) -> None:
        """Take note of mean lengths."""
        self.means |= row
        if self.log and write and row:
            self.log.append(row)


def _key(prompt_ids: Sequence[int]) -> str:
    return hashlib.blake2b(np.asarray(prompt_ids, np.int64).tobytes(), digest_size=8).hexdigest()


def longest_first(expected: Sequence[float]) -> list[int]:
    """Indices, the longest expected first; equals stay in order, so that the samples of a prompt share its prefix."""
    return np.argsort(-np.asarray(expected), kind="stable").tolist()


def spread(expected: Sequence[float], parts: int) -> list[list[int]]:
    """Indices dealt to `parts` engines in equal numbers, give or take one, so that each gets about the same work:
    in order of length, to and fro."""
    dealt: list[list[int]] = [[] for _ in range(parts)]
    for place, index in enumerate(longest_first(expected)):
        turn, seat = divmod(place, parts)
        dealt[seat if turn % 2 == 0 else parts - 1 - seat].append(index)
    return dealt


def sequences_in_flight(cache_tokens: int, prompt_tokens: int, response_tokens: float, most: int) -> int:
    """How many responses to sample at once: as many as the cache holds at the tokens each is planned to need, one at
    least and `most` at most. Under half the cap about twice as many fit."""
    return max(1, min(most, int(cache_tokens / (prompt_tokens + response_tokens))))
