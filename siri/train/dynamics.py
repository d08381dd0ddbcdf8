"""How responses change while the cap moves: words of back-tracking and repetition (arXiv 2509.25176, section 4).

Words are counted on token ids, without decoding: a word is any token that spells it, whatever its case and with or
without the space before it.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from siri.rollout import Completion

BACKTRACKING = ("wait", "hold on")
"""Words that follow the cap in the paper."""
FORWARD = ("so", "alternatively")
"""Words that stay flat in the paper."""
NGRAM = 4
FIGURES = ("backtracking_per_response", "forward_words_per_response", "repetition_rate")
"""Keys of metrics.jsonl."""
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
        size = 1 + max((index for ids in spelled.values() for index in ids), default=0)
        # whether a token spells the word; what is above all that spell one is the last, and spells none
        self._spells = [[np.isin(np.arange(size + 1), ids) for ids in words] for words in self.phrases_ids]

    def count(self, token_ids: np.ndarray) -> int:
        """How often the phrases occur among `token_ids` [T], which are 0 or more."""
        total = 0
        for words in self._spells:
            starts = max(0, len(token_ids) - len(words) + 1)
            matching = np.ones(starts, bool)
            for offset, spells in enumerate(words):
                matching &= spells[np.minimum(token_ids[offset : offset + starts], len(spells) - 1)]
            total += int(np.count_nonzero(matching))
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


class Group(Protocol):
    """What is looked at of a group of responses (`siri.train.groups.Group`)."""

    @property
    def completions(self) -> Sequence[Completion]: ...

    @property
    def wording(self) -> Sequence[Sequence[float]] | None:
        """What the rank that sampled them has counted."""


class Dynamics:
    """The figures of a rollout batch that concern wording; made once a run."""

    def __init__(self, tokenizer: Any) -> None:
        self.backtracking = WordCounter(tokenizer, BACKTRACKING)
        self.forward = WordCounter(tokenizer, FORWARD)

    def of(self, completions: Sequence[Completion]) -> tuple[tuple[float, ...], ...]:
        """For each response its words of back-tracking, its other words, and its repetition rate."""
        responses = [np.asarray(completion.token_ids, np.int64) for completion in completions]
        return tuple((self.backtracking.count(ids), self.forward.count(ids), repetition_rate(ids)) for ids in responses)

    def metrics(self, groups: Sequence[Group]) -> dict[str, float]:
        """Means over all sampled responses, as keys of metrics.jsonl. What the ranks have counted is not counted
        again."""
        rows = [row for group in groups for row in group.wording or self.of(group.completions)]
        backtracking, forward, repetition = zip(*rows, strict=True)
        means = (sum(backtracking) / len(rows), sum(forward) / len(rows), float(np.mean(repetition)))
        return dict(zip(FIGURES, means, strict=True))
