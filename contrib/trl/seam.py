"""`fused_logprob` in TRL 1.16: the two places that a pull request would change, as an overridden forward and method.

1. `trl/trainer/utils.py`, `add_fused_lm_head`: the forward takes `coefficients` as well, and then asks `fused_logprob`
   instead of `ChunkedLogProbFunction`; its output has a `carrier`.
2. `trl/trainer/grpo_trainer.py`, `GRPOTrainer._compute_loss`: passes the coefficients of its own clipped loss, and
   hands the gradient on by the carrier. Loss types whose tokens do not know their share yet (sequence ratios, SAPO,
   VESPO, LUSPO, KL, entropy terms) go the way they went.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from fused_logprob import Coefficients, fused_logprob
from torch import Tensor
from torch.nn import functional as F
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import FusedCausalLMOutput


def let_the_head_take_coefficients(model: Any, temperature: float) -> None:
    """Seam 1. `model(..., labels=, fused_lm_head=True, coefficients=)`: log-probs and entropies [B, L - 1] without
    gradient, and in `loss` the carrier."""
    theirs = model.forward

    def forward(self, *args, coefficients: Coefficients | None = None, labels: Any = None, **kwargs):
        if coefficients is None:
            return theirs(*args, labels=labels, **kwargs)
        kwargs.pop("fused_lm_head", None)
        hidden = self.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state[:, :-1]
        labels, head = labels[:, 1:], self.get_output_embeddings()
        mask = labels != -100
        config = self.config.get_text_config()
        result = fused_logprob(
            hidden.reshape(-1, hidden.shape[-1]),
            head.weight,
            labels.clamp(min=0).reshape(-1),
            coefficients,
            bias_V=head.bias,
            rows=mask.reshape(-1).nonzero().squeeze(1),
            temperature=temperature,
            softcap=getattr(config, "final_logit_softcapping", None),
        )
        logp, entropy = (x.view(mask.shape) for x in (result.logp, result.entropy))
        return FusedCausalLMOutput(loss=result.carrier, log_probs=logp, entropy=entropy, label_mask=mask)

    model.forward = types.MethodType(forward, model)


def clipped_coefficients(
    advantages_N: Tensor, old_logp_N: Tensor | None, share_N: Tensor, low: float, high: float
) -> Coefficients:
    """dL/dlogp of sum_i share_i * -min(r_i A_i, clip(r_i, 1 - low, 1 + high) A_i), r_i = exp(logp_i - old_i)."""

    def coefficients(logp: Tensor, _entropy: Tensor, rows: Tensor):
        a = advantages_N[rows]
        ratio = torch.ones_like(logp) if old_logp_N is None else (logp - old_logp_N[rows]).exp()
        inside = ratio * a <= ratio.clamp(1 - low, 1 + high) * a
        return torch.where(inside, -share_N[rows] * ratio * a, 0.0), None

    return coefficients


class FusedLossGRPOTrainer(GRPOTrainer):
    """Seam 2."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        let_the_head_take_coefficients(self.accelerator.unwrap_model(self.model), self.temperature)

    def _knows_its_tokens(self) -> bool:
        plain = self.beta == 0 and self.top_entropy_quantile >= 1 and self.entropy_coef == 0
        plain = plain and not self.use_adaptive_entropy and not self.aux_loss_enabled and self.args.delta is None
        plain = plain and self.off_policy_mask_threshold is None and not self.use_vllm
        return plain and self.loss_type in ("dapo", "grpo", "bnpo", "dr_grpo") and (
            self.importance_sampling_level == "token"
        )  # fmt: skip

    def _share(self, inputs: dict, mask_BT: Tensor) -> Tensor:
        """What each counted token's term is multiplied by in the loss, [B, T]; by the trainer's own rules."""
        steps = self.current_gradient_accumulation_steps if self.model.training else 1.0
        if self.loss_type == "dapo":
            total = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
            return mask_BT / (total * steps / self.args.steps_per_generation if self.model.training else total)
        if self.loss_type == "bnpo":
            return mask_BT / mask_BT.sum().clamp(min=1.0) / steps
        if self.loss_type == "dr_grpo":
            return mask_BT / (mask_BT.shape[0] * self.max_completion_length) / steps
        return mask_BT / mask_BT.sum(1, keepdim=True).clamp(min=1.0) / mask_BT.shape[0] / steps

    def _compute_loss(self, model, inputs):
        if not self._knows_its_tokens():
            return super()._compute_loss(model, inputs)

        def whole(x_BT: Tensor | None) -> Tensor | None:
            """[B, T] of the completions as rows of the head's [B, L - 1]."""
            return None if x_BT is None else F.pad(x_BT, (inputs["prompt_ids"].shape[1] - 1, 0)).reshape(-1)

        mask = (inputs["completion_mask"] * inputs.get("tool_mask", 1)).float()
        a = inputs["advantages"]
        a = (a if a.dim() > 1 else a[:, None]).expand(mask.shape).float()
        clips = (self.epsilon_low, self.epsilon_high)
        old = whole(inputs.get("old_per_token_logps"))
        coefficients = clipped_coefficients(whole(a), old, whole(self._share(inputs, mask)), *clips)
        carriers = []

        def call(**arguments):
            output = model(**arguments, coefficients=coefficients)
            carriers.append(output.loss)
            return output

        value = super()._compute_loss(call, inputs).detach()
        (carrier,) = carriers
        return value + carrier - carrier.detach()
