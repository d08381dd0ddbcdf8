"""Every contestant's answer against fp64: nobody is timed while computing something else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from kernel_contestants import contestants, first_rows, shifted
from kernel_peers import Peers, first_line
from kernel_problems import Exact, Problem, clear, clipped, exact, mean_loss, weighted
from siri_kernels.reference import grpo_loss, logprob_and_entropy
from torch import Tensor

SAME = {"value": 0.3, "gradient": 0.2}
"""Further away it is another function, not a rounding: logits in bf16 cost up to 0.1 of a log-prob and 0.02 of a
gradient, and filters of small probabilities a little more."""


@dataclass(frozen=True)
class Verdict:
    value: float
    """largest error of a log-prob or an entropy, or the error of the loss; 0 where the op's value is not compared"""
    gradient: float | None
    """larger relative L2 error of the gradients"""

    @property
    def same(self) -> bool:
        return self.value <= SAME["value"] and (self.gradient or 0) <= SAME["gradient"]

    @property
    def error(self) -> float:
        return self.value if self.gradient is None else self.gradient


def relative(x: Tensor, expected: Tensor) -> float:
    return float((x.double() - expected).norm() / expected.norm())


def verdicts(op: str, p: Problem, peers: Peers = None) -> dict[str, Verdict | None]:
    """Contestant -> verdict; None: it cannot run here (out of memory, or this shape is not for it)."""
    judge = JUDGES[op](p)
    by_name: dict[str, Verdict | None] = {}
    for name, function in contestants(op, p, peers).items():
        try:
            clear(p)
            by_name[name] = judge(function())
        except Exception as error:  # peers refuse shapes and machines with whatever they like
            print(f"{op}: {name} does not run here: {first_line(error)}")
            by_name[name] = None
    clear(p)
    return by_name


def values_and_entropy(logp: Tensor, entropy: Tensor) -> Callable:
    def judge(outcome) -> Verdict:
        mine, my_entropy = outcome
        error = float((mine.double() - logp).abs().max())
        if my_entropy is not None:
            error = max(error, float((my_entropy.double() - entropy).abs().max()))
        return Verdict(error, None)

    return judge


def loss_and_gradients(p: Problem, answer: Exact, *, value: bool = True) -> Callable:
    def judge(loss: Tensor) -> Verdict:
        gradients = ((p.hidden.grad, answer.d_hidden), (p.weight.grad, answer.d_weight))
        error = float((loss.double() - answer.loss).abs()) if value else 0.0
        return Verdict(error, max(relative(x, y) for x, y in gradients))

    return judge


def judge_forward(p: Problem) -> Callable:
    answer = exact(p, weighted(p))
    return values_and_entropy(answer.logp, answer.entropy)


def judge_logits(p: Problem) -> Callable:
    z, y = first_rows(p)
    return values_and_entropy(*logprob_and_entropy(z.detach().double(), y))


def judge_logits_backward(p: Problem, *, on_policy: bool = False) -> Callable:
    z, y = first_rows(p)
    leaf = z.detach().double().requires_grad_()
    logp, _ = logprob_and_entropy(leaf, y)
    old = None if on_policy else p.old_logp[: y.numel()].double()
    expected, _ = grpo_loss(logp, None, p.advantages[:1].expand(y.numel()), old_logp=old)
    (gradient,) = torch.autograd.grad(expected, leaf)
    expected = expected.detach()

    def judge(loss: Tensor) -> Verdict:
        outside = p.logits.grad[0, -1].abs().max()
        error = relative(p.logits.grad[0, :-1], gradient) + float(outside)
        return Verdict(float((loss.double() - expected).abs()), error)

    return judge


def judge_tokens(p: Problem) -> Callable:
    leaf = shifted(p).double().requires_grad_()
    expected, _ = grpo_loss(leaf, None, p.advantages, old_logp=p.old_logp.double(), cu_seqlens=p.cu_seqlens)
    (gradient,) = torch.autograd.grad(expected, leaf)
    expected = expected.detach()
    return lambda outcome: Verdict(float((outcome[0].double() - expected).abs()), relative(outcome[1], gradient))


JUDGES: dict[str, Callable[[Problem], Callable]] = {
    "forward": judge_forward,
    "logprob_backward": lambda p: loss_and_gradients(p, exact(p, weighted(p))),
    "forward_backward": lambda p: loss_and_gradients(p, exact(p, clipped(p))),
    "on_policy": lambda p: loss_and_gradients(p, exact(p, clipped(p, on_policy=True))),
    # the policy loss of advantages 1 is -1, whatever the cross-entropy
    "cross_entropy": lambda p: loss_and_gradients(p, exact(p, mean_loss), value=False),
    "logits": judge_logits,
    "logits_backward": judge_logits_backward,
    "logits_on_policy": lambda p: judge_logits_backward(p, on_policy=True),
    "token_loss": judge_tokens,
}
