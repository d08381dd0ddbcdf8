"""The problems and contestants that the kernel benchmarks time: sizes, inputs, our implementations, plain torch,
peers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from siri_kernels import grpo_loss, linear_grpo_loss, linear_logprob
from torch import Tensor

SIZES = {"tiny": (384, 64, 4001), "1.5b": (32768, 1536, 151_936), "7b": (32768, 3584, 152_064)}
"""N packed tokens, D hidden size, V vocabulary; the large ones are Qwen2-1.5B's and Qwen2-7B's heads"""


@dataclass
class Problem:
    hidden: Tensor
    weight: Tensor
    target_ids: Tensor
    advantages: Tensor
    old_logp: Tensor


def problem(size: str, *, peaked: bool = True) -> Problem:
    """bf16 on a GPU, fp32 on a CPU. `peaked`: most targets are likely, as in sampled text; otherwise all of random
    chance, which flatters kernels that skip small probabilities."""
    n, d, vocab = SIZES[size]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    g = torch.Generator(device).manual_seed(0)
    weight = torch.randn(vocab, d, device=device, generator=g, dtype=torch.float32).mul_(d**-0.5).to(dtype)
    target_ids = torch.randint(vocab, (n,), device=device, generator=g)
    hidden = torch.randn(n, d, device=device, generator=g)
    if peaked:
        confidence = 16 * torch.rand(n, 1, device=device, generator=g)
        hidden = hidden + confidence * weight[target_ids].float()
    hidden = hidden.to(dtype)
    with torch.no_grad():
        logp = linear_logprob(hidden, weight, target_ids)
    old_logp = logp + 0.05 * torch.randn(n, device=device, generator=g)
    advantages = torch.randn(n, device=device, generator=g)
    return Problem(hidden.requires_grad_(), weight.requires_grad_(), target_ids, advantages, old_logp)


def clear(p: Problem) -> None:
    p.hidden.grad = p.weight.grad = None


def full_logits(p: Problem) -> tuple[Tensor, Tensor]:
    """What a trainer without fused kernels does: logits in memory, log-softmax in fp32."""
    logp = (p.hidden @ p.weight.T).float().log_softmax(-1)
    with torch.no_grad():
        entropy = -(logp.exp() * logp).sum(-1)
    return logp.gather(-1, p.target_ids[:, None]).squeeze(-1), entropy


def forwards(p: Problem) -> dict[str, Callable[[], object]]:
    """Log-prob and entropy, no gradient."""

    def ours(**options):
        return linear_logprob(p.hidden, p.weight, p.target_ids, return_entropy=True, **options)

    contestants = {"siri": ours, "eager": lambda: full_logits(p)}
    if p.hidden.is_cuda:  # what "auto" does not choose before it has won here
        contestants["siri-anchored"] = lambda: ours(impl="anchored")
    return {name: torch.no_grad()(f) for name, f in contestants.items()}


def steps(p: Problem, *, compiled: bool = False) -> dict[str, Callable[[], object]]:
    """One clipped policy loss, forward and backward, gradients of hidden and weight."""

    def ours(**options):
        clear(p)
        linear_grpo_loss(p.hidden, p.weight, p.target_ids, p.advantages, old_logp=p.old_logp, **options).loss.backward()

    def plain(function=full_logits):
        clear(p)
        logp, _ = function(p)
        grpo_loss(logp, p.old_logp, p.advantages).loss.backward()

    contestants = {"siri": ours, "siri-small": lambda: ours(memory="small"), "siri-lean": lambda: ours(memory="lean")}
    contestants["eager"] = plain
    if p.hidden.is_cuda:
        contestants["siri-anchored"] = lambda: ours(impl="anchored")
    if compiled:
        fast = torch.compile(full_logits)
        contestants["torch.compile"] = lambda: plain(fast)
    return contestants | peers(p)


def peers(p: Problem) -> dict[str, Callable[[], object]]:
    """Installed kernel packages that can compute the same gradient."""
    found = {}
    if importlib.util.find_spec("cut_cross_entropy") and p.hidden.is_cuda:
        from cut_cross_entropy import linear_cross_entropy

        def cce(impl):
            clear(p)
            logp = -linear_cross_entropy(p.hidden, p.weight, p.target_ids, reduction="none", impl=impl)
            grpo_loss(logp, p.old_logp, p.advantages).loss.backward()

        found |= {"cce": lambda: cce("cce"), "cce-exact": lambda: cce("cce_exact")}
    if importlib.util.find_spec("liger_kernel") and p.hidden.is_cuda:
        from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOLoss

        loss = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, epsilon_high=0.28, loss_type="dapo")

        def liger():
            clear(p)
            length = (
                p.hidden.shape[0] // 8
            )  # it takes padded sequences: here 8 of equal length, so that no row is padding
            rows = lambda x: x.view(8, length, *x.shape[1:])  # noqa: E731
            advantages = rows(p.advantages)[:, 0]
            mask = torch.ones(8, length, device=p.hidden.device)
            old = rows(p.old_logp)
            loss(rows(p.hidden), p.weight, rows(p.target_ids), mask, advantages, old_per_token_logps=old)[0].backward()

        found["liger-grpo"] = liger
    return found
