"""The order in which problems are drawn: every epoch a permutation, and a state that resumes exactly."""

import json

import pytest

from siri.data.sampler import Sampler
from siri.errors import InputError


def test_each_epoch_is_a_permutation():
    sampler = Sampler(10, seed=3)
    epochs = [sampler.take(10) for _ in range(4)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert Sampler(10, seed=3).take(10) == epochs[0] != Sampler(10, seed=4).take(10)


@pytest.mark.parametrize("k", [1, 3, 7, 10, 25])
def test_draw_size_does_not_change_the_stream(k):
    whole = Sampler(10, seed=0).take(100)
    sampler = Sampler(10, seed=0)
    drawn = []
    while len(drawn) + k <= 100:
        drawn += sampler.take(k)
    assert drawn == whole[: len(drawn)]
    assert all(sorted(whole[i : i + 10]) == list(range(10)) for i in range(0, 100, 10))


@pytest.mark.parametrize("before", [0, 4, 10, 23])
def test_state_resumes_exactly(before):
    sampler = Sampler(10, seed=5)
    sampler.take(before)
    state = json.loads(json.dumps(sampler.state()))
    assert state == {"epoch": before // 10, "cursor": before % 10, "seed": 5, "size": 10}
    assert Sampler(10, **state).take(17) == sampler.take(17)


def test_problems_that_are_added_follow_in_the_next_epoch():
    before = Sampler(10, seed=5)
    before.take(4)
    rest = Sampler(10, **before.state()).take(6)
    grown = Sampler(13, **before.state())
    assert grown.take(6) == rest and grown.size == 13
    assert sorted(grown.take(13)) == list(range(13))
    assert Sampler(13, **before.state()).drawn() == set(range(10)) - set(rest)


@pytest.mark.parametrize(
    "bad",
    [{"size": 11}, {"size": 3, "cursor": 3}, {"n": 0}, {"seed": -1}, {"cursor": 10}, {"cursor": -1}, {"epoch": -1}],
)
def test_sampler_rejects(bad):
    with pytest.raises(InputError):
        Sampler(**{"n": 10, "seed": 0} | bad)


@pytest.mark.parametrize("weights", [(1e-300, 1e300), (1.0, 1e9), (float("inf"), 1.0)])
def test_an_epoch_that_would_fill_the_memory_is_refused(weights):
    with pytest.raises(InputError, match=r"weights up to .* 100,000,000 are the most"):
        Sampler(10, 0, weights=[(5, weight) for weight in weights])
