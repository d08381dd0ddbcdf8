"""What the operators take beside tensors: one settings object each, made of the parts that they share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from siri_kernels.chunked import Needs, compute_dtype
from siri_kernels.loss.spec import LossSettings
from siri_kernels.rows.protocol import Head
from siri_kernels.sharding import Shard, resolve_group


@dataclass(frozen=True)
class HeadSettings:
    """What happens to the logits of an LM head."""

    temperature: float = 1.0
    """where no tensor [N] is given"""
    softcap: float | None = None
    logit_dtype: str = "fp32"

    def head(self, weight: Tensor, bias: Tensor | None, temperature_N: Tensor | None) -> Head:
        temperature = self.temperature if temperature_N is None else temperature_N.to(compute_dtype(weight.dtype))
        return Head(weight, bias, temperature, self.softcap, self.logit_dtype)


@dataclass(frozen=True)
class Placement:
    """How and where the work is done; no number of the result is meant to depend on it."""

    impl: str
    """what `selection.select` returned"""
    budget: int
    """bytes of the logits of a chunk"""
    forward_all: bool = True
    """rows outside `keep` get log-probs, too"""
    vocab_start: int = 0
    columns: int = 0
    """what `sharding.plan_columns` returned"""
    group: str | None = None
    """name of the process group of the vocabulary's shards"""

    @property
    def whole(self) -> bool:
        """This rank holds the whole vocabulary."""
        return self.group is None

    def shard(self) -> Shard:
        return Shard(self.vocab_start, resolve_group(self.group), self.columns)


@dataclass(frozen=True)
class GrpoSettings:
    """Of `linear_grpo`."""

    head: HeadSettings
    loss: LossSettings
    placement: Placement
    needs: Needs
    late_weight: bool = False
    """dW is formed in the backward, in the weight's dtype, of the E that a single chunk leaves"""


@dataclass(frozen=True)
class WeightSettings:
    """Of `linear_grpo_weight`."""

    vocab: int
    frozen: int
    plain: bool = False
    """without kernels"""


@dataclass(frozen=True)
class ScaleSettings:
    """Of `scaled`."""

    dtype: str
    """torch's name of it"""


@dataclass(frozen=True)
class TokenSettings:
    """Of `grpo_tokens`."""

    loss: LossSettings


@dataclass(frozen=True)
class LogprobSettings:
    """Of `linear_logprob`."""

    head: HeadSettings
    placement: Placement
    frozen: int = 0
    """leading columns of the weight that have no gradient"""


@dataclass(frozen=True)
class LogprobBackwardSettings:
    """Of `linear_logprob_backward`."""

    head: HeadSettings
    placement: Placement
    needs: Needs
    fp32_weight: bool
    """dW in fp32, for a main_grad"""


@dataclass(frozen=True)
class LogitsSettings:
    """Of `logits_logprob` and its backward."""

    impl: str
    temperature: float = 1.0


def split_temperature(temperature: float | Tensor) -> tuple[float, Tensor | None]:
    return (1.0, temperature) if isinstance(temperature, Tensor) else (float(temperature), None)


def detached(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach()


def as_tensor(denominator: float | Tensor | None, like: Tensor) -> Tensor | None:
    """A 0-dim tensor; a number is filled in on the device, because copying it there would synchronise."""
    if denominator is None:
        return None
    if isinstance(denominator, Tensor):
        return denominator.detach().reshape(())
    return torch.full((), float(denominator), dtype=torch.float64, device=like.device)
