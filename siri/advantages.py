"""Group-normalised advantages (GRPO; arXiv 2509.25176, section 3)."""

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
