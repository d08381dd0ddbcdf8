"""The schedule that finds its own caps: levels and turns by hand, no ratchet, and the same after any pause."""

import json
import math
import random

import pytest

from siri.config import Config
from siri.errors import InputError
from siri.study.compare import phases_of
from siri.train.auto import AutoSchedule, Observed, fallen, quantile, settled
from tests.support.training import reproducible, rows, same_run, train


def groups(*lengths: int, wrong: int = 0) -> list[tuple[list[float], list[int]]]:
    """A prompt for each length: one right response of that length, and `wrong` wrong ones of 99 tokens."""
    return [([1.0] + [0.0] * wrong, [length] + [99] * wrong) for length in lengths]


def test_quantile_and_settled():
    assert [quantile([4, 1, 3, 2], share) for share in (0.25, 0.5, 0.9, 1.0)] == [1, 2, 4, 4]
    assert settled([5.0, 5.0, 5.0]) and settled([5.0, 6.0, 5.0, 6.0]) and not settled([1.0, 2.0, 3.1, 4.0])
    assert not settled([5.0, 5.0]), "two points always lie on a line"


def test_a_fall_of_accuracy_beside_its_error():
    halves = [([1.0, 0.0], [1, 1])] * 2 + [([1.0, 1.0], [1, 1])] * 2  # mean .75, variance (4 * .25^2) / 3 = 1/12
    seen = Observed.of(halves)
    assert (seen.accuracy, seen.variance, seen.prompts, seen.length) == (0.75, pytest.approx(1 / 12), 4, 1)
    fall, error = fallen([seen, seen], [Observed(1, 0.5, 0.0, 4)])
    assert fall == 0.25 and error == pytest.approx(math.sqrt(1 / 12 / 8))


def test_a_cycle_by_hand():
    """Ten prompts: nine keep half of their right answers within 18 tokens, all have the longest within 40."""
    lengths = [2, 4, 6, 8, 10, 12, 14, 16, 18, 40]
    schedule = AutoSchedule(100, 4)
    assert [schedule.observe(step, groups(*lengths)) for step in range(3)] == [None] * 3
    turn = schedule.observe(3, groups(*lengths))
    assert (turn.step, turn.phase, turn.cap) == (4, "compression", 18) and "settled" in turn.reason
    # half a cosine of 4 steps from 100 to 18
    caps = [math.floor(18 + 82 * (1 + math.cos(math.pi * done / 4)) / 2 + 0.5) for done in (1, 2, 3, 4)]
    assert [schedule.cap(step) for step in range(3, 10)] == [100, *caps, 18, 18] and caps[-1] == 18
    short = [min(length, 9) for length in lengths]
    assert [schedule.observe(step, groups(*short)) for step in range(4, 10)] == [None] * 6
    assert schedule.milestone(10) is None
    turn = schedule.observe(10, groups(*short))  # four steps with the cap at the floor: 7, 8, 9 and 10
    assert (turn.step, turn.phase, turn.cap) == (11, "expansion", 80) and "settled" in turn.reason
    assert schedule.milestone(11) == "siri-low-1" and schedule.milestone(4) is None and schedule.cap(11) == 80
    for step in range(11, 15):
        turn = schedule.observe(step, groups(*lengths))
    assert (turn.phase, turn.cap) == ("compression", 18) and schedule.milestone(15) == "siri-high-1"
    assert [schedule.phase(step) for step in (0, 3, 4, 10, 11, 15)] == ["expansion"] * 2 + ["compression"] * 2 + [
        "expansion",
        "compression",
    ]


def test_a_compression_that_costs_answers_ends_before_the_length_has_settled():
    schedule = AutoSchedule(100, 4)
    for step in range(4):
        schedule.observe(step, groups(10, 12, 14, 16))
    turn = None
    for step in range(4, 12):
        if turn := schedule.observe(step, [([0.0], [10 * step])] * 4):  # all wrong, and longer with every step
            break
    assert turn and (turn.step, turn.phase) == (11, "expansion") and "accuracy has fallen" in turn.reason


def test_no_turn_while_lengths_move_or_nothing_is_right():
    schedule = AutoSchedule(1000, 4)
    assert all(schedule.observe(step, groups(10 + 5 * step, 11 + 5 * step)) is None for step in range(30))
    schedule = AutoSchedule(1000, 4)
    assert all(schedule.observe(step, [([0.0], [9])] * 3) is None for step in range(30))


def test_levels_do_not_sink_from_cycle_to_cycle():
    """A policy whose lengths are cut by the cap and nothing else: the levels of the tenth cycle are those of the first.
    A floor that is taken from lengths under the last floor sinks on the same policy."""
    draw = random.Random(0)
    schedule, step, floors = AutoSchedule(1000, 8), 0, []
    naive, naive_floors = 1000, []
    while len(floors) < 10:
        wanted = [draw.lognormvariate(4, 0.5) for _ in range(64)]
        lengths = [min(int(length) + 1, schedule.cap(step)) for length in wanted]
        scores = [float(length < schedule.cap(step)) for length in lengths]
        turn = schedule.observe(step, [([score], [length]) for score, length in zip(scores, lengths, strict=True)])
        if turn and turn.phase == "compression":
            floors.append(turn.cap)
            naive = math.ceil(quantile([n for length in wanted if (n := int(length) + 1) < naive], 0.9))
            naive_floors.append(naive)
        step += 1
        assert step < 2000
    assert min(floors) > 0.85 * floors[0] and naive_floors[-1] < 0.7 * floors[0]


def test_state_goes_through_json_and_on_bit_for_bit():
    draw = random.Random(1)
    steps = [
        [([float(draw.random() < 0.6) for _ in range(4)], [draw.randrange(5, 50) for _ in range(4)]) for _ in range(6)]
        for _ in range(60)
    ]
    whole = AutoSchedule(100, 5)
    for step, seen in enumerate(steps):
        whole.observe(step, seen)
    assert len(whole.turns) > 3
    for pause in (0, 3, 17, 42):
        parts = AutoSchedule(100, 5)
        for step, seen in enumerate(steps):
            if step == pause:
                parts = AutoSchedule(100, 5, json.loads(json.dumps(parts.state())))
            parts.observe(step, seen)
        assert parts.state() == whole.state()
        assert [parts.cap(step) for step in range(61)] == [whole.cap(step) for step in range(61)]
    for bad in ({}, {**whole.state(), "turns": []}, {**whole.state(), "window": [[1]]}):
        with pytest.raises(InputError, match="no state of auto"):
            AutoSchedule(100, 5, bad)


def test_a_run_finds_its_own_caps_and_goes_on_where_it_was(tmp_path):
    options = ["--schedule", "auto", "--auto-dwell", "3", "--save-every", "1", "--quiet", "--eval-every", "50"]
    metrics = train(tmp_path / "straight", "--steps", "12", *options)
    turns = [row for row in metrics if "turn" in row]
    assert turns and turns[0]["turn"].startswith("compression to ") and turns[0]["phase"] == "expansion"
    assert min(row["cap"] for row in metrics) < 64 and metrics[0]["cap"] == 64
    pause = turns[0]["step"] + 2
    train(tmp_path / "parts", "--steps", str(pause), *options)
    train(tmp_path / "parts", "--steps", "12", *options, "--resume")
    whole, parts = (reproducible(rows(tmp_path / name)) for name in ("straight", "parts"))
    assert whole == parts
    same_run(tmp_path / "straight", tmp_path / "parts", "step_000012")


def test_what_is_known_of_it_beforehand():
    schedule = Config(schedule="auto", l_max=50).length_schedule()
    assert (schedule.longest, schedule.shortest, schedule.cap(7), schedule.phase(7)) == (50, 1, 50, "expansion")
    with pytest.raises(InputError, match="which a moving cap cuts"):
        Config(schedule="auto", length_reward="laser_d")
    assert phases_of([9, 9, 7, 5, 5, 9, 9]) == ["expansion"] * 2 + ["compression"] * 3 + ["expansion"] * 2
