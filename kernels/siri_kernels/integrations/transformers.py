"""A training loop of your own around a transformers causal LM:

    from siri_kernels.integrations.transformers import policy_loss
    policy_loss(model, input_ids, attention_mask, completion_mask, advantages, old_logp=old_logp).loss.backward()

Batches are padded [B, L], on either side; only the scored positions reach the head. `model.lm_head` may be a
`FusedLMHead` (needed for LoRA on the head, and under FSDP2 when the head is a module of its own).
"""

# Models are whatever transformers makes of them.
# pyright: basic

from __future__ import annotations

from torch import Tensor

from siri_kernels.integrations.padded import padded_grpo_loss, padded_logprob, scales_logits, softcap_of
from siri_kernels.integrations.seams import has, tested
from siri_kernels.metrics import GrpoResult

tested("transformers", "5.17", "6")


def token_logprobs(
    model, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor | None = None, *, temperature=1.0
) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy [B, L - 1] of every next token, both differentiable, 0 where it is not scored: where
    completion_mask [B, L] (default: attention_mask) is 0 at that token."""
    batch = scored(model, input_ids, attention_mask, completion_mask)
    return padded_logprob(*batch, softcap=softcap_of(model.config.get_text_config()), temperature=temperature)


def policy_loss(
    model, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor, advantages: Tensor, **options
) -> GrpoResult:
    """`linear_grpo_loss` of a padded batch; gradients reach the whole model.

    input_ids, attention_mask and completion_mask (1 at response tokens) [B, L]; advantages [B], or [B, L - 1] per next
    token, as are old_logp and rollout_logp in options and logp and entropy in the result.
    """
    batch = scored(model, input_ids, attention_mask, completion_mask)
    return padded_grpo_loss(*batch, advantages, softcap=softcap_of(model.config.get_text_config()), **options)


def scored(model, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor | None):
    """hidden [B, L - 1, D], head, next tokens [B, L - 1] and which of them are scored."""
    has(model, type(model).__name__, "config", "base_model", "get_output_embeddings")
    config = model.config.get_text_config()
    if scales_logits(config):
        raise ValueError(
            f"{type(config).__name__} scales its logits: divide the temperature by that scale and call linear_logprob"
        )
    hidden = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    mask = attention_mask if completion_mask is None else attention_mask * completion_mask
    return hidden[:, :-1], model.get_output_embeddings(), input_ids[:, 1:], mask[:, 1:].bool()
