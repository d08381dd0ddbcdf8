"""What both modes have to hold, checked against transformers' own forward pass."""

import copy
from pathlib import Path

import pytest
import torch

from siri.config import Config
from siri.errors import InputError
from siri.model.adapters import initialise, merged_parameters
from siri.model.policy import Policy, load_policy
from siri.rollout import Request
from siri.rollout.engines import make_engine
from siri.train.setup import with_adapter

TEMPERATURE = 0.7


def make(model: Path, folder: Path, **settings):
    """A policy and its vLLM engine, not synced yet."""
    policy = load_policy(str(model), torch.device("cpu"))
    defaults = {"l_max": 48, "l_min": 12, "max_prompt_tokens": 100, "prompts_per_step": 4, "group_size": 4}
    config = Config(model=str(model), data="none", rollout="vllm", temperature=TEMPERATURE, **(defaults | settings))
    if config.lora_rank:
        policy = with_adapter(policy, config)
        initialise(policy.model, config.seed)
    return policy, make_engine(config, policy, folder=folder)


def requests(count: int = 6, n: int = 3, cap: int = 12) -> list[Request]:
    generator = torch.Generator().manual_seed(3)
    return [
        Request(torch.randint(6, 260, (4 + 3 * i,), generator=generator).tolist(), cap + 7 * i, n) for i in range(count)
    ]


def transformers_logp(policy: Policy, prompt: list[int], answer: list[int], temperature: float) -> torch.Tensor:
    """Log-probs of the answer by a plain forward pass of one sequence, with transformers' own attention."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(policy.model.config)  # it keeps which attention it was last used with
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    model.load_state_dict(dict(merged_parameters(policy.model)), strict=False)  # a tied head is not among them
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / temperature, -1).gather(1, ids[0, len(prompt) :, None])[:, 0]


def assert_current(policy: Policy, engine, temperature: float = TEMPERATURE, seed: int = 5) -> None:
    """Responses keep their caps, and their log-probs are those of the policy's present weights."""
    asked, ended, cut = requests(), 0, 0
    for request, group in zip(asked, engine.generate(asked, temperature=temperature, seed=seed), strict=True):
        assert len(group) == request.n
        for completion in group:
            assert 0 < len(completion.token_ids) == len(completion.logp) <= request.max_tokens
            assert completion.truncated == (completion.token_ids[-1] not in policy.stop_ids)
            assert not policy.stop_ids & set(completion.token_ids[:-1]), "sampling went on after the end"
            assert not completion.truncated or len(completion.token_ids) == request.max_tokens
            ended, cut = ended + (not completion.truncated), cut + completion.truncated
            true = transformers_logp(policy, request.prompt_ids, completion.token_ids, temperature or 1.0)
            torch.testing.assert_close(torch.tensor(completion.logp), true, atol=1e-3, rtol=0)
    assert cut, "no response reached its cap"


def step(policy: Policy, lr: float = 2e-2) -> None:
    """One optimizer step that moves every weight."""
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=lr)
    ids = torch.arange(6, 60)[None]
    policy.model(input_ids=ids, labels=ids, layout=_layout(ids)).loss.backward()
    optimizer.step()


def _layout(ids: torch.Tensor):
    from siri.model.attention import PackedLayout

    return PackedLayout.of([ids.shape[1]])


def assert_follows(policy: Policy, engine) -> None:
    """A sync after a step is proved; an engine that was left behind by one is found out."""
    before = engine.generate(requests(), temperature=TEMPERATURE, seed=9)
    step(policy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.backend, "load", lambda weights, version: [None for _ in weights])
        with pytest.raises(InputError, match="does not sample from the trainer's weights"):
            engine.sync()
    engine.sync()
    assert engine.metrics()["fingerprint_gap_max"] < 1e-3
    assert engine.generate(requests(), temperature=TEMPERATURE, seed=9) != before
    assert_current(policy, engine)
