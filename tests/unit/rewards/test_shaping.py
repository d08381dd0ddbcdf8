"""What the cap and rewards for length make of scores: a cut response never beats a wrong one."""

from itertools import product
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri.rewards.shaping import SOFT_WEIGHT, capped_scores, shape_rewards, soft_penalty

MODES = ("zero", "mask", "soft", "grade")
CAP = 20


def settings(overlong: str, length_reward: str = "none", weight: float = 1.0, buffer: int = 8) -> SimpleNamespace:
    return SimpleNamespace(overlong=overlong, overlong_buffer=buffer, length_reward=length_reward, length_weight=weight)


@pytest.mark.parametrize("mode", MODES)
def test_a_reward_of_minus_one_and_one(mode):
    """The cut response is graded -1 as the wrong one is: 0 would pay it for rambling."""
    scores, rewards = shape_rewards(settings(mode), [1.0, -1.0, -1.0], [4, 5, CAP], [False, False, True], CAP)
    assert scores == [1, -1, -1]
    assert rewards[2] <= rewards[1] < rewards[0]


@pytest.mark.parametrize("mode", MODES)
def test_a_cut_response_that_is_graded_better_than_wrong_ones(mode):
    """A reward that gives -1 for a wrong answer and 0 for none, as many do."""
    scores, _ = shape_rewards(settings(mode), [-1.0, 0.0], [4, CAP], [False, True], CAP)
    assert scores == [-1, -1]


@pytest.mark.parametrize("mode", ["grade", "soft"])
def test_a_cut_response_that_is_right_keeps_its_score(mode):
    assert capped_scores([1.0, -1.0], [True, False], mode) == [1, -1]
    assert capped_scores([1.0, -1.0], [True, False], "zero") == [-1, -1]


@pytest.mark.parametrize(("mode", "group"), list(product(MODES, product((0.0, 1.0), repeat=3))))
def test_rewards_of_zero_and_one_are_as_they_were(mode, group):
    truncated = [False, True, True]
    wanted = [0.0 if cut and mode in ("zero", "mask") else score for score, cut in zip(group, truncated, strict=True)]
    assert capped_scores(group, truncated, mode) == wanted


def test_the_soft_penalty_is_as_strong_as_dapos():
    """Beside std-normalised advantages a penalty counts by its share of the distance between right and wrong."""
    _, rewards = shape_rewards(settings("soft"), [1.0, 1.0, 0.0], [4, CAP - 4, 4], [False] * 3, CAP)
    ratio = (rewards[0] - rewards[1]) / (rewards[0] - rewards[2])
    dapos = -soft_penalty(CAP - 4, CAP, 8) / (1 - -1)
    assert ratio == pytest.approx(dapos) == pytest.approx(0.25) and SOFT_WEIGHT == 0.5


@given(
    st.lists(st.tuples(st.floats(-100, 100), st.integers(1, CAP), st.booleans()), min_size=2, max_size=8),
    st.sampled_from(MODES),
    st.sampled_from(("none", "kimi")),
    st.floats(0, 10),
    st.integers(1, 40),
)
def test_being_cut_never_beats_being_wrong(group, mode, length_reward, weight, buffer):
    graded, lengths, truncated = map(list, zip(*group, strict=True))
    scores, rewards = shape_rewards(settings(mode, length_reward, weight, buffer), graded, lengths, truncated, CAP)
    rows = list(zip(graded, scores, rewards, truncated, strict=True))
    cut = [row for row in rows if row[3] and not (row[0] >= 1 and mode in ("grade", "soft"))]
    wrong = [row for row in rows if not row[3] and row[0] < 1]
    for (_, one_score, one_reward, _), (_, other_score, other_reward, _) in product(cut, wrong):
        assert one_score <= other_score and one_reward <= other_reward
    assert all(score == graded_score for graded_score, score, _, is_cut in rows if not is_cut)
