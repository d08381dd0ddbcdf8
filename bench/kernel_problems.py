"""The problems that the kernel benchmarks time, and the exact answers to them in fp64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from siri_kernels import linear_logprob
from siri_kernels.reference import grpo_loss
from torch import Tensor

SIZES = {
    "tiny": (384, 64, 4001),
    "tiny-96": (96, 64, 4001),
    "tiny-ragged": (381, 64, 4001),
    "1.5b": (32_768, 1536, 151_936),
    "1.5b-2048": (2048, 1536, 151_936),
    "1.5b-4096": (4096, 1536, 151_936),
    "1.5b-8192": (8192, 1536, 151_936),
    "1.5b-ragged": (30_011, 1536, 151_936),
    "7b": (32_768, 3584, 152_064),
    "7b-8192": (8192, 3584, 152_064),
    "7b-ragged": (30_011, 3584, 152_064),
    "yardstick": (8192, 4096, 151_936),
}
"""N packed tokens, D hidden size, V vocabulary: Qwen2-1.5B's and Qwen2-7B's heads, and the shape of TRL's own table of
heads. "ragged": sequences of unequal lengths, and an N that nothing divides"""
SEQUENCES = 8
"""of equal length, so that peers that take padded batches [B, T] waste nothing on padding"""
RAGGED = (1, 2, 3, 5, 8, 13, 21, 47)
"""shares of the tokens, in per cent"""
KINDS = ("peaked", "random", "offset", "dominated")
"""of distribution: most targets are likely, as in text sampled from a trained model; random ones, which flatter kernels
that skip small probabilities; all logits shifted alike by OFFSET nats; another token than the target taking nearly
all"""
OFFSET = 30.0
LOGIT_SHARE = 4
"""functions of logits get 1/4 of the tokens: several copies of [N, V] have to fit"""


@dataclass
class Problem:
    hidden: Tensor
    weight: Tensor
    target_ids: Tensor
    advantages: Tensor
    """one per sequence, [SEQUENCES]"""
    cu_seqlens: Tensor
    old_logp: Tensor
    lengths: tuple[int, ...]

    @property
    def equal(self) -> bool:
        """All sequences are of one length."""
        return len(set(self.lengths)) == 1

    def padded(self, x: Tensor) -> Tensor:
        """Packed [N, ...] as a batch [B, T, ...] without padding."""
        return x.view(len(self.lengths), self.lengths[0], *x.shape[1:])

    @property
    def token_advantages(self) -> Tensor:
        lengths = torch.tensor(self.lengths, device=self.advantages.device)
        return self.advantages.repeat_interleave(lengths, output_size=self.target_ids.numel())

    @cached_property
    def logits(self) -> Tensor:
        """[1, L + 1, V], the shape that ops on padded logits want; the last row belongs to no token."""
        with torch.no_grad():
            z = self.hidden[: self.logit_rows + 1] @ self.weight.T
        return z[None].requires_grad_()

    @property
    def logit_rows(self) -> int:
        return self.target_ids.numel() // LOGIT_SHARE

    def release(self) -> None:
        """Frees the logits; they come back when asked for."""
        self.__dict__.pop("logits", None)
        clear(self)


def lengths_of(n: int, *, ragged: bool) -> tuple[int, ...]:
    if not ragged:
        return (n // SEQUENCES,) * SEQUENCES
    lengths = [n * share // 100 for share in RAGGED]
    return (*lengths[:-1], n - sum(lengths[:-1]))


def problem(
    size: str | tuple[int, int, int], kind: str = "peaked", *, spread: float = 0.05, dtype: torch.dtype | None = None
) -> Problem:
    """bf16 on a GPU, fp32 on a CPU. kind: of KINDS; spread: std of old_logp around the true log-probs."""
    n, d, vocab = SIZES[size] if isinstance(size, str) else size
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = dtype or (torch.bfloat16 if device == "cuda" else torch.float32)
    g = torch.Generator(device).manual_seed(0)
    weight = torch.randn(vocab, d, device=device, generator=g, dtype=torch.float32).mul_(d**-0.5)
    direction = torch.randn(d, device=device, generator=g)
    direction /= direction.norm()
    if kind == "offset":
        weight += direction
    weight = weight.to(dtype)
    target_ids = torch.randint(vocab, (n,), device=device, generator=g)
    hidden = torch.randn(n, d, device=device, generator=g)
    if kind == "peaked":
        confidence = 16 * torch.rand(n, 1, device=device, generator=g)
        hidden = hidden + confidence * weight[target_ids].float()
    elif kind == "offset":
        hidden = hidden + (OFFSET - hidden @ direction)[:, None] * direction
    elif kind == "dominated":
        other = (target_ids + 1 + torch.randint(vocab - 1, (n,), device=device, generator=g)) % vocab
        hidden = hidden + OFFSET * weight[other].float()
    hidden = hidden.to(dtype)
    with torch.no_grad():
        logp = linear_logprob(hidden, weight, target_ids)
    old_logp = logp.float() + spread * torch.randn(n, device=device, generator=g)
    advantages = torch.randn(SEQUENCES, device=device, generator=g)
    lengths = lengths_of(n, ragged=bool(n % SEQUENCES))
    cu_seqlens = torch.tensor((0, *lengths), device=device).cumsum(0).to(torch.int32)
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    return Problem(*leaves, target_ids, advantages, cu_seqlens, old_logp, lengths)


def clear(p: Problem) -> None:
    p.hidden.grad = p.weight.grad = None
    if "logits" in p.__dict__:
        p.logits.grad = None


@dataclass
class Exact:
    """fp64 on the same inputs: log-probs, entropy, and a loss with its gradients."""

    logp: Tensor
    entropy: Tensor
    loss: Tensor
    d_hidden: Tensor
    d_weight: Tensor


def parts(n: int, rows: int) -> list[slice]:
    return [slice(start, min(start + rows, n)) for start in range(0, n, rows)]


def exact_rows(x: Tensor, w: Tensor, target_ids: Tensor, rows: int = 512) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies [N] of fp64 hidden states and weight."""
    logp, entropy = torch.empty(2, x.shape[0], dtype=torch.float64, device=x.device)
    for part in parts(x.shape[0], rows):
        log_p = (x[part] @ w.T).log_softmax(-1)
        logp[part] = log_p.gather(1, target_ids[part, None]).squeeze(1)
        entropy[part] = -(log_p.exp() * log_p).sum(-1)
    return logp, entropy


def exact(p: Problem, coefficients, rows: int = 512) -> Exact:
    """The answer to a loss of log-probs, `coefficients(logp) -> (loss, dL/dlogp)`, by chunks of rows."""
    x, w = p.hidden.detach().double(), p.weight.detach().double()
    logp, entropy = exact_rows(x, w, p.target_ids, rows)
    loss, g = coefficients(logp)
    d_hidden, d_weight = torch.empty_like(x), torch.zeros_like(w)
    for part in parts(x.shape[0], rows):
        dz = (x[part] @ w.T).softmax(-1).mul_(-g[part, None])
        dz.scatter_add_(1, p.target_ids[part, None], g[part, None])
        d_hidden[part] = dz @ w
        d_weight.addmm_(dz.T, x[part])
    return Exact(logp, entropy, loss, d_hidden, d_weight)


def clipped(p: Problem, *, on_policy: bool = False):
    """`coefficients` of the clipped policy loss of the problem, by the specification."""

    def coefficients(logp: Tensor) -> tuple[Tensor, Tensor]:
        leaf = logp.detach().requires_grad_()
        old = None if on_policy else p.old_logp.double()
        loss, _ = grpo_loss(leaf, None, p.advantages, old_logp=old, cu_seqlens=p.cu_seqlens)
        (g,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), g

    return coefficients


def weighted(p: Problem):
    """`coefficients` of mean(-advantage * logp), a loss of one's own."""
    a = p.token_advantages.double()
    return lambda logp: (-(a * logp).mean(), -a / a.numel())


def mean_loss(logp: Tensor) -> tuple[Tensor, Tensor]:
    """`coefficients` of the mean cross-entropy."""
    return -logp.mean(), torch.full_like(logp, -1 / logp.numel())
