"""95 % intervals: they hold what they say, and problems count, not samples."""

import json
import math
import random

import pytest

from siri.cli import main
from siri.data.prompts import PromptSet
from siri.intervals import half_width, holm, t_test
from siri.train.evaluate import Answers, hits_by_problem, paired_difference, summarise


@pytest.mark.parametrize("count", [3, 12, 60])
def test_19_of_20_intervals_hold_the_mean(count):
    draw = random.Random(count)
    held = 0
    for _ in range(2000):
        values = [draw.gauss(0.3, 0.2) for _ in range(count)]
        half = half_width(values)
        assert half is not None
        held += abs(sum(values) / count - 0.3) <= half
    assert held / 2000 == pytest.approx(0.95, abs=0.02)
    assert half_width([0.5]) is None and half_width([0.5, 0.5]) == 0


def answered(hits: list[int], samples: int):
    rewards = [float(place < hit) for hit in hits for place in range(samples)]
    lengths = [(10 * (number + 1), False) for number in range(len(hits)) for _ in range(samples)]
    return [Answers(lengths, rewards, (0, 0, 0))]


def test_an_evaluation_has_an_interval_over_its_problems():
    hits = [4, 0, 3, 4]
    prompts = PromptSet([[3]] * 4, ["7"] * 4, 0, 0)
    result = summarise(answered(hits, 4), prompts, cap=64, samples=4)
    assert result.accuracy_half == pytest.approx(half_width([1, 0, 0.75, 1]))
    assert result.tokens_half == pytest.approx(half_width([10, 20, 30, 40]))
    again = summarise(answered([16 * hit for hit in hits], 64), prompts, cap=64, samples=64)
    assert again.accuracy_half == pytest.approx(result.accuracy_half), "more samples of four problems are four problems"
    assert hits_by_problem(answered(hits, 4), 4) == hits
    (lone,) = ([summarise(answered([2], 4), PromptSet([[3]], ["7"], 0, 0), cap=64, samples=4)],)
    assert lone[0].accuracy_half is None


def test_a_paired_difference_is_sharper_than_two_intervals():
    before, now = [0.1, 0.5, 0.9, 0.3], [0.15, 0.56, 0.94, 0.35]
    mean, half = paired_difference(now, before)
    assert mean == pytest.approx(0.05) and half is not None and half < 0.02
    assert min(half_width(now) or 0, half_width(before) or 0) > 0.4


def test_siri_eval_says_how_sure_it_is(tmp_path, capsys):
    options = ["--data", "siri:demo/heldout.jsonl", "--problems", "12", "--samples", "2", "--cap", "48"]
    options += ["--reward", "exact", "--no-think", "--instruction", ""]
    base, out = tmp_path / "base.json", tmp_path / "out.json"
    assert main(["eval", "siri:demo/model", *options, "--out", str(base)]) == 0
    assert " ± " in capsys.readouterr().out
    assert main(["eval", "siri:demo/model", *options, "--seed", "1", "--base", str(base), "--out", str(out)]) == 0
    assert "points, problem by problem" in " ".join(capsys.readouterr().out.split())
    before, now = (json.loads(path.read_text()) for path in (base, out))
    (name,) = now["benchmarks"]
    hits = [row["benchmarks"][name]["right_by_problem"] for row in (now, before)]
    assert len(hits[0]) == 12 and sum(hits[0]) / 24 == pytest.approx(now["accuracy"])
    assert now["differences"][name]["accuracy"] == pytest.approx(now["accuracy"] - before["accuracy"])
    before["benchmarks"][name]["right_by_problem"] = [1]
    base.write_text(json.dumps(before))
    assert main(["eval", "siri:demo/model", *options, "--base", str(base)]) == 2
    assert "not a result file of siri eval" in capsys.readouterr().err
    for figures in before["benchmarks"].values():  # of an older release
        for key in ("right_by_problem", "accuracy_half", "tokens_half"):
            figures.pop(key)
    base.write_text(json.dumps(before))
    assert main(["eval", "siri:demo/model", *options, "--base", str(base), "--out", str(out)]) == 0
    assert json.loads(out.read_text())["differences"] == {}


def test_a_t_test_is_students():
    """At the 95 % quantile p is 0.05, whatever the degrees of freedom; one and two have simple closed forms."""
    for count in range(2, 31):
        draw = random.Random(count)
        values = [draw.gauss(0, 1) for _ in range(count)]
        mean = sum(values) / count
        half = half_width(values)
        assert half is not None
        assert t_test([value - mean + half for value in values]) == pytest.approx(0.05, abs=1e-4), (
            "the quantiles have three places"
        )
    assert t_test([1.0, 2.0]) == pytest.approx(1 - 2 / math.pi * math.atan(3))
    assert t_test([1.0, 2.0, 3.0]) == pytest.approx(1 - 12**0.5 / 14**0.5)
    assert t_test([1.0]) is None and t_test([0.0, 0.0]) == 1 and t_test([2.0, 2.0]) == 0


def test_holm_adjusts_for_the_number_of_tests():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.4, 0.6]) == pytest.approx([0.8, 0.8]) and holm([]) == []
