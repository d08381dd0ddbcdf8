"""Grading while responses are still sampled: each once, in its place, whatever the engine tells of."""

import threading

import pytest

from siri.rewards.pool import RewardBatch
from siri.rollout import Completion
from siri.train.as_they_end import AsTheyEnd


class Words:
    """A policy that says the ids."""

    def decode(self, token_ids) -> str:
        return " ".join(map(str, token_ids))


class Counting:
    """A grader that remembers what it was asked, and where."""

    def __init__(self, late: str = "", fail: bool = False) -> None:
        self.asked: list[tuple[str, str]] = []
        self.threads: set[str] = set()
        self.late, self.fail, self.came = late, fail, threading.Event()

    def score(self, responses, answers) -> RewardBatch:
        if self.fail:
            raise RuntimeError("the grader is gone")
        self.asked += zip(responses, answers, strict=True)
        self.threads.add(threading.current_thread().name)
        self.came.set()
        late = {place for place, text in enumerate(responses) if text == self.late}
        rewards = [float(text == answer) for text, answer in zip(responses, answers, strict=True)]
        return RewardBatch(rewards, timeouts=len(late), timed_out=late)


def response(*ids: int) -> Completion:
    return Completion(list(ids), [-1.0] * len(ids), False)


def test_each_is_graded_once_and_in_its_place():
    grader = Counting()
    answers = [[response(1), response(2)], [response(3), response(1)]]
    with AsTheyEnd(Words(), grader, ["1", "3"]) as ended:
        ended(1, answers[1][0])
        assert grader.came.wait(30), "graded while others are sampled"
        assert grader.threads == {"grading"}
        ended(0, answers[0][1])
        texts, graded = ended.finish(answers)
    assert texts == ["1", "2", "3", "1"] and graded.rewards == [1.0, 0.0, 1.0, 0.0]
    assert sorted(grader.asked) == sorted([("1", "1"), ("2", "1"), ("3", "3"), ("1", "3")])


def test_an_engine_that_tells_nothing_is_graded_in_the_end():
    grader = Counting(late="2")
    with AsTheyEnd(Words(), grader, ["1", "2"]) as ended:
        texts, graded = ended.finish([[response(1)], [response(2)]])
    assert texts == ["1", "2"] and graded.timed_out == {1} and graded.timeouts == 1
    assert grader.threads == {threading.current_thread().name} and len(grader.asked) == 2


def test_what_was_thrown_away_and_sampled_again_is_graded_as_it_is():
    grader = Counting()
    with AsTheyEnd(Words(), grader, ["5"]) as ended:
        ended(0, response(4))
        grader.came.wait(30)
        _, graded = ended.finish([[response(5)]])
    assert graded.rewards == [1.0]


def test_what_fails_is_told_where_it_is_asked_for():
    with (
        pytest.raises(RuntimeError, match="the grader is gone"),
        AsTheyEnd(Words(), Counting(fail=True), ["1"]) as ended,
    ):
        completion = response(1)
        ended(0, completion)
        ended.finish([[completion]])


def test_a_signal_leaves_no_thread_behind():
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), AsTheyEnd(Words(), Counting(), ["1"]) as ended:
        ended(0, response(1))
        raise KeyboardInterrupt
    assert threading.active_count() == before
