"""OpenRLHF's Actor on the fused LM head. In a script of your own, two lines:

    from siri_kernels.integrations import openrlhf
    openrlhf.install()

and for `openrlhf.cli.train_ppo_ray`, whose actors live in Ray's workers, one key of the runtime environment:

    ray job submit --runtime-env-json='{"worker_process_setup_hook": "siri_kernels.integrations.openrlhf.install"}' ...

`Actor.forward` then takes log-probs and entropies out of the LM head itself, instead of fp32 logits [B, L, V]: the head
is called as the module it is, so that ZeRO's and FSDP's hooks fire. Where logits themselves are asked for, OpenRLHF's
forward runs. Padding has log-prob and entropy 0. Models that change their logits after the head are refused.
"""

# The trainer's models and batches are whatever it makes of them.
# pyright: basic

from __future__ import annotations

import sys
from typing import Any

import torch

from siri_kernels.integrations.padded import padded_logprob, scales_logits, softcap_of
from siri_kernels.integrations.seams import has, seam, takes, takes_only, tested

tested("openrlhf", "0.11", "0.12")

ARGUMENTS = ("sequences", "action_mask", "attention_mask", "return_output", "allgather_logits", "return_logprobs")
ARGUMENTS += ("ring_attn_group", "packed_seq_lens", "return_entropy")
originals: dict[type, Any] = {}


def score_in_head(model, targets, mask, temperature: float, **inputs):
    """model(**inputs), whose "logits" [..., 2] are the log-prob and the entropy of targets where mask is True."""
    config = model.config.get_text_config()
    if scales_logits(config) or softcap_of(config):
        raise ValueError(f"{type(config).__name__} changes logits after the LM head: siri_kernels.linear_logprob can")
    head = model.get_output_embeddings()
    before = head.__dict__.copy()
    head.forward = lambda hidden: torch.stack(padded_logprob(hidden, head, targets, mask, temperature=temperature), -1)
    try:
        return model(**inputs)
    finally:
        head.__dict__.pop("forward")
        head.__dict__.update({"forward": before["forward"]} if "forward" in before else {})


def forward(
    self: Any,
    sequences: Any,
    action_mask: Any = None,
    attention_mask: Any = None,
    return_output=False,
    allgather_logits=False,
    return_logprobs=False,
    ring_attn_group=None,
    packed_seq_lens=None,
    return_entropy=False,
    **mm_inputs,
):
    """Actor.forward: log-probs of the actions [B, A] (or of every token [B, L - 1] without action_mask)."""
    if (action_mask is None and not return_logprobs) or getattr(self, "is_vlm", False):
        return originals[actor_class(self)](
            self,
            sequences,
            action_mask,
            attention_mask,
            return_output,
            allgather_logits,
            return_logprobs,
            ring_attn_group,
            packed_seq_lens,
            return_entropy,
            **mm_inputs,
        )
    module = sys.modules[actor_class(self).__module__]
    batch, length = sequences.shape
    if self.packing_samples:
        sequences, position_ids, targets, pad, indices = module.unpad_and_slice_tensor(
            sequences, attention_mask, ring_attn_group
        )
        mask, forward_mask = None, None
    else:
        targets, mask, forward_mask = sequences.roll(-1, 1), attention_mask.bool(), attention_mask
        position_ids = (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 1)
    inputs = {"input_ids": sequences, "attention_mask": forward_mask, "position_ids": position_ids}
    output = score_in_head(self.model, targets, mask, self.temperature, **inputs, **mm_inputs)
    logp, entropy = output["logits"].float().unbind(-1)
    if self.packing_samples:
        whole = (ring_attn_group, pad, indices, batch, length)
        logp, entropy = (module.gather_and_pad_tensor(x, *whole) for x in (logp, entropy))
    if return_entropy:
        output.entropy = entropy[:, :-1]
    logp = logp[:, :-1]
    if action_mask is not None:
        logp = logp[:, -action_mask.shape[1] :] * action_mask.float()
    return (logp, output) if return_output else logp


def actor_class(actor) -> type:
    return next(cls for cls in type(actor).__mro__ if cls in originals)


def install(actor: type | None = None) -> None:
    """Give OpenRLHF's Actor (or `actor`, a class like it) this forward; a second call changes nothing."""
    target: Any = actor or seam("openrlhf.models", "Actor")
    if target not in originals:
        takes(target.forward, "OpenRLHF's Actor.forward", *ARGUMENTS[:3], in_order=True)
        takes_only(target.forward, "OpenRLHF's Actor.forward", *ARGUMENTS)
        if getattr(target, "packing_samples", None) is not False:  # a class of one's own may never pack
            helpers = sys.modules[target.__module__]
            has(helpers, helpers.__name__, "unpad_and_slice_tensor", "gather_and_pad_tensor")
        originals[target] = target.forward
        target.forward = forward


def uninstall() -> None:
    actors: list[Any] = list(originals)
    for actor in actors:
        actor.forward = originals.pop(actor)
