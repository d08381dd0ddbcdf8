"""Who computes what: for every function of siri_kernels' public API, ours and every peer's way to the same numbers.

| op | function | compared |
|---|---|---|
| forward | `linear_logprob` without gradient | log-prob and entropy |
| logprob_backward | `linear_logprob` under a loss of one's own | the loss, dX, dW |
| forward_backward | `linear_grpo_loss`, `FusedLMHead.grpo_loss` | the clipped loss, dX, dW |
| on_policy | `linear_grpo_loss` without old_logp | dX, dW |
| cross_entropy | the same with every advantage 1 | dX, dW of the mean cross-entropy |
| logits | `logprob_from_logits` without gradient | log-prob and entropy |
| logits_backward | `logprob_from_logits` and `grpo_loss` | dlogits |
| logits_on_policy | the same without old_logp | dlogits |
| token_loss | `grpo_loss` | the loss, dL/dlogp |

`contestants(op, problem, peers)` gives name -> function without arguments; forward functions return (logp, entropy or
None), the others a loss, with the gradients left in the problem's leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from kernel_logit_peers import logit_losses, readers, undifferentiable_readers
from kernel_peers import (
    Head,
    Peers,
    compiled,
    cross_entropies,
    eager_loss,
    heads,
    losses,
    tf32,
    with_loss,
)
from kernel_problems import Problem, clear
from siri_kernels import FusedLMHead, grpo_loss, linear_grpo_loss, linear_logprob, logprob_from_logits
from torch import Tensor

Contestants = dict[str, Callable[[], object]]

SLOW_IN_FP32 = ("liger-grpo",)
"""Make their gradient GEMMs in fp32: timed with TF32 off and on."""
NOBODY: Peers = frozenset()


def contestants(op: str, p: Problem, peers: Peers = None) -> Contestants:
    """Those of `peers` that run here and ours beside them, of ours only what "auto" takes; with nobody all of ours,
    with None everybody."""
    by_name = OPS[op](p, peers)
    return {name: function for name, function in by_name.items() if not peers or name == "siri" or not is_ours(name)}


def is_ours(name: str) -> bool:
    return name.split("-")[0].split(" ")[0] == "siri"


def backward(p: Problem, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def step() -> Tensor:
        clear(p)
        value = loss()
        value.backward()
        return value.detach()

    return step


def with_tf32(function: Callable) -> Callable:
    def inside():
        with tf32():
            return function()

    return inside


def ours_in(p: Problem) -> dict[str, dict]:
    """Our implementations: the one that auto chooses, and on a GPU both that it chooses from."""
    both = {"siri-anchored": {"impl": "anchored"}, "siri-fallback": {"impl": "fallback"}}
    return {"siri": {}} | (both if p.hidden.is_cuda else {})


def forward(p: Problem, peers: Peers) -> Contestants:
    def of(head: Head) -> Callable:
        return torch.no_grad()(lambda: head(p.hidden, p.weight, p.target_ids))

    def ours(options: dict) -> Head:
        return lambda *tensors: linear_logprob(*tensors, return_entropy=True, **options)

    mine = {name: ours(options) for name, options in ours_in(p).items()}
    return {name: of(head) for name, head in (mine | heads(p, peers)).items()}


def logprob_backward(p: Problem, peers: Peers) -> Contestants:
    a = p.token_advantages

    def of(head: Head) -> Callable:
        return backward(p, lambda: -(a * head(p.hidden, p.weight, p.target_ids)[0]).mean())

    def ours(options: dict) -> Head:
        return lambda *tensors: linear_logprob(*tensors, return_entropy=True, **options)

    mine = {name: ours(options) for name, options in ours_in(p).items()}
    return {name: of(head) for name, head in (mine | heads(p, peers)).items()}


def policy_loss(p: Problem, *, on_policy: bool = False, **options) -> Callable[[], Tensor]:
    """Ours, forward and backward."""
    old = None if on_policy else p.old_logp
    options = {"old_logp": old, "cu_seqlens": p.cu_seqlens, **options}
    return backward(p, lambda: linear_grpo_loss(p.hidden, p.weight, p.target_ids, p.advantages, **options).loss)


def forward_backward(p: Problem, peers: Peers) -> Contestants:
    by_name = {name: policy_loss(p, **options) for name, options in ours_in(p).items()}
    by_name |= {"siri-small": policy_loss(p, memory="small"), "siri-lean": policy_loss(p, memory="lean")}
    head = FusedLMHead(p.weight)  # the leaf itself, so that the gradient lands where everybody's does
    options = {"old_logp": p.old_logp, "cu_seqlens": p.cu_seqlens}
    by_name["siri-head"] = backward(p, lambda: head.grpo_loss(p.hidden, p.target_ids, p.advantages, **options).loss)
    for name, peer in heads(p, peers).items():
        by_name[name] = backward(p, lambda peer=peer: with_loss(peer, p))
    for name, loss in losses(p, peers).items():
        by_name[name] = backward(p, lambda loss=loss: loss(p))
    if p.hidden.is_cuda:
        by_name |= {f"{name}-tf32": with_tf32(by_name[name]) for name in SLOW_IN_FP32 if name in by_name}
    return by_name


def on_policy(p: Problem, peers: Peers) -> Contestants:
    by_name = {name: policy_loss(p, on_policy=True, **options) for name, options in ours_in(p).items()}
    for name, peer in heads(p, peers).items():
        by_name[name] = backward(p, lambda peer=peer: with_loss(peer, p, on_policy=True))
    return by_name


def cross_entropy(p: Problem, peers: Peers) -> Contestants:
    ones = replace(p, advantages=torch.ones_like(p.advantages))  # shares the leaves
    by_name = {name: policy_loss(ones, on_policy=True, **options) for name, options in ours_in(p).items()}
    for name, loss in cross_entropies(p, peers).items():
        by_name[name] = backward(p, lambda loss=loss: loss(p))
    return by_name


def first_rows(p: Problem) -> tuple[Tensor, Tensor]:
    """Logits [L, V], a view of p.logits, and their targets."""
    return p.logits[0, :-1], p.target_ids[: p.logit_rows]


def logits(p: Problem, peers: Peers) -> Contestants:
    def of(reader: Callable) -> Callable:
        return torch.no_grad()(lambda: reader(*first_rows(p)))

    by_name = {"siri": of(lambda z, y: logprob_from_logits(z, y, return_entropy=True))}
    by_name |= {name: of(reader) for name, reader in readers(p, peers).items()}
    return by_name | undifferentiable_readers(p, peers)


def logits_backward(p: Problem, peers: Peers, *, on_policy: bool = False) -> Contestants:
    old = None if on_policy else p.old_logp[: p.logit_rows]

    def of(reader: Callable) -> Callable:
        def loss() -> Tensor:
            logp, _ = reader(*first_rows(p))
            return grpo_loss(logp, old, p.advantages[:1].expand(logp.numel())).loss

        return backward(p, loss)

    by_name = {"siri": of(lambda z, y: logprob_from_logits(z, y, return_entropy=True))}
    by_name |= {name: of(reader) for name, reader in readers(p, peers).items()}
    return by_name | {name: backward(p, loss) for name, loss in logit_losses(p, peers, on_policy=on_policy).items()}


def shifted(p: Problem) -> Tensor:
    """Log-probs some of whose ratios leave the clips."""
    return p.old_logp + 0.3 * torch.cos(torch.arange(p.old_logp.numel(), device=p.old_logp.device))


def token_loss(p: Problem, peers: Peers) -> Contestants:
    logp = shifted(p).requires_grad_()
    tokens = p.token_advantages

    def of(loss: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, Tensor]]:
        def step() -> tuple[Tensor, Tensor]:
            logp.grad = None
            value = loss()
            value.backward()
            return value.detach(), logp.grad

        return step

    by_name = {"siri": of(lambda: grpo_loss(logp, p.old_logp, p.advantages, cu_seqlens=p.cu_seqlens).loss)}
    if peers is None or "eager" in peers:
        by_name["eager"] = of(lambda: eager_loss(logp, p.old_logp, tokens))
    if p.hidden.is_cuda and (peers is None or "torch.compile" in peers):
        by_name["torch.compile"] = of(lambda: compiled(eager_loss)(logp, p.old_logp, tokens))
    return by_name


OPS: dict[str, Callable[[Problem, Peers], Contestants]] = {
    "forward": forward,
    "logprob_backward": logprob_backward,
    "forward_backward": forward_backward,
    "on_policy": on_policy,
    "cross_entropy": cross_entropy,
    "logits": logits,
    "logits_backward": logits_backward,
    "logits_on_policy": lambda p, peers: logits_backward(p, peers, on_policy=True),
    "token_loss": token_loss,
}
FLOORS = {
    "forward": "gemm",
    "logprob_backward": "gemms",
    "forward_backward": "gemms",
    "on_policy": "gemms",
    "cross_entropy": "gemms",
}
"""The GEMMs that no implementation of an op can do without: one, or three. The other ops have none."""
