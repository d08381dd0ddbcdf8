"""liger-kernel 0.8's LigerFusedLinearGRPOLoss, arguments and results alike. Change one import:

    from siri_kernels.integrations.liger import LigerFusedLinearGRPOLoss

Nothing of Liger is needed. Padded [B, T] batches are packed inside. dapo, grpo, bnpo, dr_grpo and cispo without a KL
term form their gradient in the forward; a KL term (beta != 0), sapo, luspo and vespo are formulas on log-probs
(8NDV instead of 6NDV). chunk_size and compiled are accepted and mean nothing here.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from siri_kernels.integrations.formulas import luspo_counts_padding, policy_loss
from siri_kernels.integrations.padded import AGGREGATION, clip_options, padded_grpo_loss, padded_logprob
from siri_kernels.sharding import all_reduce
from siri_kernels.validation import given

LOSS_TYPES = (*AGGREGATION, "sapo", "luspo", "vespo")


class LigerFusedLinearGRPOLoss(nn.Module):
    """(loss, metrics) of hidden states and an LM head; metrics are [mean KL if beta != 0, clipped fraction]."""

    def __init__(
        self,
        beta: float = 0.04,
        compiled: bool = True,
        use_ref_model: bool = True,
        chunk_size: int = 1,
        epsilon_low: float = 0.2,
        epsilon_high: float = 0.2,
        loss_type: str = "dapo",
        max_completion_length: int | None = None,
        importance_sampling_level: str = "token",
        sapo_temperature_pos: float = 1.0,
        sapo_temperature_neg: float = 1.05,
        temperature: float = 1.0,
        delta: float | None = None,
        use_bias_correction_kl: bool = False,
        vespo_k_pos: float = 2.0,
        vespo_lambda_pos: float = 3.0,
        vespo_k_neg: float = 3.0,
        vespo_lambda_neg: float = 2.0,
    ):
        super().__init__()
        for name, value in (("pos", sapo_temperature_pos), ("neg", sapo_temperature_neg)):
            if value <= 0:
                raise ValueError(f"sapo_temperature_{name} must be positive, got {value}")
        if delta is not None and delta <= 0:
            raise ValueError(f"delta must be positive, got {delta}")
        self.importance_sampling_level, self.by_sequence = (
            importance_sampling_level,
            importance_sampling_level == "sequence",
        )
        self.told_of_padding = False
        self.beta, self.use_ref_model, self.loss_type, self.delta = beta, use_ref_model, loss_type, delta
        self.low, self.high, self.max_completion_length = epsilon_low, epsilon_high, max_completion_length
        self.temperature, self.use_bias_correction_kl = temperature, use_bias_correction_kl
        self.sapo = (sapo_temperature_pos, sapo_temperature_neg)
        self.vespo = ((vespo_k_pos, vespo_lambda_pos), (vespo_k_neg, vespo_lambda_neg))

    def forward(
        self,
        _input: Tensor,
        lin_weight: Tensor,
        selected_token_ids: Tensor,
        attention_mask: Tensor,
        advantages: Tensor,
        bias: Tensor | None = None,
        ref_per_token_logps: Tensor | None = None,
        old_per_token_logps: Tensor | None = None,
        ref_input: Tensor | None = None,
        ref_weight: Tensor | None = None,
        ref_bias: Tensor | None = None,
        vllm_is_ratio: Tensor | None = None,
        num_items_in_batch: Tensor | float | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """_input [B, T, D], lin_weight [V, D], selected_token_ids and attention_mask [B, T], advantages [B];
        ref_/old_per_token_logps [B, T]; vllm_is_ratio [B], [B, 1] or [B, T]."""
        self._check()
        mask = attention_mask.bool()
        if self.use_ref_model and self.beta and ref_per_token_logps is None and ref_input is None:
            raise ValueError("use_ref_model=True needs ref_per_token_logps, or ref_input and ref_weight")
        if self.use_ref_model and ref_per_token_logps is not None and ref_input is not None:
            warnings.warn(
                "Both ref_per_token_logps and ref_input are provided. Using ref_per_token_logps.", stacklevel=2
            )
        batch = (_input.reshape(*mask.shape, -1), lin_weight, selected_token_ids, mask)
        weights = torch.ones_like(advantages)[:, None] if vllm_is_ratio is None else vllm_is_ratio
        weights = weights[:, None] if weights.dim() == 1 else weights
        clips = clip_options(self.loss_type, self.by_sequence, self.low, self.high, self.delta)
        divisor = self._divisor(mask, num_items_in_batch)
        if clips is not None and self.beta == 0.0:
            result = padded_grpo_loss(
                *batch,
                (advantages[:, None] * weights).expand(mask.shape),
                old_logp=old_per_token_logps,
                bias=bias,
                temperature=self.temperature,
                aggregation=AGGREGATION[self.loss_type],
                fixed_length=self.max_completion_length if self.loss_type == "dr_grpo" else None,
                denominator=divisor,
                **clips,
            )
            return result.loss, (result.metrics["clip_low_fraction"] + result.metrics["clip_high_fraction"],)

        if luspo_counts_padding(self, weights):
            self._tell_of_padding()
            batch = (*batch[:3], torch.ones_like(mask))
        logp, _ = padded_logprob(*batch, bias=bias, temperature=self.temperature)
        reference = logp.detach()
        if self.use_ref_model and self.beta:
            reference = ref_per_token_logps
            if reference is None:
                with torch.no_grad():
                    reference, _ = padded_logprob(
                        given(ref_input).reshape(*mask.shape, -1),
                        ref_weight,
                        *batch[2:],
                        bias=ref_bias,
                        temperature=self.temperature,
                    )
        old = logp.detach() if old_per_token_logps is None else old_per_token_logps
        return policy_loss(self, logp, old, reference, mask, advantages[:, None], weights, divisor)

    def _check(self) -> None:
        """Settings that exclude each other are refused at the first call, as Liger does: ValueError in one line."""
        if self.loss_type not in LOSS_TYPES:
            raise ValueError(f"loss_type must be one of {', '.join(LOSS_TYPES)}, got {self.loss_type!r}")
        if self.importance_sampling_level not in ("token", "sequence"):
            raise ValueError(
                f"importance_sampling_level must be token or sequence, got {self.importance_sampling_level!r}"
            )
        if self.by_sequence and self.loss_type in ("cispo", "sapo", "vespo"):
            raise ValueError(
                f"Sequence-level importance sampling is not supported for loss_type={self.loss_type!r}: "
                "importance_sampling_level='token'"
            )
        if self.loss_type == "dr_grpo" and self.max_completion_length is None:
            raise ValueError("loss_type='dr_grpo' divides by max_completion_length: pass it")

    def _tell_of_padding(self) -> None:
        if not self.told_of_padding:
            warnings.warn(
                "loss_type='luspo' with a KL term or weights per token averages over padding, as Liger 0.8 does "
                "and TRL 1.16 does not: the loss depends on the length to which a batch is padded",
                stacklevel=3,
            )
            self.told_of_padding = True

    def _divisor(self, mask: Tensor, items: Tensor | float | None) -> Tensor | int:
        """What the sum of token terms is divided by: tokens of this batch, of all ranks' share, or sequences."""
        if self.loss_type in ("dapo", "cispo", "vespo"):
            distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
            total = torch.as_tensor(mask.sum() if items is None else items, device=mask.device, dtype=torch.float32)
            if distributed:
                if items is None:
                    all_reduce(total, None)
                total = total / torch.distributed.get_world_size()
            return total.clamp(min=1)
        return mask.sum().clamp(min=1) if self.loss_type == "bnpo" else mask.shape[0]
