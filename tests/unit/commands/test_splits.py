"""Which GPUs should sample: the simulation against what can be worked out by hand, and what is printed of it."""

import numpy as np
import pytest

from siri.cli import main
from siri.commands.splits import SYNC_S, Engines, draw_lengths, prompt_means, simulate
from siri.errors import InputError

FLAT = Engines(count=2, cache_tokens=10**9, token_bytes=0, weight_bytes=0.0, bandwidth=1e12)
"""A token of all responses takes TOKEN_S, however many there are."""


def batches(lengths: list[int], count: int = 6) -> list[np.ndarray]:
    return [np.array([lengths]) for _ in range(count)]


def test_in_turn_a_step_is_rollout_and_update():
    rollout = 1000 * FLAT.token_s(0.0)
    step, waits, idle = simulate(FLAT, batches([1000] * 8), 6.0, 0)
    assert step == pytest.approx(rollout + 6.0 + SYNC_S, rel=0.02)
    assert waits == pytest.approx(rollout / step, rel=0.05) and 0 < idle < 1


@pytest.mark.parametrize("train_s", [1.0, 20.0])
def test_overlapped_a_step_is_the_longer_of_the_two(train_s):
    full = Engines(2, cache_tokens=4 * (150 + 4000), token_bytes=0, weight_bytes=0.0, bandwidth=1e12)
    rollout = 4000 * full.token_s(0.0)
    step, waits, _ = simulate(full, batches([4000] * 8, 8), train_s, 1)
    assert step == pytest.approx(max(rollout, train_s + SYNC_S), rel=0.1)
    assert (waits < 0.05) == (train_s > rollout)


def test_a_long_response_holds_up_a_step_in_turn_and_no_batch_behind_it():
    lengths = [1000] * 62 + [8000] * 2
    narrow = Engines(2, cache_tokens=8 * (150 + 1220), token_bytes=0, weight_bytes=0.0, bandwidth=1e12)
    in_turn, overlapped = (simulate(narrow, batches(lengths, 8), 1.0, lag)[0] for lag in (0, 2))
    assert overlapped < 0.85 * in_turn


def test_lengths_are_as_assumed_or_as_a_run_had_them():
    random = np.random.default_rng(0)
    drawn = draw_lengths(8192, (500, 16), random)
    assert np.median(drawn) == pytest.approx(0.45 * 8192, rel=0.1) and drawn.max() == 8192 and drawn.min() >= 1
    assert draw_lengths(8192, (500, 16), random, [100.0, 300.0]).mean() == pytest.approx(200, rel=0.1)


def test_a_run_without_lengths_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"keeps no lengths of its prompts"):
        prompt_means(tmp_path)
    (tmp_path / "lengths.jsonl").write_text('{"a": 10.0, "b": 20.0}\n{"a": 12.0}\n')
    assert sorted(prompt_means(tmp_path)) == [12.0, 20.0]


def test_plan_names_the_best_split(capsys):
    assert main(["plan", "siri-1.5b", "--gpus", "4", "--gpu", "h100", "--prompts-per-step", "32"]) == 0
    said = capsys.readouterr().out
    assert "best split: " in said and "nothing of it is measured" in said
    for way in ("colocated", "in turn", "overlapped"):
        assert way in said
