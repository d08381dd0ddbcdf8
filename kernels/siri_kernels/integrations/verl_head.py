"""verl's head with the fused LM head inside: what verl's adapters, `verl` and `verl_plugin`, put in its place."""

# The trainer's models and batches are whatever it makes of them.
# pyright: basic

from __future__ import annotations

import torch
from torch import Tensor

from siri_kernels.integrations.padded import padded_logprob


class FusedLinearForPPO(torch.nn.Module):
    """verl.utils.experimental.torch_functional.FusedLinearForPPO: (log_probs, entropy) fp32, of input_ids' shape.

    hidden_states [N, D] or [B, T, D], vocab_weights [V, D], input_ids [N] or [B, T]. chunk_size and impl_backend are
    accepted and mean nothing here.
    """

    def __init__(self, chunk_size: int = 512, impl_backend: str = "torch"):
        super().__init__()

    def forward(
        self, hidden_states: Tensor, vocab_weights: Tensor, input_ids: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        if input_ids.shape != hidden_states.shape[:-1]:
            raise ValueError(
                f"input_ids must have shape {list(hidden_states.shape[:-1])}, that of hidden_states but the last "
                f"dimension, got {list(input_ids.shape)}"
            )
        return padded_logprob(hidden_states, vocab_weights, input_ids, None, temperature=temperature)
