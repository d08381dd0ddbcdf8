"""How far the rollout engine's log-probs are from the trainer's, beside the means and maxima that the loss returns."""

from typing import Any

import torch
from siri_kernels.reference import LOG_RATIO_BOUND

from siri.runtime.ranks import Ranks


class Mismatch:
    """Sums over the counted tokens of a rollout batch, on the device until `metrics`. low, high: the icepop band of
    w = exp(logp - rollout_logp)."""

    def __init__(self, low: float, high: float, device: torch.device) -> None:
        self.low, self.high = low, high
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, logp_R: torch.Tensor, rollout_logp_R: torch.Tensor, mask_R: torch.Tensor) -> None:
        """Tokens of a micro-batch. logp_R: under the weights that sampled; rows that were not computed are NaN."""
        gap_R = logp_R.double() - rollout_logp_R.double()
        counted_R = mask_R & gap_R.isfinite()
        weight_R = gap_R.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()  # as in the loss
        outside_R = (weight_R < self.low) | (weight_R > self.high)
        zero = gap_R.new_zeros(())
        self.sums += torch.stack(
            [torch.where(counted_R, gap_R.abs(), zero).sum(), (outside_R & counted_R).sum(), counted_R.sum()]
        )

    def metrics(self, ranks: Ranks) -> dict[str, Any]:
        """Mean |logp - rollout_logp|, and the share of tokens beyond the band, over all ranks; NaN without tokens."""
        absolute, outside, tokens = (sum(of_ranks) for of_ranks in zip(*ranks.gather(self.sums.tolist()), strict=True))
        totals = {"mismatch_abs_mean": absolute, "mismatch_outside_fraction": outside}
        return {name: total / tokens if tokens else float("nan") for name, total in totals.items()}
