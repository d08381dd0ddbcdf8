"""prime-rl's RL trainer on the fused LM head. Two lines before `prime_rl.trainer.rl.train.main` (or in a module of your
own that starts it):

    from siri_kernels.integrations import prime_rl
    prime_rl.install()

`inject_prime_lm_head(model, chunk_size)` then builds this module wherever it built FusedOutputLinear: the same
constructor, parameter and output, a module that FSDP2 shards and calls, but one that accumulates dW in fp32, has no
host synchronisation per vocabulary chunk, and whose entropy is differentiable. Models with a final softcap keep
prime-rl's own head.
"""

# The trainer's models and batches are whatever it makes of them.
# pyright: basic

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from siri_kernels.integrations.padded import padded_logprob
from siri_kernels.integrations.seams import seam, takes, tested

tested("prime-rl", "0.5", "0.9")

SEAM = "prime_rl.trainer.models.layers.lm_head"
originals: dict[str, object] = {}


class FusedOutputLinear(torch.nn.Linear):
    """The LM head: hidden_states [B, S, D], labels [B, S], temperature [B, S] -> {"logprobs", "entropy"}, fp32 [B, S].

    chunk_size is accepted and means nothing here.
    """

    def __init__(self, in_features: int, out_features: int, chunk_size: int):
        super().__init__(in_features, out_features, bias=False)
        self.chunk_size = chunk_size

    def forward(self, hidden_states: Tensor, labels: Tensor | None = None, temperature: Tensor | None = None) -> dict:
        if labels is None or temperature is None:
            raise ValueError("FusedOutputLinear scores given tokens: pass labels [B, S] and temperature [B, S]")
        logp, entropy = padded_logprob(hidden_states, self.weight, labels, None, temperature=temperature.float())
        return {"logprobs": logp, "entropy": entropy}


def install() -> None:
    """Put the head in prime-rl's place; a second call changes nothing."""
    if not originals:
        theirs = seam(SEAM, "FusedOutputLinear")
        where = f"{SEAM}.FusedOutputLinear"
        takes(theirs.__init__, where, "in_features", "out_features", "chunk_size")
        takes(theirs.forward, f"{where}.forward", "hidden_states", "labels", "temperature", in_order=True)
        originals["FusedOutputLinear"] = theirs
        module: Any = import_module(SEAM)
        module.FusedOutputLinear = FusedOutputLinear


def uninstall() -> None:
    if originals:
        module: Any = import_module(SEAM)
        module.FusedOutputLinear = originals.pop("FusedOutputLinear")
