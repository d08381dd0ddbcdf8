"""verl with Megatron: every fused back end replaced, by VERL_USE_EXTERNAL_MODULES=siri_kernels.integrations.verl."""

import sys

from _head_example import compare, formula, stand_in


class FusedLinearForPPO:
    def forward(self, hidden_states, vocab_weights, input_ids, temperature=1.0):
        return formula(hidden_states, vocab_weights, input_ids, temperature)


def linear_cross_entropy(hidden, weight, labels, temperature=1.0, reduction="none", dist_process_group=None):
    return formula(hidden, weight, labels, temperature)


FUNCTIONS = {
    "verl.utils.experimental.torch_functional": {"FusedLinearForPPO": FusedLinearForPPO},
    "verl.utils.kernel.linear_cross_entropy": {"linear_cross_entropy": linear_cross_entropy},
}
with stand_in("verl", "0.9.1", FUNCTIONS):
    import siri_kernels.integrations.verl  # noqa: F401  (importing it installs it)

    function = sys.modules["verl.utils.kernel.linear_cross_entropy"].linear_cross_entropy

    def score(hidden, weight, ids, temperature):
        logp, entropy = function(hidden, weight, ids, temperature)
        return logp.view(ids.shape), entropy.view(ids.shape)

    compare("verl linear_cross_entropy", score)
