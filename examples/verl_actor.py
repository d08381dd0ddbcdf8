"""verl's actor with `impl_backend=siri`: the entry point registers the name, and the run that asks gets the head."""

import sys
import types

import torch
from _head_example import compare, formula, stand_in

CHOICE, HEADS = "verl.models.transformers.monkey_patch", "verl.utils.experimental.torch_functional"


class FusedLinearForPPO:
    """verl 0.9's, by its published formula, with the signatures that the plugin checks."""

    def __init__(self, chunk_size=512, impl_backend="torch"): ...

    def forward(self, hidden_states, vocab_weights, input_ids, temperature=1.0):
        return formula(hidden_states, vocab_weights, input_ids, temperature)


def patch_forward_with_backends(model, use_fused_kernels=False, fused_kernels_backend=None):
    """verl's choice of a forward; it has no list of back ends that could be added to."""


FUNCTIONS = {
    CHOICE: {"patch_forward_with_backends": patch_forward_with_backends},
    HEADS: {"FusedLinearForPPO": FusedLinearForPPO},
}
with stand_in("verl", "0.9.1", FUNCTIONS):
    import siri_kernels.integrations.verl_plugin  # noqa: F401  (verl loads it itself, by the entry point verl.plugins)

    model = types.SimpleNamespace(lm_head=torch.nn.Linear(1, 1))
    sys.modules[CHOICE].patch_forward_with_backends(model, use_fused_kernels=True, fused_kernels_backend="siri")
    head = sys.modules[HEADS].FusedLinearForPPO(impl_backend=model._verl_fused_kernels_backend)
    compare("verl FusedLinearForPPO", lambda h, w, ids, t: head(h, w, ids, temperature=t))
