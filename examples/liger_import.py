"""LigerFusedLinearGRPOLoss by another import: the same call, the same loss and gradients."""

import torch
from _compare import DEVICE, largest_difference, measure, report
from siri_kernels.integrations.liger import LigerFusedLinearGRPOLoss as Ours

try:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss as Theirs
except ImportError:
    raise SystemExit("pip install 'liger-kernel>=0.8.5,<0.9' to compare with the real one") from None

B, T, D, V = 4, 128, 64, 16384
torch.manual_seed(0)
hidden = torch.randn(B, T, D, device=DEVICE).requires_grad_()
weight = torch.randn(V, D, device=DEVICE).mul(0.1).requires_grad_()
ids = torch.randint(V, (B, T), device=DEVICE)
mask = (torch.arange(T) < torch.tensor([[T], [T // 2], [T // 3], [T]])).float().to(DEVICE)
advantages = torch.randn(B, device=DEVICE)
old = -10 + torch.randn(B, T, device=DEVICE).mul(0.1)


def step(cls):
    def run():
        hidden.grad = weight.grad = None
        loss, _ = cls(beta=0.0, compiled=False, use_ref_model=False)(
            hidden, weight, ids, mask, advantages, old_per_token_logps=old
        )
        loss.backward()
        return loss, hidden.grad, weight.grad

    return run


difference = largest_difference(step(Theirs)(), step(Ours)())
report("Liger's call", measure(step(Theirs)), measure(step(Ours)), difference)
