"""The package stands alone: no trainer, no transformers, no GPU, and on machines without Triton not even that."""

import subprocess
import sys

SCRIPT = """
import sys
for name in ("siri", "transformers", "triton"):
    sys.modules[name] = None  # importing it raises
import torch
import siri_kernels
hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
ids = torch.tensor([0, 6, 1, 2, 3])
siri_kernels.linear_grpo_loss(hidden, weight, ids, torch.randn(5)).loss.backward()
siri_kernels.logprob_from_logits(hidden @ weight.T, ids).sum().backward()
try:
    siri_kernels.linear_logprob(hidden, weight, ids, impl="triton")
except ValueError as error:
    print(error)
"""


def test_it_imports_and_runs_alone():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "needs CUDA tensors" in done.stdout
