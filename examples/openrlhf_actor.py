"""OpenRLHF's Actor: `install()` (in Ray: the worker_process_setup_hook) takes log-probs out of the LM head itself."""

import torch
from _compare import DEVICE, gradients, largest_difference, measure, report, tiny_qwen2
from _head_example import stand_in


class Actor(torch.nn.Module):
    """What OpenRLHF 0.11's Actor computes without packing, as published."""

    packing_samples = False

    def __init__(self, model, temperature):
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, sequences, action_mask, attention_mask, return_output=False, return_entropy=False):
        position_ids = attention_mask.cumsum(-1) - 1
        output = self.model(sequences, attention_mask=attention_mask, position_ids=position_ids)
        logits = output["logits"].float() / self.temperature
        if return_entropy:
            output.entropy = (logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1))[:, :-1]
        logp = logits.log_softmax(-1).gather(-1, sequences.roll(-1, 1)[..., None]).squeeze(-1)[:, :-1]
        return logp[:, -action_mask.shape[1] :] * action_mask, output


actor = Actor(tiny_qwen2(), 0.8)
ids = torch.randint(3, 8000, (4, 256), device=DEVICE)
call = {"action_mask": torch.ones(4, 192, device=DEVICE), "attention_mask": torch.ones_like(ids)}


def step():
    actor.zero_grad()
    logp, output = actor(ids, **call, return_output=True, return_entropy=True)
    (logp.sum() + 0.01 * output.entropy.sum()).backward()
    return logp, output.entropy, gradients(actor)


before, before_cost = step(), measure(step)
with stand_in("openrlhf", "0.11.2", {}):
    from siri_kernels.integrations import openrlhf

    openrlhf.install(Actor)
report("OpenRLHF Actor", before_cost, measure(step), largest_difference(before, step()))
