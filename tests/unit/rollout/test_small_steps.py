"""What makes a token of the embedded engine cheap changes no bit of it."""

import random

import pytest
import torch
from transformers import DynamicCache

from siri.demo import MODEL
from siri.model.policy import load_policy
from siri.rollout import NotFinite, Request
from siri.rollout.kv_cache import reserved_cache
from siri.rollout.local import LocalRollout, _multinomial


def test_a_draw_is_torchs_multinomial():
    logits = torch.randn(64, 300, generator=torch.Generator().manual_seed(0)) * 4
    logits[:, 7] = -torch.inf
    probability = logits.softmax(-1)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    for _ in range(5):
        here = _multinomial(probability, generators[0])
        there = torch.multinomial(probability, 1, generator=generators[1])[:, 0]
        assert torch.equal(here, there) and not bool((here == 7).any())
    assert torch.equal(*(torch.rand(3, generator=generator) for generator in generators)), "and as many numbers"


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_is_told(bad):
    probability = torch.full((2, 4), 0.25)
    probability[1, 2] = bad
    with pytest.raises(NotFinite):
        _multinomial(probability, torch.Generator())


def test_the_cache_holds_what_transformers_holds():
    draw = torch.Generator().manual_seed(1)
    here, there = reserved_cache(1, 9), DynamicCache()
    for tokens in (3, 1, 1, 6):  # the last goes beyond what was reserved
        new = [torch.randn(4, 2, tokens, 5, generator=draw) for _ in range(2)]
        for a, b in zip(here.update(*new, 0), there.update(*new, 0), strict=True):
            assert torch.equal(a, b)
        assert here.get_seq_length() == there.get_seq_length()
        rows = torch.tensor([3, 0, 0, 2])
        here.batch_select_indices(rows)
        there.batch_select_indices(rows)
        past = here.layers[0].keys.data_ptr()
    here, grown = reserved_cache(1, 9), [torch.zeros(1, 2, 1, 5)] * 2
    here.update(*grown, 0)
    here.update(*grown, 0)
    past = here.layers[0].keys.data_ptr()
    here.update(*grown, 0)
    assert here.layers[0].keys.data_ptr() == past, "a token copies no past"


@pytest.mark.parametrize("alike", [True, False])
def test_a_token_through_the_layers_is_a_token_through_the_model(alike):
    """Logits bit for bit, with and without padding."""
    policy = load_policy(str(MODEL), torch.device("cpu"))
    engine = LocalRollout(policy, cache_tokens=10**6)
    rng = random.Random(0)
    prompts = [[rng.randrange(4, 300) for _ in range(6 if alike else 3 + number)] for number in range(4)]
    with torch.no_grad():
        _, cache, seen_BL, position_B = engine._prefill(prompts, 8)
        past = DynamicCache()
        position_BL = (seen_BL.cumsum(1) - 1).clamp(min=0)
        ids_BL = torch.zeros_like(seen_BL)
        for row, prompt in enumerate(prompts):
            ids_BL[row, -len(prompt) :] = torch.tensor(prompt)
        engine._forward(ids_BL, seen_BL, position_BL, past)
        for step in range(4):
            token_B = torch.tensor([5 + step, 6, 7, 8])
            seen_BL = torch.cat([seen_BL, seen_BL.new_ones(4, 1)], dim=1)
            position_B = position_B + 1
            mask = None if alike else seen_BL.bool()
            here = engine._next(token_B, mask, position_B, cache)
            there = engine._forward(token_B[:, None], seen_BL, position_B[:, None], past)
            assert torch.equal(here, there)


def test_rows_that_finish_early_leave_the_others_as_they_are():
    """Caps of one row do not change what another says up to there, the batch having shrunk meanwhile."""
    policy = load_policy(str(MODEL), torch.device("cpu"))
    engine = LocalRollout(policy, cache_tokens=10**6)
    prompts = [[4 + n for n in range(length)] for length in (4, 5, 6, 7)]
    long, short = (
        engine.generate([Request(ids, cap) for ids, cap in zip(prompts, caps, strict=True)], temperature=0.0, seed=0)
        for caps in ((20, 20, 20, 20), (20, 2, 2, 2))
    )
    assert list(short[0][0].token_ids) == list(long[0][0].token_ids)
    for (full,), (cut,) in list(zip(long, short, strict=True))[1:]:
        assert list(cut.token_ids) == list(full.token_ids)[:2]
