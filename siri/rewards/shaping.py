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


LASER_BONUS = 0.5
"""What Laser gives a right response within its target beside the 1 for being right."""
L1_SLACK = 0.5
"""What L1-max leaves of a right response's reward at exactly the length that was asked for."""


def shape_rewards(
    config: Any,
    graded: Sequence[float],
    lengths: Sequence[int],
    truncated: Sequence[bool],
    cap: int,
    *,
    penalised: bool = True,
    targets: Sequence[float] = (),
) -> tuple[list[float], list[float]]:
    """(scores, rewards) of the responses to one prompt: graded scores after the cap, and those after penalties and
    rewards for length. `config` has overlong, overlong_buffer, length_reward and length_weight; lengths are in tokens.

    penalised: whether penalties and rewards for length count at this step. targets: tokens that the rewards of L1 and
    Laser compare with: the prompt's, or for laser_d those of easy, medium and hard prompts.
    """
    scores = capped_scores(graded, truncated, config.overlong)
    lengths = [cap if cut else length for length, cut in zip(lengths, truncated, strict=True)]
    rewards = list(scores)
    if not penalised:
        return scores, rewards
    right = [score >= 1 for score in scores]
    if config.overlong == "soft":
        penalties = [SOFT_WEIGHT * soft_penalty(length, cap, config.overlong_buffer) for length in lengths]
        rewards = [score + penalty for score, penalty in zip(scores, penalties, strict=True)]
    if config.length_reward == "kimi":
        brevity = kimi_length_rewards(lengths, right)
        rewards = [reward + config.length_weight * share for reward, share in zip(rewards, brevity, strict=True)]
    elif config.length_reward in ("laser", "laser_d"):
        target = targets[0] if config.length_reward == "laser" else targets[difficulty(right)]
        bonus = config.length_weight * LASER_BONUS
        rows = zip(rewards, right, lengths, strict=True)
        rewards = [reward + bonus * (good and length <= target) for reward, good, length in rows]
    elif config.length_reward in ("l1_exact", "l1_max"):
        alpha = config.length_weight * config.length_alpha
        l1 = l1_exact_reward if config.length_reward == "l1_exact" else l1_max_reward
        rows = zip(rewards, right, lengths, strict=True)
        rewards = [l1(reward, good, length, targets[0], alpha) for reward, good, length in rows]
        rewards = _no_gain_by_being_cut(rewards, right, truncated)
    return scores, rewards


def _no_gain_by_being_cut(rewards: Sequence[float], right: Sequence[bool], truncated: Sequence[bool]) -> list[float]:
    """The rule above, where a wrong response of another length than was asked for loses more than the cap's."""
    rows = list(zip(rewards, right, truncated, strict=True))
    lowest = min((reward for reward, good, cut in rows if not good and not cut), default=float("inf"))
    return [min(reward, lowest) if cut and not good else reward for reward, good, cut in rows]


def difficulty(right: Sequence[bool]) -> int:
    """Laser-D's bucket of a prompt by the share of its responses that are right: 0 easy (two thirds and more), 1 medium
    (one third and more), 2 hard (arXiv 2505.15612)."""
    three_times = 3 * sum(right)  # in whole numbers: 2 of 3 are two thirds
    return 0 if three_times >= 2 * len(right) else 1 if three_times >= len(right) else 2


def l1_exact_reward(reward: float, right: bool, length: int, target: float, alpha: float) -> float:
    """L1-exact (arXiv 2503.04697, equation 1): the reward less alpha for each token of difference, right or wrong."""
    return reward - alpha * abs(target - length)


def l1_max_reward(reward: float, right: bool, length: int, target: float, alpha: float) -> float:
    """L1-max (arXiv 2503.04697, equation 2): a right response's reward times alpha (target - length) + 0.5, between 0
    and 1; a wrong one keeps its own."""
    share = min(1.0, max(0.0, alpha * (target - length) + L1_SLACK))
    return reward * share if right else reward


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
