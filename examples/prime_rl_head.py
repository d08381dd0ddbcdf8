"""prime-rl's LM head: `inject_prime_lm_head(model, chunk_size)` builds the fused one after `install()`."""

import sys

import torch
from _head_example import D, V, compare, stand_in


class FusedOutputLinear(torch.nn.Linear):
    def __init__(self, in_features, out_features, chunk_size):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, hidden_states, labels=None, temperature=None):
        """prime-rl's signature, which the adapter checks"""


SEAM = "prime_rl.trainer.models.layers.lm_head"
with stand_in("prime-rl", "0.8.0", {SEAM: {"FusedOutputLinear": FusedOutputLinear}}):
    from siri_kernels.integrations import prime_rl

    prime_rl.install()
    head = sys.modules[SEAM].FusedOutputLinear(in_features=D, out_features=V, chunk_size=512)

    def score(hidden, weight, ids, temperature):
        head.weight = weight
        out = head(hidden, ids, temperature=torch.full(ids.shape, temperature, device=ids.device))
        return out["logprobs"], out["entropy"]

    compare("prime-rl FusedOutputLinear, a temperature per token", score)
