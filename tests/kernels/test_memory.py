"""The CPU path never holds logits of the whole batch: measured as the peak resident size of a fresh process each, all
forked from one that has done nothing but import."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, os, resource, torch
from siri_kernels import chunked, linear_grpo_loss, linear_logprob
torch.set_num_threads(1)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def step(op, n, vocab):
    hidden, weight = torch.randn(n, 8, requires_grad=True), torch.randn(vocab, 8, requires_grad=True)
    ids = torch.randint(vocab, (n,))
    if op == "logprob":
        chunked.BUDGET["cpu"]["fast"] = 32 << 20  # it has no option of its own
        linear_logprob(hidden, weight, ids).sum().backward()
    else:
        memory = 32 << 20 if op == "32 MiB" else op
        linear_grpo_loss(hidden, weight, ids, torch.randn(n), memory=memory).loss.backward()
for op in ("32 MiB", "lean", "small", "logprob"):
    if os.fork() == 0:
        step(op, 64, 1000)
        before = peak()
        step(op, 3000, 65536)
        print(json.dumps({op: (peak() - before) / (3000 * 65536 * 4)}), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


@pytest.fixture(scope="module")
def shares() -> dict[str, float]:
    """Peak over the bytes of the whole batch's logits."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return {op: share for line in done.stdout.splitlines() for op, share in json.loads(line).items()}


BOUNDS = {"32 MiB": 0.12, "lean": 0.12, "logprob": 0.12, "small": 0.2}
"""Of the 750 MiB of logits: a budget of 32 or 64 MiB and what surrounds it; small's is 128 MiB."""


@pytest.mark.parametrize("op", BOUNDS)
def test_peak_is_a_small_part_of_the_logits(shares, op):
    assert 0 < shares[op] < BOUNDS[op], f"{shares[op]:.2f} of N*V*4 bytes"
