"""A GRPO step of your own with transformers: logits and log-softmax, then the same step without logits."""

import torch
from _compare import DEVICE, gradients, largest_difference, measure, report, tiny_qwen2
from siri_kernels.integrations.transformers import policy_loss

model = tiny_qwen2()
ids = torch.randint(3, 8000, (4, 256), device=DEVICE)
attention_mask = torch.ones_like(ids)
completion_mask = (torch.arange(256, device=DEVICE) >= 64).long().expand(4, 256)
advantages = torch.tensor([1.0, -1.0, 0.5, -0.5], device=DEVICE)
results = []


def before():
    model.zero_grad()
    logits = model(input_ids=ids, attention_mask=attention_mask).logits[:, :-1].float()
    logp = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    mask = completion_mask[:, 1:]
    ratio = (logp - logp.detach()).exp()  # on-policy: 1, with the gradient of logp
    loss = -(ratio * advantages[:, None] * mask).sum() / mask.sum()
    loss.backward()
    return loss, gradients(model)


def after():
    model.zero_grad()
    result = policy_loss(model, ids, attention_mask, completion_mask, advantages)
    result.loss.backward()
    return result.loss, gradients(model)


report("plain loop", measure(before), measure(after), largest_difference(before(), after()))
