"""The field's methods against hand-computed cases: which responses are sampled, cut, compared and how they weigh."""

import math

import pytest
import torch

from siri.advantages import batch_normalised, drpo_advantages, kept_responses
from siri.config import Config
from siri.errors import InputError
from siri.rewards.pool import RewardBatch
from siri.rewards.shaping import difficulty, l1_exact_reward, l1_max_reward, shape_rewards
from siri.rollout import Completion, Request
from siri.runtime.ranks import from_bytes, to_bytes
from siri.train.groups import Group, from_arrays, rollout_metrics, to_arrays
from siri.train.laser import LaserTargets, target_length
from siri.train.rounds import Sampled, cut_outliers, extra_responses, hard_requests, joined, outlier_length
from siri.train.samples import make_samples
from tests.unit.train.test_batch import config, prompt_set, run


def completion(length: int, *, cut: bool = False, logp: float = -1.0) -> Completion:
    return Completion([7] * length, [logp] * length, cut)


def group(rewards, lengths, **options) -> Group:
    scores = [float(reward) for reward in rewards]
    return Group([1], [completion(length) for length in lengths], scores, scores, **options)


def advantages(settings: Config, *groups: Group) -> list[list[float]]:
    (batch,) = make_samples(settings, groups)
    values = iter(sample.advantage for sample in batch)
    return [[next(values) for _ in group.completions] for group in groups]


# --- DOT ---

ELEVEN_AND_ONE = [10] * 11 + [130]  # mean 20, variance (11 * 10^2 + 110^2) / 11 = 1200: floor(20 + 103.9) = 123


def outliers(margin: int, *, wrong: bool = False, overlong: str = "zero") -> tuple[Sampled, list]:
    graded = RewardBatch([0.0 if wrong else 1.0, *[1.0] * 11])
    sampled = Sampled([[completion(length) for length in ELEVEN_AND_ONE]], graded)
    asked = []

    def grade(completions, gold):
        asked.append(([len(each.token_ids) for each in completions], list(gold)))
        return RewardBatch([0.0] * len(completions))

    settings = config(group_size=12, outlier_cut=True, outlier_margin=margin, overlong=overlong)
    return cut_outliers(settings, sampled, ["gold"], grade), asked


def test_an_outlier_of_a_group_that_is_all_right_is_cut_and_graded_again():
    assert outlier_length(ELEVEN_AND_ONE, 3) == 123
    cut, asked = outliers(7)
    assert asked == [([123], ["gold"])]
    assert [len(answer.token_ids) for answer in cut.answers[0]] == [len(answer.logp) for answer in cut.answers[0]]
    assert [len(answer.token_ids) for answer in cut.answers[0]] == [10] * 11 + [123]
    assert cut.graded.rewards == [1.0] * 11 + [0.0] and cut.uncut == (tuple(ELEVEN_AND_ONE),)
    assert not cut.answers[0][-1].truncated, "the cap did not cut it"


def test_no_outlier_is_cut_below_the_margin_or_where_a_response_is_wrong():
    for cut, asked in (outliers(8), outliers(7, wrong=True)):
        assert asked == [] and [len(answer.token_ids) for answer in cut.answers[0]] == ELEVEN_AND_ONE


def test_the_tokens_that_are_cut_off_were_sampled():
    whole = group([1] * 12, ELEVEN_AND_ONE)
    cut = Group(
        [1],
        [*whole.completions[:11], completion(123)],
        [1.0] * 11 + [0.0],
        [1.0] * 11 + [0.0],
        uncut=tuple(ELEVEN_AND_ONE),
    )
    metrics = rollout_metrics([cut])
    assert metrics["response_tokens"] == 240 and metrics["response_tokens_mean"] == 20
    assert from_arrays(from_bytes(to_bytes(to_arrays([cut, whole])))) == [cut, whole]
    (batch,) = make_samples(config(group_size=12), [cut])
    # eleven of 1 and one of 0: mean 11/12, variance 11/12 * 1/12 * 12/11 = 1/12
    assert batch[-1].advantage == pytest.approx(-11 / 12 / math.sqrt(1 / 12), abs=1e-4) and len(batch[-1]) == 124


def test_a_round_cuts_outliers():
    """Lengths 2 to 13, all right, and one deviation: mean 7.5, standard deviation sqrt(13): cut from 12 on, at 11."""
    settings = config(group_size=12, outlier_cut=True, outlier_deviations=1.0, outlier_margin=1, l_max=20)
    gold = " ".join(map(str, [*range(2, 11), 12, 13]))  # what is cut to 11 tokens is not right any more
    groups, _ = run(settings, prompt_set(*[(2, gold + " 11x")] * 4), cap=20)
    assert groups[0].scores != [1.0] * 12, "11 is wrong, so that nothing is cut"
    groups, _ = run(settings, prompt_set(*[(2, " ".join(map(str, range(2, 14))))] * 4), cap=20)
    assert groups[0].uncut == tuple(range(2, 14))
    assert [len(completion.token_ids) for completion in groups[0].completions] == [*range(2, 12), 11, 11]


# --- DRPO ---


def test_drpo_weighs_right_responses_by_brevity_and_wrong_ones_against_each_other():
    right = torch.tensor([True, True, False, False])
    got = drpo_advantages(
        right,
        torch.tensor([2, 4, 5, 9]),
        torch.tensor([0.0, 0.0, -1.0, -2.0]).double(),
        longest=10,
        brevity=0.1,
        tau=1.0,
    )
    short, likely = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))  # (1 - L / C) / lambda is 8 and 6
    assert got.tolist() == pytest.approx([4 * short, 4 * (1 - short), -4 * likely, -4 * (1 - likely)])
    for alike in (torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)):
        assert (
            drpo_advantages(alike, torch.ones(4), torch.ones(4).double(), longest=9, brevity=1, tau=1).tolist()
            == [0] * 4
        )


DRPO = {"advantages": "drpo", "loss": "cispo", "clip_low": 0.0, "clip_high": 0.0, "aggregation": "seq_mean"}


def test_drpo_counts_the_longest_cap_and_leaves_out_what_is_not_in_the_loss():
    settings = config(**DRPO, schedule="cosine", l_max=10, group_size=3, drpo_tau=1.0)
    late = group([1, 1, 0], [2, 4, 5], timed_out=(1,))
    whole, without = advantages(settings, group([1, 1, 0], [2, 4, 5]), late)
    short = 1 / (1 + math.exp(-2))
    assert whole == pytest.approx([3 * short, 3 * (1 - short), -3])
    assert without == pytest.approx([3, 0, -3]), "seq_mean divides by all three of them"


# --- GFPO, DLER ---


def test_gfpo_trains_on_the_responses_that_it_keeps():
    assert kept_responses([5, 3, 9, 3], [1, 0, 1, 1], 2, "length") == [1, 3]
    assert kept_responses([5, 3, 9, 3], [1, 0, 1, 1], 2, "efficiency") == [0, 3]
    settings = config(group_size=4, filter_keep=2)
    root = math.sqrt(0.5)  # the standard deviation of 0 and 1
    assert advantages(settings, group([1, 0, 1, 1], [5, 3, 9, 3]))[0] == pytest.approx([0, -root, 0, root], abs=1e-5)
    efficient = config(group_size=4, filter_keep=2, filter_by="efficiency")
    assert advantages(efficient, group([1, 0, 1, 1], [5, 3, 9, 3]))[0] == [0, 0, 0, 0]
    late = group([1, 0, 1, 1], [5, 3, 9, 3], timed_out=(1,))
    assert advantages(settings, late)[0] == [0, 0, 0, 0], "5 and 3, both right, are the shortest that were graded"


def test_dler_normalises_over_the_tokens_of_the_batch():
    # centred .5 on 1 token and -.5 on 3: mean -.25, variance (.75^2 + 3 * .25^2) / 3 = .25
    assert batch_normalised(torch.tensor([0.5, -0.5]), torch.tensor([1, 3])).tolist() == pytest.approx([1.5, -0.5])
    settings = config(group_size=2, advantages="dler")
    mixed, alike = advantages(settings, group([1, 0], [1, 3]), group([1, 1], [5, 9]))
    assert mixed == pytest.approx([1.5, -0.5]) and alike == [0, 0], "a group without variance is not in the mean either"
    assert batch_normalised(torch.tensor([0.5]), torch.tensor([1])).tolist() == [0.5]


# --- DARS ---


@pytest.mark.parametrize(
    ("right", "more"),
    # N = 8: S = 2 a (1 - a), (4 - 8 S) / S = 26.1, 10.3, 2.7, 0.5, 0; at most 32 in all
    [(0, 24), (1, 11), (2, 3), (3, 1), (4, 0), (8, 0)],
)
def test_dars_samples_hard_prompts_again(right, more):
    assert extra_responses(right, 8, 32) == more
    assert extra_responses(right, 8, 10) == min(more, 2)


def test_a_second_round_joins_the_first():
    settings = config(group_size=4, hard_responses=6)
    requests = [Request([place], 9, 4) for place in range(3)]
    first = Sampled([[completion(2)] * 4] * 3, RewardBatch([0, 0, 1, 0, 1, 1, 0, 1, 0, 0, 0, 0], 1, timed_out={9}))
    asked = hard_requests(settings, requests, first)
    # a = 1/4, S = .375: (2 - 1.5) / .375 = 1.3; the last has one that could not be graded
    assert [request.n for request in asked] == [2, 0, 0]
    both = joined(first, Sampled([[completion(5), completion(6)], [], []], RewardBatch([1, 0], timed_out={1})))
    assert [len(answers) for answers in both.answers] == [6, 4, 4]
    assert both.graded.rewards == [0, 0, 1, 0, 1, 0, 1, 1, 0, 1, 0, 0, 0, 0] and both.graded.timed_out == {5, 11}


def test_groups_of_unlike_size_get_their_advantages():
    settings = config(group_size=3, hard_responses=5)
    groups, engine = run(settings, prompt_set(*[(3, "4"), (2, "2 3 4")] * 2), cap=9)
    # one right of 3: S = 4/9, (1.5 - 4/3) / (4/9) = .375, so one more
    sizes = {request.prompt_ids[0]: len(request.completions) for request in groups}
    assert sizes == {3: 4, 2: 3} and len(engine.calls) == 2 and engine.calls[0][1] != engine.calls[1][1]
    hard = next(group for group in groups if len(group.completions) == 4)
    assert hard.scores == [0, 1, 0, 0]
    values = [sample.advantage for batch in make_samples(settings, [hard]) for sample in batch]
    assert values == pytest.approx([-0.5, 1.5, -0.5, -0.5], abs=1e-5)  # mean 1/4, standard deviation 1/2
    assert rollout_metrics(groups)["responses"] == 14


# --- rewards for length ---


def shaped(rewards, lengths, truncated=None, targets=(), penalised=True, **settings):
    settings = Config(**{"group_size": 2, "l_max": 20, "l_min": 10, **settings})
    cut = truncated or [False] * len(lengths)
    return shape_rewards(settings, rewards, lengths, cut, 20, targets=targets, penalised=penalised)[1]


def test_l1_rewards_the_length_that_was_asked_for():
    assert l1_exact_reward(1.0, True, 150, 100, 0.001) == pytest.approx(0.95)
    assert l1_exact_reward(0.0, False, 50, 100, 0.001) == pytest.approx(-0.05)
    for length, reward in ((100, 0.5), (150, 0.45), (50, 0.55), (1000, 0), (-1000, 1)):
        assert l1_max_reward(1.0, True, length, 100, 0.001) == pytest.approx(reward)
    assert l1_max_reward(0.0, False, 50, 100, 0.001) == 0
    asked = {"length_reward": "l1_exact", "asked_least": 2, "asked_most": 8, "length_alpha": 0.1}
    assert shaped([1.0, 0.0], [6, 3], targets=[4], **asked) == pytest.approx([0.8, -0.1])
    # a wrong one of 2 tokens is 14 off; the cut one, 4 off, must not gain by being cut
    assert shaped([0.0, 0.0], [2, 20], [False, True], targets=[16], **asked) == pytest.approx([-1.4, -1.4])


def test_laser_pays_for_right_responses_within_the_target():
    laser = {"length_reward": "laser"}
    assert shaped([1.0, 1.0, 0.0], [4, 6, 4], targets=[5], **laser) == [1.5, 1, 0]
    assert shaped([1.0, 1.0], [4, 6], targets=[5], length_weight=2.0, **laser) == [2, 1]
    dynamic = {"length_reward": "laser_d", "schedule": "constant"}
    targets = [3, 5, 7]
    assert [difficulty([True] * right + [False] * (3 - right)) for right in range(4)] == [2, 1, 0, 0]
    assert shaped([1.0, 1.0, 0.0], [3, 4, 4], targets=targets, **dynamic) == [1.5, 1, 0]
    assert shaped([1.0, 0.0, 0.0], [5, 4, 4], targets=targets, **dynamic) == [1.5, 0, 0]


def test_laser_d_estimates_the_length_that_leaves_one_right_answer():
    assert target_length([9, 3, 5], 2) == 5 and target_length([9], 2) is None and target_length([], 0) is None
    settings = Config(length_reward="laser_d", schedule="constant", l_max=50, laser_every=2, laser_target=30)
    targets = LaserTargets(settings)
    easy, hard = ([1.0, 1.0, 0.0], [9, 3, 1]), ([0.0, 0.0, 0.0], [9, 3, 1])
    targets.see([easy, hard])
    assert targets.targets == [30, 30, 30]
    held = targets.state()
    resumed = LaserTargets(settings, held)
    for each in (targets, resumed):
        each.see([([1.0, 1.0, 0.0], [5, 7, 1])])
    # easy: 3, 5, 7 and 9 of two prompts; of medium ones there was none; the hard one had no right answer
    assert targets.targets == resumed.targets == [5, 30, 50]
    assert (
        targets.state()
        == resumed.state()
        == {**held, "targets": [5, 30, 50], "prompts": [0] * 3, "right": [[], [], []], "steps": 0}
    )
    with pytest.raises(InputError, match="no targets of laser_d"):
        LaserTargets(settings, {"targets": [1]})


def test_a_cycled_penalty_is_on_and_off():
    settings = Config(length_reward="kimi", penalty_on=2, penalty_off=3)
    assert [settings.penalised(step) for step in range(7)] == [True, True, False, False, False, True, True]
    assert Config().penalised(123)
    assert shaped([1.0, 1.0], [2, 4], length_reward="kimi") == [1.5, 0.5]
    assert shaped([1.0, 1.0], [2, 4], length_reward="kimi", penalised=False) == [1, 1]
    assert shaped([1.0, 1.0], [2, 20], overlong="soft", penalised=False) == [1, 1]


# --- what cannot be had together ---


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"outlier_cut": True, "overlong": "mask"}, "outlier_cut has to train on what it cuts"),
        ({"outlier_cut": True, "group_size": 10}, "never cuts: no response is 3 standard deviations .* fewer than 11"),
        ({"advantages": "drpo"}, "advantages = drpo has no ratios"),
        ({**DRPO, "filter_keep": 2}, "leave out filter_keep"),
        ({**DRPO, "length_reward": "kimi"}, "leave out length_reward"),
        ({**DRPO, "overlong": "soft"}, "leave out --overlong soft"),
        ({**DRPO, "score_all": False}, "leave out --no-score-all"),
        ({**DRPO, "vocab_parallel": True}, "drpo_beta and vocab_parallel"),
        ({"advantages": "dler", "advantage_norm": "none"}, "dler is a norm over the batch"),
        ({"filter_keep": 1}, "keep 2 at least"),
        ({"filter_keep": 17}, "filter_keep is 17; of 16 responses"),
        ({"hard_responses": 16}, "must be more than group_size"),
        ({"penalty_on": 3, "length_reward": "kimi"}, "a cycle needs both"),
        ({"penalty_on": 3, "penalty_off": 3}, "nothing to turn on"),
        ({"length_reward": "l1_max"}, "belong together"),
        ({"asked_least": 1, "asked_most": 5}, "belong together"),
        ({"length_reward": "l1_max", "asked_least": 9, "asked_most": 5}, "need 1 <= least <= most"),
        ({"length_reward": "l1_max", "asked_least": 9, "asked_most": 8193}, "the schedule's shortest cap is 8192"),
        ({"length_reward": "laser_d"}, "which a moving cap cuts"),
    ],
)
def test_what_makes_no_sense_together_is_refused_in_one_line(settings, said):
    with pytest.raises(InputError, match=said) as error:
        Config(**settings)
    assert "\n" not in str(error.value)


def test_the_least_group_for_an_outlier_is_the_least():
    """Eleven responses can hold one three standard deviations over their mean, ten cannot, however long it is."""
    for size, possible in ((10, False), (11, True)):
        lengths = [1] * (size - 1) + [10**6]
        assert (lengths[-1] > outlier_length(lengths, 3)) is possible
    Config(outlier_cut=True, group_size=11)
