"""Proof that an engine samples from the model that is trained: the engine answers fixed prompts, greedily and at the
temperature of the run, and the trainer scores the answers with its own weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from siri.model.adapters import head_share
from siri.model.attention import PackedLayout
from siri.model.fsdp import full
from siri.model.policy import Policy, packed_hidden
from siri.rollout import Completion

PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 2, 24, 32
"""Size of a fingerprint: cheap enough for every sync, long enough for every layer and for positions to matter."""
ROWS = 256
"""Tokens whose logits are there at once, however many engines there are."""

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Mean gap of a sound fingerprint, nats: fp32 measured 1e-5; 16 bits not measured on a GPU yet, so generous."""


@dataclass(frozen=True, slots=True)
class Gap:
    """How far an engine's log-probs are from the trainer's, nats."""

    mean: float
    max: float
    greedy: float
    """How much more likely the trainer's best token is than the one the engine took as the best, at most."""

    def within(self, tolerance: float) -> bool:
        """The mean within `tolerance`; single tokens may be ten times as far off, as rounding has tails."""
        return self.mean <= tolerance and max(self.max, self.greedy) <= 10 * tolerance  # False for NaN


def fixed_prompts(policy: Policy) -> list[list[int]]:
    """Token ids spread over the vocabulary, the same at every sync; none of them ends a response."""
    size = min(policy.model.config.vocab_size, len(policy.tokenizer))
    ids = [token for token in range(size) if token not in policy.stop_ids]
    return [
        [ids[(row * 7919 + column * 104729 + 13) % len(ids)] for column in range(PROMPT_TOKENS)]
        for row in range(PROMPTS)
    ]


Answer = tuple[list[int], Completion, float]
"""What an engine made of a prompt: (prompt, completion, temperature). Temperature 0 is greedy, with log-probs at
temperature 1."""


@torch.no_grad()
def gaps(policy: Policy, answers: Mapping[str, Sequence[Answer]]) -> dict[str, Gap]:
    """Compare the answers of each engine with the trainer's model, all of them in one packed forward pass. With a
    sharded model it is a collective: every rank gives the same answers."""
    everything = [answer for of_engine in answers.values() for answer in of_engine]
    if not everything:
        return {}
    lengths = [len(completion.token_ids) for _, completion, _ in everything]
    logp_R, best_R = policy.call(_scored, everything)
    told_R = torch.tensor([logp for _, completion, _ in everything for logp in completion.logp])
    difference_R, greedy_R = (logp_R - told_R).abs(), best_R - logp_R
    by_engine, start = {}, 0
    for name, of_engine in answers.items():
        greedy = [0.0]
        first = start
        for (_, _, temperature), length in zip(of_engine, lengths, strict=False):
            if not temperature:
                greedy.append(float(greedy_R[start : start + length].max()))
            start += length
        lengths = lengths[len(of_engine) :]
        mine_R = difference_R[first:start]
        by_engine[name] = Gap(float(mine_R.mean()), float(mine_R.max()), max(greedy))
    return by_engine


def _scored(model: Any, answers: Sequence[Answer]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every token of the completions, in order, its log-prob and that of the likeliest in its place: [R] each, fp32,
    on the CPU."""
    device = model.lm_head.weight.device
    rows, targets, temperatures, end = [], [], [], 0
    for prompt_ids, completion, temperature in answers:
        first = end + len(prompt_ids) - 1
        end += len(prompt_ids) + len(completion.token_ids)
        rows += range(first, end - 1)
        targets += completion.token_ids
        temperatures += [temperature or 1.0] * len(completion.token_ids)
    ids_N = torch.tensor([token for prompt, completion, _ in answers for token in (*prompt, *completion.token_ids)])
    layout = PackedLayout.of([len(prompt) + len(completion.token_ids) for prompt, completion, _ in answers], device)
    hidden_RD = packed_hidden(model, ids_N.to(device), layout)[torch.tensor(rows, device=device)]
    # whole already, but for a head that vocab_parallel has cut
    weight_VD = full(model.lm_head.weight.to(hidden_RD.dtype))
    bias_V = None if model.lm_head.bias is None else full(model.lm_head.bias.to(hidden_RD.dtype))
    target_R1, temperature_R1 = (torch.tensor(of_all, device=device)[:, None] for of_all in (targets, temperatures))
    share = head_share(model.lm_head, hidden_RD)
    logps, bests = [], []
    for some in torch.arange(len(rows), device=device).split(ROWS):
        logits_LV = torch.nn.functional.linear(hidden_RD[some], weight_VD, bias_V)
        if share is not None:
            u_RK, up_VK = share
            logits_LV = logits_LV + torch.nn.functional.linear(u_RK[some], up_VK)
        logp_LV = torch.log_softmax(logits_LV.float() / temperature_R1[some], dim=-1)
        logps.append(logp_LV.gather(1, target_R1[some])[:, 0])
        bests.append(logp_LV.amax(1))
    return torch.cat(logps).cpu(), torch.cat(bests).cpu()
