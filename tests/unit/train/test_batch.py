"""Rollout batches: grading under the cap, overlong policies, dynamic sampling, advantages."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from siri.advantages import group_advantages
from siri.config import Config
from siri.data.prompts import PromptSet
from siri.data.sampler import Sampler
from siri.rewards.pool import RewardBatch
from siri.rewards.shaping import soft_penalty
from siri.rollout import Completion
from siri.runtime.ranks import Ranks, from_bytes, to_bytes
from siri.runtime.stopwatch import Stopwatch
from siri.train.collect import Collector
from siri.train.groups import Group, from_arrays, rollout_metrics, to_arrays
from siri.train.samples import make_samples


def config(**settings) -> Config:
    base = {
        "prompts_per_step": 4,
        "group_size": 3,
        "mini_batch_prompts": 2,
        "l_max": 10,
        "l_min": 5,
        "overlong_buffer": 4,
    }
    return Config(**{**base, **settings})


class FakeEngine:
    """Answers prompt [p] with responses of lengths p, p+1, ...; a cap cuts them."""

    independent = True

    def __init__(self):
        self.calls = []

    def expected(self, prompts, cap):
        return None

    def generate(self, requests, *, temperature, seed, progress=None, done=None):
        self.calls.append(([request.prompt_ids[0] for request in requests], seed))
        answers = []
        for request in requests:
            wanted = [request.prompt_ids[0] + i for i in range(request.n)]
            lengths = [min(length, request.max_tokens) for length in wanted]
            answers.append(
                [
                    Completion([7] * length, [-1.0] * length, length < want)
                    for length, want in zip(lengths, wanted, strict=True)
                ]
            )
        return answers


class FakeGrader:
    """Right when the text's length is one of the numbers in the answer; "late5" times out on a text of that length."""

    def score(self, texts, answers):
        rewards = [float(str(len(text)) in answer.split()) for text, answer in zip(texts, answers, strict=True)]
        lost = {place for place, answer in enumerate(answers) if f"late{len(texts[place])}" in answer.split()}
        rewards = [0.0 if place in lost else reward for place, reward in enumerate(rewards)]
        return RewardBatch(rewards, timeouts=len(lost), timed_out=lost)


POLICY = SimpleNamespace(decode=lambda ids: "x" * len(ids))


def run(settings: Config, prompts: PromptSet, cap: int = 6, **options):
    engine = FakeEngine()
    watch = Stopwatch(torch.device("cpu"))
    sampler = Sampler(len(prompts.ids), 0)
    collector = Collector(settings, POLICY, engine, FakeGrader(), prompts, sampler, watch, **options)
    groups = collector.collect(0, cap)
    return groups, engine


def prompt_set(*pairs) -> PromptSet:
    return PromptSet([[length] for length, _ in pairs], [answer for _, answer in pairs], 0, 0)


def test_truncated_responses_score_zero_unless_told_otherwise():
    prompts = prompt_set(*[(5, "6")] * 4)  # lengths 5, 6, 7 -> the last is cut to 6, where "6" would be right
    scores = {mode: run(config(overlong=mode), prompts)[0][0] for mode in ("zero", "mask", "grade", "soft")}
    assert scores["zero"].scores == scores["mask"].scores == [0, 1, 0]
    assert scores["grade"].scores == [0, 1, 1]
    assert scores["soft"].scores == [0, 1, 1]
    # half of DAPO's penalty, which is for scores of -1 and 1
    assert scores["soft"].rewards == pytest.approx([0 - 3 / 8, 1 - 1 / 2, 1 - 1 / 2])
    masked = make_samples(config(overlong="mask"), [scores["mask"]])[0]
    assert [sample.counted for sample in masked] == [True, True, False]
    assert all(sample.counted for sample in make_samples(config(), [scores["zero"]])[0])


def test_soft_penalty_is_dapos():
    assert [soft_penalty(n, 100, 40) for n in (10, 60, 61, 80, 100)] == pytest.approx([0, 0, -1 / 40, -0.5, -1])
    assert soft_penalty(3, 6, 4096) == pytest.approx(-0.5), "a buffer longer than the cap shrinks to it"


def test_kimi_length_reward_ranks_a_group_and_never_pays_a_wrong_response_for_brevity():
    group = run(config(length_reward="kimi", length_weight=0.5), prompt_set(*[(3, "3 5")] * 4), cap=9)[0][0]
    assert group.scores == [1, 0, 1], "scores stay what was right"
    assert group.rewards == pytest.approx([1 + 0.25, 0, 1 - 0.25])
    short_but_wrong = run(config(length_reward="kimi"), prompt_set(*[(3, "5")] * 4), cap=9)[0][0]
    assert short_but_wrong.rewards == pytest.approx([0, 0, 1 - 0.5])
    plain = run(config(), prompt_set(*[(3, "3 5")] * 4), cap=9)[0][0]
    assert plain.rewards == plain.scores


def test_dynamic_sampling_refills_by_accuracy():
    # prompts of length 3 are mixed (one of 3, 4, 5 right), those of length 2 never right
    prompts = prompt_set(*[(3, "4"), (2, "99")] * 6)
    groups, engine = run(config(dynamic_sampling=True), prompts)
    trained = [group for group in groups if group.trained]
    assert len(trained) == 4 and all(len(set(group.scores)) == 2 for group in trained)
    assert all(len(set(group.scores)) == 1 for group in groups if not group.trained)
    assert len(engine.calls) > 1 and len({seed for _, seed in engine.calls}) == len(engine.calls)
    assert rollout_metrics(groups)["groups_dropped"] == len(groups) - 4
    plain, engine = run(config(), prompts)
    assert len(plain) == 4 and len(engine.calls) == 1


def test_dynamic_sampling_gives_up_after_its_rounds():
    groups, engine = run(config(dynamic_sampling=True, dynamic_sampling_rounds=3), prompt_set(*[(2, "99")] * 5))
    assert len(engine.calls) == 3 and not any(group.trained for group in groups)
    assert make_samples(config(), groups) == []


def test_groups_travel_between_ranks_bit_for_bit():
    """As they would travel: flat arrays, no object among them, through bytes."""
    draw = random.Random(0)

    def group(prompt: int, *lengths: int, **options) -> Group:
        completions = [
            Completion(
                [draw.randrange(2**31 - 1) for _ in range(length)],
                torch.randn(length).tolist(),  # what engines give: fp32 as Python floats
                bool(draw.randrange(2)),
            )
            for length in lengths
        ]
        scores = [draw.random() for _ in lengths]  # fp64
        return Group(
            [draw.randrange(99) for _ in range(prompt)], completions, scores, [x / 3 for x in scores], **options
        )

    for groups in (
        [],
        [group(1, 1)],
        [group(5, 3, 0, 7, timeouts=2, errors=1, undecided=3), group(2, 1, 1, trained=False), group(4, 9, 2, 4, 4)],
    ):
        arrays = to_arrays(groups)
        assert not any(array.dtype.hasobject for array in arrays.values())
        assert arrays["response_ids"].dtype == np.int32 and arrays["logp"].dtype == np.float32
        told = from_arrays(from_bytes(to_bytes(arrays)))
        assert told == groups
        assert all(type(completion.truncated) is bool for group in told for completion in group.completions)


def test_a_rank_gets_what_the_others_sampled():
    """Two ranks in turn: what the second collects is what both sampled, whoever sent it."""
    prompts = prompt_set(*[(3, "4"), (2, "3")] * 2)
    sent = []

    class Rank(Ranks):
        def gather_arrays(self, arrays):
            sent.append(arrays)
            return list(sent)

        def gather(self, value):
            return [value, value]

    run(config(), prompts, ranks=Rank(0, 2))
    groups, _ = run(config(), prompts, ranks=Rank(1, 2))
    alone, _ = run(config(), prompts)
    assert groups == alone and len(groups) == 4


def test_mini_batches_hold_whole_groups():
    prompts = prompt_set((3, "4"), (3, "3"), (4, "5"), (2, "9"))
    groups, _ = run(config(), prompts)
    batches = make_samples(config(), groups)
    assert [len(batch) for batch in batches] == [6, 6]
    for group, start in zip(groups, (0, 3, 0, 3), strict=True):
        batch = batches[0 if group in groups[:2] else 1]
        assert [sample.prompt_ids for sample in batch[start : start + 3]] == [group.prompt_ids] * 3


@pytest.mark.parametrize(
    ("prompts", "most", "sizes"),
    [(65, 64, [33, 32]), (128, 64, [64, 64]), (130, 64, [44, 43, 43]), (5, 64, [5]), (64, 64, [64]), (7, 1, [1] * 7)],
)
def test_mini_batches_are_of_like_size(prompts, most, sizes):
    completion = Completion([7], [-1.0], False)
    groups = [Group([i], [completion] * 2, [0.0, 1.0], [0.0, 1.0]) for i in range(prompts)]
    batches = make_samples(config(mini_batch_prompts=most), groups)
    assert [len(batch) // 2 for batch in batches] == sizes
    assert [sample.prompt_ids[0] for batch in batches for sample in batch[::2]] == list(range(prompts))


def test_advantages_against_the_formula():
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [0.1, 0.1, 0.1, 0.1]], dtype=torch.float64)
    got = group_advantages(rewards)
    for row, want in zip(rewards[:2], got[:2], strict=True):
        mean = sum(row.tolist()) / 4
        std = (sum((value - mean) ** 2 for value in row.tolist()) / 3) ** 0.5
        torch.testing.assert_close(want, (row - mean) / (std + 1e-6))
    assert torch.equal(got[2:], torch.zeros(2, 4, dtype=torch.float64))
    torch.testing.assert_close(group_advantages(rewards, norm="none")[0], rewards[0] - 0.25)
    with pytest.raises(ValueError, match="at least 2"):
        group_advantages(torch.ones(3, 1))
    with pytest.raises(ValueError, match="norm"):
        group_advantages(rewards, norm="max")


def test_what_could_not_be_graded_in_time_is_out_of_the_loss_and_of_the_comparison():
    """Lengths 3, 4, 5, of which 3 and 5 are right; the grading of one took too long."""
    settings = config(length_reward="kimi", group_size=3)
    whole, late, two_left, none = (
        run(settings, prompt_set(*[(3, answer)] * 4), cap=9)[0][0]
        for answer in ("3 5", "3 5 late5", "3 5 late4", "late3 late4 late5")
    )
    assert (whole.timed_out, late.timed_out, none.timed_out) == ((), (2,), (0, 1, 2))
    assert late.rewards == pytest.approx([1 + 0.5, -0.5, 0.0]), "the longest that was graded is the longest"
    for group, places in ((late, [0, 1]), (two_left, [0, 2])):
        samples = make_samples(settings, [group])[0]
        assert [place for place, sample in enumerate(samples) if sample.counted] == places
        wanted = group_advantages(torch.tensor([[group.rewards[place] for place in places]], dtype=torch.float64))[0]
        assert [samples[place].advantage for place in places] == wanted.tolist()
        assert [sample.advantage for sample in samples if not sample.counted] == [0.0]
    assert [(sample.advantage, sample.counted) for sample in make_samples(settings, [none])[0]] == [(0.0, False)] * 3
    assert rollout_metrics([late, none])["reward_timeouts"] == 4 + 12, "of all four prompts each"
    all_right = run(
        config(dynamic_sampling=True, dynamic_sampling_rounds=1), prompt_set(*[(3, "3 4 late5")] * 4), cap=9
    )[0]
    assert not any(group.trained for group in all_right), "a right and a lost one are no mixed group"
    assert from_arrays(to_arrays([late, none])) == [late, none]


def test_metrics_of_a_batch():
    completions = [Completion([1] * n, [-1.0] * n, cut) for n, cut in ((4, False), (6, True), (2, False), (8, False))]
    groups = [
        Group([1], completions[:2], [1.0, 0.0], [1.0, -0.5], timeouts=1, undecided=2),
        Group([2], completions[2:], [1.0, 1.0], [1.0, 1.0]),
    ]
    metrics = rollout_metrics(groups)
    assert metrics["reward_mean"] == pytest.approx(2.5 / 4) and metrics["accuracy"] == pytest.approx(0.75)
    assert metrics["response_tokens"] == 20 and metrics["response_tokens_max"] == 8
    assert metrics["tokens_right_mean"] == pytest.approx(14 / 3) and metrics["tokens_wrong_mean"] == 6
    assert metrics["truncation_rate"] == 0.25 and metrics["zero_variance_groups"] == 0.5
    assert metrics["reward_timeouts"] == 1 and metrics["reward_undecided"] == 2
