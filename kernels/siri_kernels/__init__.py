"""Fused LM head for reinforcement learning: log-prob, entropy and the clipped GRPO loss of packed tokens, without
materialised logits."""

from siri_kernels.api import grpo_loss, linear_grpo_loss, linear_logprob, logprob_from_logits
from siri_kernels.head import FusedLMHead
from siri_kernels.metrics import METRIC_REDUCTION, GrpoResult, merge_metrics

__version__ = "0.1.0"
__all__ = [
    "METRIC_REDUCTION",
    "FusedLMHead",
    "GrpoResult",
    "grpo_loss",
    "linear_grpo_loss",
    "linear_logprob",
    "logprob_from_logits",
    "merge_metrics",
]
