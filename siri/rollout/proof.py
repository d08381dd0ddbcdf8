"""Proof that an engine samples from the model that is trained: the engine answers fixed prompts, greedily and at the
temperature of the run, and the trainer scores the answers with its own weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from siri.model.attention import PackedLayout
from siri.model.fsdp import full
from siri.model.policy import Policy, packed_hidden
from siri.rollout import Completion

PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 2, 24, 32
"""Size of a fingerprint: cheap enough for every sync, long enough for every layer and for positions to matter."""


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


@torch.no_grad()
def gap(policy: Policy, answers: Sequence[tuple[list[int], Completion, float]]) -> Gap:
    """Compare answers, as (prompt, completion, temperature), with the trainer's model. Temperature 0 is greedy, with
    log-probs at temperature 1. With a sharded model it is a collective: every rank gives the same answers."""
    differences, greedy = [], [0.0]
    for prompt_ids, completion, temperature in answers:
        logp_LV = policy.call(_log_softmax, [*prompt_ids, *completion.token_ids], len(prompt_ids), temperature or 1.0)
        tokens_L1 = torch.tensor(completion.token_ids, device=logp_LV.device)[:, None]
        own_L = logp_LV.gather(1, tokens_L1)[:, 0]
        differences.append((own_L - torch.tensor(completion.logp, device=own_L.device)).abs())
        if not temperature:
            greedy.append((logp_LV.amax(1) - own_L).max().item())
    every = torch.cat(differences)
    return Gap(every.mean().item(), every.max().item(), max(greedy))


def _log_softmax(model, ids: list[int], start: int, temperature: float) -> torch.Tensor:
    """Log-probs [L, V], fp32, of the tokens from `start` on."""
    ids_N = torch.tensor(ids, device=model.lm_head.weight.device)
    hidden_LD = packed_hidden(model, ids_N, PackedLayout.of([len(ids)], ids_N.device))[start - 1 : -1]
    bias = None if model.lm_head.bias is None else full(model.lm_head.bias.to(hidden_LD.dtype))
    # whole already, but for a head that vocab_parallel has cut
    logits_LV = torch.nn.functional.linear(hidden_LD, full(model.lm_head.weight.to(hidden_LD.dtype)), bias)
    return torch.log_softmax(logits_LV.float() / temperature, dim=-1)
