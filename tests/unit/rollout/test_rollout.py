"""The embedded engine: what it returns is what the trainer will score."""

import contextlib
import warnings

import pytest
import torch

import siri.train.run
from siri.cli import main
from siri.errors import InputError
from siri.model import attention
from siri.model.attention import PackedLayout
from siri.model.policy import packed_hidden
from siri.rollout import Request, engines
from siri.rollout.local import LocalRollout, cache_name
from tests.support.tiny import VOCAB, tiny_policy


def engine(cache_tokens: int = 10**6, **options) -> LocalRollout:
    return LocalRollout(tiny_policy(**options), cache_tokens=cache_tokens)


def requests(count: int = 7, n: int = 5, max_tokens: int = 40) -> list[Request]:
    torch.manual_seed(3)
    return [Request(torch.randint(3, VOCAB, (3 + 2 * i,)).tolist(), max_tokens + i, n) for i in range(count)]


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_logp_is_that_of_the_sampling_distribution(kind, temperature):
    rollout = engine(kind=kind)
    asked = requests()
    for request, completions in zip(asked, rollout.generate(asked, temperature=temperature, seed=1), strict=True):
        assert len(completions) == request.n
        for completion in completions:
            ids = torch.tensor(request.prompt_ids + completion.token_ids)
            hidden = packed_hidden(rollout.policy.model, ids, PackedLayout.of([len(ids)]))
            logp = torch.log_softmax(rollout.policy.model.lm_head(hidden) / temperature, -1)
            start = len(request.prompt_ids)
            expected_logp = logp[start - 1 : -1].gather(1, ids[start:, None])[:, 0]
            torch.testing.assert_close(expected_logp, torch.tensor(completion.logp), rtol=1e-4, atol=2e-5)


def test_caps_and_stops():
    rollout = engine()
    asked = requests(max_tokens=25)
    ended = 0
    for request, completions in zip(asked, rollout.generate(asked, temperature=1.0, seed=4), strict=True):
        for completion in completions:
            ids = completion.token_ids
            assert len(ids) == len(completion.logp) <= request.max_tokens
            assert 2 not in ids[:-1], "sampling went on after the end"
            assert completion.truncated == (ids[-1] != 2)
            assert not completion.truncated or len(ids) == request.max_tokens
            ended += not completion.truncated
    assert 0 < ended < 35, "the test needs both kinds"


def test_same_seed_same_answers_and_waves_do_not_change_the_format():
    asked = requests()
    whole = engine().generate(asked, temperature=1.0, seed=9)
    assert whole == engine().generate(asked, temperature=1.0, seed=9)
    assert whole != engine().generate(asked, temperature=1.0, seed=10)
    finished = []
    waves = engine(cache_tokens=200).generate(asked, temperature=1.0, seed=9, progress=finished.append)
    assert [len(completions) for completions in waves] == [5] * 7
    assert sum(finished) == 35


def test_greedy_does_not_depend_on_who_shares_the_batch():
    """Left padding, sharing of prompts and rows leaving the batch must not change what a row computes."""
    asked = requests(n=1)
    together = engine().generate(asked, temperature=0, seed=0)
    alone = [engine().generate([request], temperature=0, seed=5)[0] for request in asked]
    assert [group[0].token_ids for group in together] == [group[0].token_ids for group in alone]
    for group, group_alone in zip(together, alone, strict=True):
        torch.testing.assert_close(torch.tensor(group[0].logp), torch.tensor(group_alone[0].logp), rtol=1e-4, atol=1e-5)


def test_the_cache_goes_by_the_name_that_the_model_knows():
    class Before:
        def forward(self, input_ids, past_key_values=None, **kwargs): ...

    class Since:
        def forward(self, input_ids, cache=None, **kwargs): ...

    class Someday:
        def forward(self, input_ids, memory=None, **kwargs): ...

    assert (cache_name(Before()), cache_name(Since())) == ("past_key_values", "cache")
    with pytest.raises(InputError, match=r"^Someday of .* \(input_ids, memory, kwargs\); .* use --rollout vllm$"):
        cache_name(Someday())


def test_sampling_asks_for_nothing_deprecated():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine().generate(requests(2, n=2), temperature=1.0, seed=1)


def test_frequencies_match_the_distribution():
    """4,000 first tokens against the model's own probabilities: chi-square over the likely tokens."""
    rollout = engine()
    prompt = [5, 9, 11, 4]
    answers = rollout.generate([Request(prompt, 1, 4000)], temperature=0.8, seed=2)[0]
    hidden = packed_hidden(rollout.policy.model, torch.tensor(prompt), PackedLayout.of([4]))[-1]
    p = torch.softmax(rollout.policy.model.lm_head(hidden) / 0.8, -1).detach()
    counts = torch.bincount(torch.tensor([completion.token_ids[0] for completion in answers]), minlength=VOCAB)
    likely = p * 4000 > 10
    statistic = float((((counts - 4000 * p) ** 2) / (4000 * p))[likely].sum())
    freedom = int(likely.sum())
    assert freedom > 20
    assert statistic < freedom + 6 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("command", ["train", "eval"])
def test_an_engine_is_closed_when_a_command_fails(command, tmp_path, monkeypatch, capsys):
    """Weights that lie in files for servers would stay behind."""
    closed = []

    class Failing(LocalRollout):
        def sync(self):
            raise InputError("no weights today")

        def close(self):
            closed.append(True)

    monkeypatch.setattr(siri.train.run, "make_engine", lambda config, policy, **_: Failing(policy, cache_tokens=9))
    monkeypatch.setattr(engines, "make_engine", lambda config, policy, **_: Failing(policy, cache_tokens=9))
    arguments = {
        "train": ["train", "demo", "--run-dir", str(tmp_path / "run")],
        "eval": ["eval", "siri:demo/model", "--data", "siri:demo/heldout.jsonl", "--template", "plain", "--cap", "9"],
    }
    assert main(arguments[command]) == 2
    assert closed and "no weights today" in capsys.readouterr().err


def test_every_token_is_sampled_with_kernels_for_any_shape(monkeypatch):
    """A plan for each length of the cache takes longer than the token."""
    inside, shapes = [], []

    @contextlib.contextmanager
    def any_shape(device):
        inside.append(device)
        yield
        inside.pop()

    dense = torch.nn.functional.scaled_dot_product_attention

    def attend(query, key, *args, **options):
        shapes.append((key.shape[2], len(inside)))
        return dense(query, key, *args, **options)

    monkeypatch.setattr(attention, "any_shape", any_shape)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    engine().generate([Request([1, 2, 3], n=2, max_tokens=6)], temperature=1.0, seed=0)
    assert len({length for length, _ in shapes}) > 2, "the cache grows"
    assert all(depth == 1 for _, depth in shapes) and not inside
