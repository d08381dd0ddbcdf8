"""Every penalty and reward for length: what the cap, DAPO's soft penalty and Kimi's reward make of a group's scores.

One rule holds for all of them: **a response that the cap cut never gets more than one that is wrong.** Right is a score
of 1 or more, as everywhere. What a reward function gives a wrong answer is not known before it is seen, so a cut
response gets

    zero, mask:   min(0, its own score, the lowest score of its group)
    grade, soft:  its own score where that is right, else the lowest score of its group

With a reward of 0 and 1 that is 0, and in grade and soft the score itself; with -1 and 1 it is -1 as soon as a response
of the group, the cut one included, is graded so. Penalties count a cut response as long as the cap.
"""

from collections.abc import Sequence
from typing import Any

SOFT_WEIGHT = 0.5
"""DAPO's scores are -1 and 1, those of our rewards 0 and 1: with half the penalty its strength is the same beside
std-normalised advantages."""


def shape_rewards(
    config: Any, graded: Sequence[float], lengths: Sequence[int], truncated: Sequence[bool], cap: int
) -> tuple[list[float], list[float]]:
    """(scores, rewards) of the responses to one prompt: graded scores after the cap, and those after penalties and
    rewards for length. `config` has overlong, overlong_buffer, length_reward and length_weight; lengths are in tokens.
    """
    scores = capped_scores(graded, truncated, config.overlong)
    lengths = [cap if cut else length for length, cut in zip(lengths, truncated, strict=True)]
    rewards = list(scores)
    if config.overlong == "soft":
        penalties = [SOFT_WEIGHT * soft_penalty(length, cap, config.overlong_buffer) for length in lengths]
        rewards = [score + penalty for score, penalty in zip(scores, penalties, strict=True)]
    if config.length_reward == "kimi":
        brevity = kimi_length_rewards(lengths, [score >= 1 for score in scores])
        rewards = [reward + config.length_weight * share for reward, share in zip(rewards, brevity, strict=True)]
    return scores, rewards


def capped_scores(graded: Sequence[float], truncated: Sequence[bool], overlong: str) -> list[float]:
    """Scores of one group under the rule above."""
    lowest = min(graded)

    def cut_score(score: float) -> float:
        if overlong in ("zero", "mask"):
            return min(0.0, lowest)
        return score if score >= 1 else lowest

    return [cut_score(score) if cut else score for score, cut in zip(graded, truncated, strict=True)]


def soft_penalty(length: int, cap: int, buffer: int) -> float:
    """DAPO's soft overlong penalty: 0 up to cap - buffer tokens, falling to -1 at the cap (arXiv 2503.14476)."""
    buffer = min(buffer, cap)
    return min(-(length - (cap - buffer)) / buffer, 0.0)


def kimi_length_rewards(lengths: Sequence[int], right: Sequence[bool]) -> list[float]:
    """Kimi k1.5's length reward of each response in a group (arXiv 2501.12599, section 2.3.3).

    lambda = 0.5 - (length - shortest) / (longest - shortest); a right response gets lambda, a wrong one min(0, lambda).
    All are 0 where every response has the same length. `lengths` are in tokens.
    """
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return [0.0] * len(lengths)
    ranks = [0.5 - (length - shortest) / (longest - shortest) for length in lengths]
    return [rank if good else min(0.0, rank) for rank, good in zip(ranks, right, strict=True)]
