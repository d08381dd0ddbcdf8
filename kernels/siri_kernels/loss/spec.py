"""The options of the loss: one object, checked once, that every implementation reads; and which metrics they give."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict, TypeVar

import torch
from torch import Tensor

from siri_kernels.defaults import IMPORTANCE_CAPS, LOSS_DEFAULTS, by_name
from siri_kernels.metrics import METRIC_REDUCTION
from siri_kernels.validation import number, one_of, tensor

LOSSES = tuple(LOSS_DEFAULTS)
AGGREGATIONS = ("token_mean", "seq_mean", "seq_sum", "seq_mean_fixed")
IMPORTANCE = tuple(IMPORTANCE_CAPS)
Auto = Literal["auto"]
Function = TypeVar("Function", bound=Callable[..., object])


class LossOptions(TypedDict, total=False):
    """`LossSettings` as keywords of a function, for whoever checks types."""

    loss: str
    clip_low: float | Auto | None
    clip_high: float | Auto | None
    dual_clip: float | None
    importance: str
    importance_low: float
    importance_cap: float | Auto
    aggregation: str
    fixed_length: float | None
    entropy_coef: float


@dataclass(frozen=True)
class LossSettings:
    """The numbers and names of the loss; `linear_grpo_loss` says what is minimised, `by_name` what its defaults are."""

    loss: str = "grpo"
    """ "grpo", "gspo" (sequence ratios) or "cispo" (the clipped ratio as a weight) """
    clip_low: float | None = 0.2
    """ratios below 1 - clip_low are clipped; None = no bound"""
    clip_high: float | None = 0.28
    """ratios above 1 + clip_high are clipped; None = no bound"""
    dual_clip: float | None = None
    """the term of a negative advantage A is at most -dual_clip A; not for "cispo" """
    importance: str = "none"
    """weight against rollout / trainer mismatch: "none", "tis" or "icepop" """
    importance_low: float = 0.5
    """the least weight that "icepop" keeps"""
    importance_cap: float = 2.0
    """the largest weight that "icepop" keeps, and at which "tis" cuts"""
    aggregation: str = "token_mean"
    """ "token_mean", "seq_mean", "seq_sum" or "seq_mean_fixed" """
    fixed_length: float | None = None
    """divisor of every sequence's sum, with "seq_mean_fixed" and only with it"""
    entropy_coef: float = 0.0
    """entropy bonus per token, in units of the loss per nat"""

    @property
    def ratio_low(self) -> float:
        return -math.inf if self.clip_low is None else 1 - self.clip_low

    @property
    def ratio_high(self) -> float:
        return math.inf if self.clip_high is None else 1 + self.clip_high

    def check(self) -> None:
        """A ValueError names the option that is out of its bounds or does not go with another."""
        one_of("loss", self.loss, LOSSES)
        one_of("importance", self.importance, IMPORTANCE)
        one_of("aggregation", self.aggregation, AGGREGATIONS)
        number("clip_low", self.clip_low, least=0, optional=True)
        number("clip_high", self.clip_high, least=0, optional=True)
        number("dual_clip", self.dual_clip, above=1, optional=True)
        number("importance_low", self.importance_low, least=0)
        number("importance_cap", self.importance_cap, above=0)
        number("entropy_coef", self.entropy_coef)
        number("fixed_length", self.fixed_length, above=0, optional=True)
        if self.importance_low > self.importance_cap:
            raise ValueError(
                f"importance_low={self.importance_low} is above importance_cap={self.importance_cap}; swap or widen "
                "them"
            )
        if self.dual_clip is not None and self.loss == "cispo":
            raise ValueError("dual_clip does not apply to loss='cispo', whose ratio carries no gradient; leave it None")
        if (self.aggregation == "seq_mean_fixed") != (self.fixed_length is not None):
            raise ValueError(
                "fixed_length goes with aggregation='seq_mean_fixed', and only with it; pass both or neither"
            )

    def check_tensors(
        self,
        n: int,
        advantages: Tensor,
        *,
        old_logp: Tensor | None,
        rollout_logp: Tensor | None,
        mask: Tensor | None,
        cu_seqlens: Tensor | None,
        denominator: float | Tensor | None,
        like: Tensor,
    ) -> None:
        """The same for what comes with N tokens: shapes, dtypes, devices, and what these options need."""
        if cu_seqlens is None:
            if self.loss == "gspo" or self.aggregation != "token_mean":
                which = "loss='gspo'" if self.loss == "gspo" else f"aggregation={self.aggregation!r}"
                raise ValueError(f"{which} works on sequences: pass cu_seqlens, int offsets [S+1] from 0 to N")
        else:
            tensor("cu_seqlens", cu_seqlens, like=like, kinds="int")
            if cu_seqlens.dim() != 1 or cu_seqlens.numel() == 0:
                raise ValueError(f"cu_seqlens must be offsets [S+1] from 0 to N, got shape {list(cu_seqlens.shape)}")
        tensor("advantages", advantages, like=like, kinds="float")
        shape = tuple(advantages.shape)
        if shape != (n,) and (cu_seqlens is None or shape != (cu_seqlens.numel() - 1,)):
            hint = (
                "pass cu_seqlens for one per sequence"
                if cu_seqlens is None
                else f"or [{cu_seqlens.numel() - 1}], one per sequence"
            )
            raise ValueError(f"advantages must have shape [{n}], one per token, {hint}; got {list(advantages.shape)}")
        for name, x in (("old_logp", old_logp), ("rollout_logp", rollout_logp)):
            if x is not None:
                tensor(name, x, like=like, shape=(n,), kinds="float")
        if mask is not None:
            tensor("mask", mask, like=like, shape=(n,), kinds="bool")
        if self.importance != "none" and rollout_logp is None:
            raise ValueError(
                f"importance={self.importance!r} corrects for the rollout's log-probs: pass rollout_logp [N]"
            )
        check_denominator(denominator, like)


def check_denominator(denominator: float | Tensor | None, like: Tensor) -> None:
    if not isinstance(denominator, Tensor):
        number("denominator", denominator, above=0, optional=True)
        return
    if denominator.numel() != 1 or denominator.dtype == torch.bool or denominator.is_complex():
        raise ValueError(f"denominator must be one number, got shape {list(denominator.shape)} {denominator.dtype}")
    if denominator.device != like.device:
        raise ValueError(f"denominator is on {denominator.device} and the tokens on {like.device}; move it with .to()")


def checked(options: LossOptions) -> LossSettings:
    """The settings that a function's keywords name; TypeError for a keyword that is none, ValueError for a value."""
    for name in options:
        if name not in LossSettings.__dataclass_fields__:
            raise TypeError(
                f"unexpected keyword argument {name!r}: the options of the loss are "
                f"{', '.join(LossSettings.__dataclass_fields__)}"
            )
    meant = by_name(options.get("loss", LossSettings.loss), options.get("importance", LossSettings.importance))
    given: dict[str, Any] = {name: value for name, value in options.items() if name not in meant or value != "auto"}
    settings = LossSettings(**(meant | given))
    settings.check()
    return settings


def with_loss_options(function: Function) -> Function:
    """`function(..., **options)` with the options of the loss and their defaults in its signature, for `help` and
    `inspect`."""
    signature = inspect.signature(function)
    *parameters, _ = signature.parameters.values()
    automatic = by_name(LossSettings.loss, LossSettings.importance)
    for field in fields(LossSettings):
        kind, default = inspect.Parameter.KEYWORD_ONLY, "auto" if field.name in automatic else field.default
        annotation = LossOptions.__annotations__[field.name].__forward_arg__
        parameters.append(inspect.Parameter(field.name, kind, default=default, annotation=annotation))
    setattr(function, "__signature__", signature.replace(parameters=parameters))  # noqa: B010  (no static attribute)
    return function


def metric_names(settings: LossSettings, rollout: bool, entropy: bool) -> list[str]:
    """Names of the metrics that a loss returns, in the order of METRIC_REDUCTION."""
    absent: set[str] = set()
    if settings.dual_clip is None:
        absent.add("dual_clip_fraction")
    if not entropy:
        absent.add("entropy_mean")
    if not rollout:
        absent |= {"mismatch_k1", "mismatch_k3", "mismatch_max", "importance_mean"}
    if settings.importance == "none":
        absent.add("importance_clipped_fraction")
    return [name for name in METRIC_REDUCTION if name not in absent]
