"""How responses change while the cap moves: words of back-tracking, repetition, and the lag of length behind the cap
(arXiv 2509.25176, section 4).

Words are counted on token ids, without decoding: a word is any token that spells it, whatever its case and with or
without the space before it.
"""

from collections.abc import Sequence
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
            matching = np.ones(starts, bool)
            for offset, ids in enumerate(words):
                matching &= np.isin(token_ids[offset : offset + starts], ids)
            total += int(matching.sum())
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
        joined = np.concatenate([piece for ids in responses for piece in (ids, between)])
        return {
            "backtracking_per_response": self.backtracking.count(joined) / len(responses),
            "forward_words_per_response": self.forward.count(joined) / len(responses),
            "repetition_rate": float(np.mean([repetition_rate(ids) for ids in responses])),
        }
