"""Majority votes over responses, top-p sampling, and the same responses under several caps."""

from itertools import combinations

import pytest
import torch

from siri.data.prompts import PromptSet
from siri.rewards.pool import RewardPool
from siri.rollout.local import likeliest
from siri.train.evaluate import Answers, Readable, average, evaluate, joined, summarise
from siri.train.votes import NO_VOTE, majority_at_k, read_votes
from tests.unit.train.test_evaluate import POLICY, EqualText, ScriptedEngine


def test_the_most_frequent_answer_wins_and_ties_share():
    assert majority_at_k([0, 1, 1, 2], [True, False, False, False], 4) == 0
    assert majority_at_k([0, 0, 1, 2], [True, True, False, False], 4) == 1
    assert majority_at_k([0, 0, 1, 1], [True, True, False, False], 4) == 0.5
    assert majority_at_k([0, NO_VOTE, NO_VOTE, NO_VOTE], [True, False, False, False], 4) == 1
    assert majority_at_k([NO_VOTE, NO_VOTE], [False, False], 2) == 0
    assert majority_at_k([0, 1, 2, 3], [True, False, False, False], 1) == 0.25


def test_fewer_votes_are_drawn_from_all():
    votes, right = [0, 0, 0, 1, 1, 2, NO_VOTE], [True] * 3 + [False] * 4
    exact = [majority_at_k([votes[i] for i in some], [right[i] for i in some], 4) for some in combinations(range(7), 4)]
    assert majority_at_k(votes, right, 4) == pytest.approx(sum(exact) / len(exact), abs=0.06)
    assert majority_at_k(votes, right, 4) == majority_at_k(votes, right, 4), "seeded"


def test_votes_are_read_as_the_math_reward_reads_answers():
    texts = [f"</think> \\boxed{{{answer}}}" for answer in ("7", "\\frac12", "0.5", "1/2", "3", "0.50")]
    texts += ["</think> nothing", "never ended"]
    with RewardPool("math", workers=1) as pool:
        rewards = pool.score(texts, ["7"] * 8).rewards
        votes = read_votes("math", texts, rewards, 8, pool, think=True)
        assert votes == [0, 1, 1, 1, 2, 1, NO_VOTE, NO_VOTE]
        # of two problems, each has its own answers
        assert read_votes("math", texts[1:5], [0.0] * 4, 2, pool, think=True) == [1, 1, 1, 2]
    assert read_votes("mine:own", texts, rewards, 8, EqualText(), think=True) == []


def test_votes_of_exact_answers_go_by_their_text():
    texts = ["a", " a ", "b", "c", ""]
    assert read_votes("exact", texts, [0, 0, 1, 0, 0], 5, EqualText(), think=False) == [1, 1, 0, 2, NO_VOTE]


def measured(script, answers, **options):
    prompts = PromptSet([[p] for p in range(len(script))], answers, 0, 0)
    return evaluate(
        POLICY, ScriptedEngine(script), EqualText(), prompts, cap=6, samples=4, temperature=0.6, seed=11, **options
    )


SCRIPT = [["yes", "no", "yes", "no"], ["bb", "b", "ccccccccc", "bbbb"]]


def test_an_evaluation_counts_votes_and_what_cannot_be_read():
    result = measured(SCRIPT, ["yes", "bbbb"], readable=Readable("exact", think=False))
    assert result.maj_at_k == {"1": 3 / 8, "2": pytest.approx(3 / 8, abs=0.05), "4": (0.5 + 0.25) / 2}
    assert result.without_answer == 0
    hidden = measured(SCRIPT, ["yes", "bbbb"], readable=Readable("exact", think=True))
    assert hidden.without_answer == 8 and hidden.maj_at_k == {"1": 3 / 8, "2": 0, "4": 0}
    assert measured(SCRIPT, ["yes", "bbbb"]).maj_at_k is None


def test_budgets_are_what_sampling_under_a_lower_cap_gives():
    result = measured(SCRIPT, ["yes", "bbbb"], budgets=(2, 4))
    for budget in ("2", "4"):
        lower = evaluate(
            POLICY, ScriptedEngine(SCRIPT), EqualText(), PromptSet([[0], [1]], ["yes", "bbbb"], 0, 0),
            cap=int(budget), samples=4, temperature=0.6, seed=11,
        )  # fmt: skip
        assert result.budgets[budget] == {
            "accuracy": lower.accuracy,
            "accuracy_half": lower.accuracy_half,
            "tokens_mean": lower.tokens_mean,
            "truncation_rate": lower.truncation_rate,
        }
    assert result.budgets["2"]["accuracy"] == 0 and result.budgets["4"]["accuracy"] == 3 / 8
    row = average({"x": result, "y": result})
    assert row["budgets"]["4"]["accuracy"] == 3 / 8 and row["maj_at_k"] is None


def test_the_answers_of_several_ranks_are_those_of_one():
    parts = [
        Answers([(3, False)], [1.0], (1, 0, 0), [0], {"2": [0.0]}),
        Answers([(5, True)], [0.0], (0, 2, 1), [1], {"2": [0.5]}),
    ]
    assert joined(parts) == Answers([(3, False), (5, True)], [1.0, 0.0], (1, 2, 1), [0, 1], {"2": [0.0, 0.5]})
    prompts = PromptSet([[1], [2]], ["7", "8"], 0, 0)
    assert summarise(parts, prompts, cap=9, samples=1) == summarise([joined(parts)], prompts, cap=9, samples=1)


def test_top_p_leaves_the_fewest_likeliest_tokens():
    probability = torch.tensor([[0.1, 0.5, 0.15, 0.25]])
    for top_p, kept in ((0.4, [1]), (0.5, [1]), (0.6, [1, 3]), (0.75, [1, 3]), (0.8, [1, 2, 3]), (1.0, [0, 1, 2, 3])):
        left = likeliest(probability.log(), top_p)
        assert left.exp().nonzero()[:, 1].tolist() == kept
        assert torch.allclose(left.exp()[0, kept], probability[0, kept] / probability[0, kept].sum())


def test_the_embedded_engine_samples_from_what_top_p_leaves():
    from siri.model.policy import make_policy
    from siri.rollout import Request
    from siri.rollout.local import LocalRollout
    from tests.support.tiny import tiny_model, word_tokenizer

    engine = LocalRollout(make_policy(tiny_model(), word_tokenizer()), cache_tokens=4096)

    def sample(**options):
        answered = engine.generate([Request([5, 6], 6, 16, **options)], temperature=1.0, seed=3)
        return [completion.token_ids for completion in answered[0]]

    greedy = engine.generate([Request([5, 6], 6, 16)], temperature=0.0, seed=3)[0]
    assert sample(top_p=1e-9) == [completion.token_ids for completion in greedy], "one token is left"
    assert sample(top_p=1.0) == sample() and sample(top_p=0.5) != sample()
