"""verl's fused-kernel back ends of the actor on the fused LM head. Two settings of a verl run:

    VERL_USE_EXTERNAL_MODULES=siri_kernels.integrations.verl
    actor_rollout_ref.model.use_fused_kernels=True

verl imports external modules in every process; importing this one puts `FusedLinearForPPO` and `linear_cross_entropy`
in the place of verl's functions of these names, which its forwards look up when they run (impl_backend torch, liger or
triton). Log-probs and entropy are fp32 and both are differentiable. Megatron's vocabulary-parallel call (a process
group) and reductions other than "none" stay with verl's kernel. `uninstall()` puts verl's functions back.
"""

# The trainer's models and batches are whatever it makes of them.
# pyright: basic

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from siri_kernels.integrations.padded import padded_logprob, require

require("verl", "0.9", "0.10")

SEAMS = {
    "FusedLinearForPPO": "verl.utils.experimental.torch_functional",
    "linear_cross_entropy": "verl.utils.kernel.linear_cross_entropy",
}
originals: dict[str, Any] = {}


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


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    reduction: str = "none",
    dist_process_group=None,
) -> tuple[Tensor, Tensor]:
    """verl.utils.kernel.linear_cross_entropy.linear_cross_entropy: (log-probs, entropy) fp32 [N], N tokens in all."""
    if dist_process_group is not None or reduction.lower() != "none":
        theirs = originals["linear_cross_entropy"]
        return theirs(hidden, weight, labels, temperature, reduction, dist_process_group)
    head = FusedLinearForPPO()
    return head(hidden.reshape(-1, hidden.shape[-1]), weight, labels.reshape(-1), temperature)


def install() -> None:
    """Put both in verl's place; a second call changes nothing."""
    for name, path in SEAMS.items():
        module = import_module(path)
        if name not in originals:
            originals[name] = getattr(module, name)
            setattr(module, name, globals()[name])


def uninstall() -> None:
    for name in list(originals):
        setattr(import_module(SEAMS[name]), name, originals.pop(name))


install()
