"""The CPU path never holds logits of the whole batch: measured as the peak resident size of a fresh process."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from siri_kernels import linear_grpo_loss, linear_logprob
torch.set_num_threads(1)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def step(n, vocab):
    hidden, weight = torch.randn(n, 8, requires_grad=True), torch.randn(vocab, 8, requires_grad=True)
    ids = torch.randint(vocab, (n,))
    if OP == "logprob":
        linear_logprob(hidden, weight, ids).sum().backward()
    else:
        linear_grpo_loss(hidden, weight, ids, torch.randn(n), memory=OP).loss.backward()
step(64, 1000)
before = peak()
step(3000, 65536)
print((peak() - before) / (3000 * 65536 * 4))
"""


@pytest.mark.parametrize("op", ["fast", "lean", "logprob"])
def test_peak_is_a_small_part_of_the_logits(op):
    script = f"OP = {op!r}\n{SCRIPT}"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    share = float(run.stdout)
    assert share < 0.12, f"{share:.2f} of N*V*4 bytes"
