"""verl's fused-kernel back ends of the actor on the fused LM head, whichever is chosen. `verl_plugin` is the way where
FSDP trains; this one is for Megatron, and for a verl whose plugins are turned off. Two settings of a verl run:

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

from torch import Tensor

from siri_kernels.integrations.seams import seam, takes, tested
from siri_kernels.integrations.verl_head import FusedLinearForPPO

tested("verl", "0.9", "0.10")

SEAMS = {
    "FusedLinearForPPO": "verl.utils.experimental.torch_functional",
    "linear_cross_entropy": "verl.utils.kernel.linear_cross_entropy",
}
originals: dict[str, Any] = {}


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
    """Put both in verl's place; a second call changes nothing. ImportError, and nothing put, where one does not fit."""
    theirs = {name: seam(path, name) for name, path in SEAMS.items() if name not in originals}
    for name, function in theirs.items():
        where = f"{SEAMS[name]}.{name}"
        if name == "FusedLinearForPPO":
            takes(getattr(function, "forward", function), where, "hidden_states", "vocab_weights", "input_ids")
        else:
            owner = getattr(function, "__self__", None)  # verl's is the `apply` of an autograd.Function
            form = function if owner is None else owner.forward
            takes(form, where, "hidden", "weight", "labels", "temperature", "reduction", in_order=True)
    ours = {"FusedLinearForPPO": FusedLinearForPPO, "linear_cross_entropy": linear_cross_entropy}
    for name, function in theirs.items():
        originals[name] = function
        setattr(import_module(SEAMS[name]), name, ours[name])


def uninstall() -> None:
    for name in list(originals):
        setattr(import_module(SEAMS[name]), name, originals.pop(name))


install()
