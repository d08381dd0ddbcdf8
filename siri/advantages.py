"""Advantages: group-normalised (GRPO; arXiv 2509.25176, section 3), and those of other methods (docs/methods.md)."""

from collections.abc import Sequence

import torch


def group_advantages(
    rewards_PG: torch.Tensor, *, norm: str = "std", eps: float = 1e-6, graded_PG: torch.Tensor | None = None
) -> torch.Tensor:
    """Advantage of each response within its prompt's group.

    rewards_PG: [prompts, group size] float. Returns the same shape: reward minus the group's mean, divided by
    (unbiased std + eps) when norm is "std". A group without variance gets exactly 0. graded_PG: bool, False where there
    is no reward to speak of: such a response gets 0, and mean and std are those of the others.
    """
    if norm not in ("std", "none"):
        raise ValueError(f"norm is {norm!r}; expected 'std' or 'none'")
    if norm == "std" and rewards_PG.shape[1] < 2:
        raise ValueError("std-normalised advantages need at least 2 responses a prompt")
    if graded_PG is not None and not bool(graded_PG.all()):
        advantages_PG = torch.zeros_like(rewards_PG)
        for row in range(len(rewards_PG)):
            graded_G = graded_PG[row]
            # one response alone has no advantage, nor a standard deviation
            if int(graded_G.sum()) > 1:
                advantages_PG[row, graded_G] = group_advantages(rewards_PG[row, graded_G][None], norm=norm, eps=eps)[0]
        return advantages_PG
    centred_PG = rewards_PG - rewards_PG.mean(dim=1, keepdim=True)
    if norm == "std":
        centred_PG = centred_PG / (rewards_PG.std(dim=1, keepdim=True) + eps)
    # The mean of equal rewards may differ from them in the last bit, which std + eps would blow up.
    return torch.where(zero_variance(rewards_PG)[:, None], 0.0, centred_PG)


def zero_variance(rewards_PG: torch.Tensor) -> torch.Tensor:
    """[prompts] bool: groups in which every response has the same reward, so that none can be preferred."""
    return (rewards_PG == rewards_PG[:, :1]).all(dim=1)


def batch_normalised(centred_R: torch.Tensor, lengths_R: torch.Tensor, *, eps: float = 1e-8) -> torch.Tensor:
    """DLER's second norm (arXiv 2510.15110): advantages that are centred in their groups, minus their mean and over
    their standard deviation (unbiased) in the whole batch, where each token of a response counts once.

    centred_R, lengths_R: [responses], of those alone that can be preferred to another of their group: the mean is taken
    off, so that a response of a group without variance would get an advantage for nothing. Fewer than two stay as
    they are.
    """
    if len(centred_R) < 2:
        return centred_R
    weight_R = lengths_R.to(centred_R.dtype)
    tokens = weight_R.sum()
    mean = (weight_R * centred_R).sum() / tokens
    variance = (weight_R * (centred_R - mean) ** 2).sum() / (tokens - 1)
    return (centred_R - mean) / (variance + eps).sqrt()


def drpo_advantages(
    right_G: torch.Tensor, lengths_G: torch.Tensor, logp_G: torch.Tensor, *, longest: int, brevity: float, tau: float
) -> torch.Tensor:
    """DRPO's weights of one group (arXiv 2510.04474), times G, because `seq_mean` divides by the responses of a batch.

    right_G: bool. lengths_G: tokens. logp_G: mean log-prob of a response's tokens, nats. longest: C, tokens, the same
    at every step. Right responses share a weight of 1 as softmax((1 - L / C) / brevity), wrong ones -1 as
    softmax(logp / tau). A group without both kinds gets 0.
    """
    advantages_G = torch.zeros_like(logp_G)
    if not bool(right_G.any()) or bool(right_G.all()):
        return advantages_G
    size = len(right_G)
    advantages_G[right_G] = size * torch.softmax((1 - lengths_G[right_G].to(logp_G.dtype) / longest) / brevity, 0)
    advantages_G[~right_G] = -size * torch.softmax(logp_G[~right_G] / tau, 0)
    return advantages_G


def kept_responses(lengths: Sequence[int], rewards: Sequence[float], keep: int, by: str) -> list[int]:
    """Places of the `keep` responses of a group that GFPO trains on (arXiv 2508.09726), in order: the shortest
    ("length"), or those with the most reward a token ("efficiency"). Of equal ones the earlier is kept."""
    if by == "length":
        ranked = sorted(range(len(lengths)), key=lambda place: lengths[place])
    else:
        ranked = sorted(range(len(lengths)), key=lambda place: -rewards[place] / max(1, lengths[place]))
    return sorted(ranked[:keep])
