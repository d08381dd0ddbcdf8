"""prime-rl's fused LM head: log-prob and entropy of the labels, without the logits of the batch.

For `FusedOutputLinear` in src/prime_rl/trainer/models/layers/lm_head.py of prime-rl 0.8.0: the same constructor,
parameter, arguments and output. Its log-probs keep the target out of the sum, so that they are exact near 0; dW is
summed in fp32; the entropy has a gradient.
"""

from __future__ import annotations

import torch
from linear import LinearLogProb
from siri_kernels.sharding import Shard
from torch import Tensor


class FusedOutputLinear(torch.nn.Linear):
    """hidden_states [B, S, D], labels [B, S], temperature [B, S] -> {"logprobs", "entropy"}, fp32 [B, S]; the logits of
    chunk_size tokens are there at a time."""

    def __init__(self, in_features: int, out_features: int, chunk_size: int):
        super().__init__(in_features, out_features, bias=False)
        self.chunk_size = chunk_size

    def forward(
        self, hidden_states: Tensor, labels: Tensor | None = None, temperature: Tensor | None = None
    ) -> dict[str, Tensor]:
        if labels is None or temperature is None:
            raise ValueError("FusedOutputLinear scores given tokens: pass labels [B, S] and temperature [B, S]")
        hidden = hidden_states.reshape(-1, hidden_states.shape[-1]).contiguous()
        exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        inverse_t = 1.0 / temperature.reshape(-1).to(exact)
        rows = hidden, self.weight, labels.reshape(-1).contiguous(), inverse_t, Shard(), self.chunk_size
        logp, entropy = LinearLogProb.apply(*rows)
        return {"logprobs": logp.view(labels.shape), "entropy": entropy.view(labels.shape)}
