"""TRL's GRPOTrainer on the fused LM head. Change one import:

    from siri_kernels.integrations.trl import FusedGRPOTrainer as GRPOTrainer

or put `FusedGRPO` before your own subclass: `class MyTrainer(FusedGRPO, GRPOTrainer)`.

Log-probs and entropies of the policy and of the reference model then come from `linear_logprob`, and the loss types
dapo, grpo, bnpo, dr_grpo and cispo (token or sequence ratios, two-sided clipping, vLLM importance sampling) from
`linear_grpo_loss`, which forms the gradient in the forward. The rest (KL, entropy bonus and quantile, off-policy mask,
sapo, luspo, vespo, MoE auxiliary loss) and all metrics are TRL's own code on our log-probs. Models that scale their
logits, LM heads under ZeRO-3 or LoRA keep TRL's head. One difference: |log ratio| is clamped to 20 in the loss.
"""

# The trainer's models and batches are whatever it makes of them.
# pyright: basic

from __future__ import annotations

import functools
import inspect
import types
from contextlib import nullcontext
from typing import Any

from siri_kernels.integrations.padded import (
    AGGREGATION,
    clip_options,
    no_autocast,
    padded_grpo_loss,
    padded_logprob,
    scales_logits,
    softcap_of,
)
from siri_kernels.integrations.seams import INSTEAD, has, seam, takes, tested

tested("trl", "1.16", "1.17")

from torch.nn import functional as F  # noqa: E402
from trl.trainer.grpo_trainer import GRPOTrainer  # noqa: E402

FusedCausalLMOutput: Any = seam("trl.trainer.utils", "FusedCausalLMOutput")
takes(FusedCausalLMOutput, "TRL's FusedCausalLMOutput", "loss", "log_probs", "entropy", "label_mask")
takes(GRPOTrainer.compute_loss, "TRL's GRPOTrainer.compute_loss", "model", "inputs", "return_outputs", in_order=True)

READ = ("loss_type", "importance_sampling_level", "epsilon_low", "epsilon_high", "beta", "top_entropy_quantile")
READ += ("off_policy_mask_threshold", "entropy_coef", "use_adaptive_entropy", "aux_loss_enabled", "use_vllm")
READ += ("vllm_importance_sampling_correction", "max_completion_length")
"""what `settings` reads of a trainer: all of it has to be there"""


class LossCall:
    """Loss arguments on their way through `model(...)`: not a container, so that no wrapper casts or moves them."""

    def __init__(self, options: dict):
        self.options, self.loss, self.ran = options, None, False

    def through(self, model):
        """`model` as TRL's loss calls it, which on the way also computes the loss that has a gradient."""

        def call(**inputs):
            outputs = model(**inputs, grpo=self)
            self.loss = outputs.loss
            return outputs

        return call


def add_fused_lm_head(model, temperature: float = 1.0, cast_lm_head_to_fp32: bool = False) -> None:
    """This package's head on a model that has TRL's: `model(..., labels=, fused_lm_head=True)` gives [B, L - 1]."""
    theirs = model.forward
    if "fused_lm_head" not in inspect.signature(theirs, follow_wrapped=False).parameters:
        raise ImportError(f"TRL gave {type(model).__name__} no fused_lm_head: this adapter does not fit; {INSTEAD}")
    config = model.config.get_text_config()
    head_options = {"temperature": temperature, "softcap": softcap_of(config)}
    scaled = scales_logits(config)

    @functools.wraps(type(model).forward)
    def forward(self, *args, fused_lm_head=False, labels: Any = None, grpo: LossCall | None = None, **kwargs):
        head = self.get_output_embeddings()
        router = kwargs.get("output_router_logits", getattr(config, "output_router_logits", False))
        shifted = kwargs.keys() & {"shift_labels", "num_items_in_batch"}
        other = self.base_model is self or hasattr(head, "lora_A") or hasattr(head.weight, "ds_id")
        if not fused_lm_head or scaled or other or router or shifted:
            return theirs(*args, fused_lm_head=fused_lm_head, labels=labels, **kwargs)
        hidden = self.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state[:, :-1]
        hidden, labels = (x.to(head.weight.device) for x in (hidden, labels[:, 1:]))
        mask = labels != -100
        hidden = hidden.float() if cast_lm_head_to_fp32 else hidden
        with no_autocast(hidden) if cast_lm_head_to_fp32 else nullcontext():
            if grpo is None:
                logp, entropy = padded_logprob(hidden, head, labels, mask, **head_options)
                return FusedCausalLMOutput(log_probs=logp, entropy=entropy, label_mask=mask)
            result = padded_grpo_loss(hidden, head, labels, mask, **grpo.options, **head_options)
        grpo.ran = True
        return FusedCausalLMOutput(loss=result.loss, log_probs=result.logp, entropy=result.entropy, label_mask=mask)

    model.forward = types.MethodType(forward, model)


def settings(trainer: Any, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """TRL's loss of this batch as arguments of `padded_grpo_loss`; None where TRL has terms that it lacks."""
    kind = trainer.loss_type
    by_sequence = trainer.importance_sampling_level == "sequence"
    clips = clip_options(kind, by_sequence, trainer.epsilon_low, trainer.epsilon_high, trainer.args.delta)
    if (
        clips is None
        or trainer.beta != 0.0
        or trainer.top_entropy_quantile < 1.0
        or trainer.off_policy_mask_threshold is not None
        or trainer.entropy_coef != 0.0
        or trainer.use_adaptive_entropy
        or trainer.aux_loss_enabled
    ):
        return None

    mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
    advantages = inputs["advantages"]
    advantages = (advantages if advantages.dim() > 1 else advantages[:, None]).expand(mask.shape)
    if trainer.use_vllm and trainer.vllm_importance_sampling_correction:
        advantages = advantages * inputs["importance_sampling_ratio"]  # >= 0: it scales every branch of the clip alike
    training = trainer.model.training
    steps = trainer.current_gradient_accumulation_steps if training else 1
    if kind in ("dapo", "cispo"):
        denominator = inputs["num_items_in_batch"].clamp(min=1.0) / trainer.accelerator.num_processes
        denominator = denominator * steps / trainer.args.steps_per_generation if training else denominator
    else:
        denominator = (mask.sum().clamp(min=1.0) if kind == "bnpo" else mask.shape[0]) * steps

    def next_tokens(x):  # [B, T] of the completion -> [B, L - 1]
        return None if x is None else F.pad(x, (inputs["prompt_ids"].shape[1] - 1, 0))

    return {
        "advantages": next_tokens(advantages.float()),
        "old_logp": next_tokens(inputs.get("old_per_token_logps")),
        "loss_mask": next_tokens(mask),
        "aggregation": AGGREGATION[kind],
        "fixed_length": trainer.max_completion_length if kind == "dr_grpo" else None,
        "denominator": denominator,
        **clips,
    }


class FusedGRPO:
    """Mixin for GRPOTrainer and its subclasses."""

    model: Any
    ref_model: Any
    accelerator: Any
    args: Any
    temperature: float

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        has(self, "TRL's GRPOTrainer", *READ)
        for model in (self.model, self.ref_model):
            if model is not None:
                model = self.accelerator.unwrap_model(model)
                model = model.get_base_model() if hasattr(model, "get_base_model") else model
                add_fused_lm_head(model, self.temperature, self.args.cast_lm_head_to_fp32)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        theirs: Any = super()
        options = settings(self, inputs)
        if options is None:
            return theirs.compute_loss(model, inputs, return_outputs, num_items_in_batch)
        call = LossCall(options)
        value = theirs.compute_loss(call.through(model), inputs, return_outputs, num_items_in_batch)
        return call.loss if call.ran else value


class FusedGRPOTrainer(FusedGRPO, GRPOTrainer):
    """GRPOTrainer with the fused LM head; arguments, config and results are TRL's."""
