"""The peers' Triton kernels that the benchmarks time, verl's as we wrote it down and Liger's own, against fp64."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))
import verl_heads
from kernel_check import verdicts
from kernel_peers import installed
from kernel_problems import problem

from tests.support.kernel_cases import relative

SHAPE = (24, 40, 70)


@pytest.mark.parametrize("op", ["forward", "forward_backward"])
def test_verls_kernels(op, monkeypatch):
    """Several splits of the vocabulary, the last one partly filled and once empty of tiles; a ragged D."""
    monkeypatch.setattr(verl_heads, "TILE", {"BM": 16, "BN": 16, "BK": 16})
    monkeypatch.setattr(verl_heads, "FORWARD_SPLIT", 64)
    monkeypatch.setattr(verl_heads, "BACKWARD_SPLIT", 48)
    for on_tile_edges in (False, True):
        p = problem((24, 48, 96) if on_tile_edges else SHAPE, spread=0.3)
        verdict = verdicts(op, p)["verl-triton"]
        assert verdict.value < 1e-5 and (verdict.gradient or 0) < 1e-5


def test_verls_entropy_has_a_gradient(monkeypatch):
    monkeypatch.setattr(verl_heads, "TILE", {"BM": 16, "BN": 32, "BK": 16})
    monkeypatch.setattr(verl_heads, "BACKWARD_SPLIT", 48)
    p = problem(SHAPE)
    gradients = []
    for head in (verl_heads.TritonSplit, verl_heads.Torch512):
        logp, entropy = head.apply(p.hidden, p.weight, p.target_ids)
        (logp.sum() + 2 * entropy.sum()).backward()
        gradients.append((p.hidden.grad, p.weight.grad))
        p.hidden.grad = p.weight.grad = None
    for x, y in zip(*gradients, strict=True):
        assert relative(x, y) < 5e-5  # both are fp32


@pytest.mark.parametrize("op", ["logits", "logits_backward", "logits_on_policy"])
@pytest.mark.parametrize("advantage", [1.3, -0.7])
def test_ligers_kernels(op, advantage):
    if not installed("liger_kernel.transformers.grpo_loss"):
        pytest.skip("liger-kernel is not installed")
    p = problem((32, 8, 50), spread=0.3)
    p.advantages[0] = advantage
    verdict = verdicts(op, p)["liger" if op == "logits" else "liger-grpo-logits"]
    assert verdict.value < 1e-5 and (verdict.gradient or 0) < 1e-5
