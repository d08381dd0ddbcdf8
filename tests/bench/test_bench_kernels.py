"""Nobody is timed while computing something else: every contestant that runs on a CPU against fp64, at a tiny size."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
from kernel_check import JUDGES, verdicts
from kernel_contestants import OPS, contestants
from kernel_peers import installed
from kernel_problems import problem

TINY = (64, 16, 97)
ALWAYS = {"siri", "eager"}
WHERE_INSTALLED = {
    "trl.kernels.chunked_logprob": {"trl-full", "trl-chunked"},
    "liger_kernel.ops.fused_linear_scaled_cross_entropy": {"liger-flsce-torch"},
}
EXPECTED = {
    "forward": {"verl-torch-512"},
    "logprob_backward": {"verl-torch-512"},
    "forward_backward": {"verl-torch-512", "siri-small", "siri-lean", "siri-head"},
    "on_policy": {"verl-torch-512"},
}


def test_every_op_has_a_judge():
    assert OPS.keys() == JUDGES.keys()


@pytest.mark.parametrize("kind", ["peaked", "random"])
@pytest.mark.parametrize("op", OPS)
def test_the_contestants_agree(op, kind):
    p = problem(TINY, kind, spread=0.3)
    if "logits" in op and kind == "random":
        p.advantages[0] = -0.7  # the one sequence of these ops, once with each sign
    by_name = verdicts(op, p)
    expected = ALWAYS | EXPECTED.get(op, set())
    if op in EXPECTED:
        expected |= set().union(*(names for module, names in WHERE_INSTALLED.items() if installed(module)))
    if op == "forward_backward" and installed("liger_kernel.chunked_loss.grpo_loss"):
        expected.add("liger-grpo")
    if op.startswith("logits") and installed("trl.trainer.utils"):
        expected.add("trl")
    assert expected <= by_name.keys()
    for name, verdict in by_name.items():
        assert verdict is not None, f"{name} did not run"
        assert verdict.value < 2e-5 and (verdict.gradient or 0) < 2e-5, (name, verdict)


def test_the_clips_and_the_signs_act():
    """A contestant that ignored clips, old_logp or the sign of an advantage would be noticed."""
    p = problem(TINY, spread=0.3)
    assert (p.advantages > 0).any() and (p.advantages < 0).any()
    ratio = (-(p.old_logp - problem(TINY, spread=0.0).old_logp)).exp()
    high = (ratio > 1.28) & (p.token_advantages > 0)
    low = (ratio < 0.8) & (p.token_advantages < 0)
    assert high.sum() > 2 and low.sum() > 2


def test_a_wrong_contestant_is_seen(monkeypatch):
    """Twice the loss, one gradient forgotten, one token off: none passes for the same."""
    import kernel_check

    p = problem(TINY, spread=0.3)
    right = contestants("forward_backward", p)["siri"]

    def no_gradient():
        value = right()
        p.weight.grad = torch.zeros_like(p.weight)
        return value

    def shifted_targets():
        p.target_ids = p.target_ids.roll(1)
        try:
            return right()
        finally:
            p.target_ids = p.target_ids.roll(-1)

    def broken():
        raise RuntimeError("no kernel image")

    wrong = {"twice": lambda: 2 * right() + 1, "no gradient": no_gradient, "shifted": shifted_targets, "right": right}
    wrong["broken"] = broken
    monkeypatch.setattr(kernel_check, "contestants", lambda op, p, peers: wrong)
    by_name = verdicts("forward_backward", p)
    assert by_name.pop("broken") is None
    assert {name for name, verdict in by_name.items() if verdict.same} == {"right"}
