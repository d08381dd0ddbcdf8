"""verl's actor: the fused-kernel back end that it loads by VERL_USE_EXTERNAL_MODULES=siri_kernels.integrations.verl."""

import sys

from _head_example import compare, stand_in

FUNCTIONS = {
    "verl.utils.experimental.torch_functional": {"FusedLinearForPPO": None},
    "verl.utils.kernel.linear_cross_entropy": {"linear_cross_entropy": None},
}
with stand_in("verl", "0.9.1", FUNCTIONS):
    import siri_kernels.integrations.verl  # noqa: F401  (importing it installs it)

    head = sys.modules["verl.utils.experimental.torch_functional"].FusedLinearForPPO(impl_backend="torch")
    compare("verl FusedLinearForPPO", lambda h, w, ids, t: head(h, w, ids, temperature=t))
