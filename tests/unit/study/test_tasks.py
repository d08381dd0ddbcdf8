"""Figures of a study of several tasks, against cases worked by hand."""

import pytest

from siri.study.compare import Curve
from siri.study.lengths import best_within, crossed, mean_accuracy, value_at
from siri.study.tasks import TaskRuns, comparisons, missing_runs, overall, regrets, task_sheets, tokens_of


def half(accuracy, tokens, right=10.0, wrong=20.0, problems=100) -> dict:
    return {"accuracy": accuracy, "tokens_mean": tokens, "problems": problems} | {
        "tokens_right_mean": right,
        "tokens_wrong_mean": wrong,
    }


def checkpoint(step, first, second) -> dict:
    """Halves: (accuracy, tokens)."""
    halves = [half(*first), half(*second)]
    means = {key: sum(each[key] for each in halves) / 2 for key in ("accuracy", "tokens_mean")}
    return {"step": step, "train_tokens": 1000 * step, "cap": 48, "halves": halves, **means}


def run(arm, seed, *accuracies, tokens=10) -> Curve:
    evals = [checkpoint(step, (value, tokens), (value, tokens)) for step, value in enumerate(accuracies)]
    return Curve(arm, seed, evals, {})


def task(name, curves) -> TaskRuns:
    arms: dict[str, list[Curve]] = {}
    for curve in curves:
        arms.setdefault(curve.arm, []).append(curve)
    return TaskRuns(name, (10.0,), (1.0,), arms, {(c.arm, c.seed): 60.0 for c in curves}, [])


def test_a_longer_model_meets_a_length_by_leaving_prompts_out():
    assert value_at(10)(half(0.8, 20)) == pytest.approx(0.4)
    assert value_at(10)(half(0.8, 5)) == 0.8


def test_the_half_that_chooses_is_not_the_half_that_reports():
    evals = [checkpoint(0, (0.9, 10), (0.5, 10)), checkpoint(1, (0.6, 10), (0.8, 10))]
    # the first half chooses 0, which the second says is 0.5; the second chooses 1, which the first says is 0.6
    assert crossed(evals, value_at(10)) == pytest.approx((0.5 + 0.6) / 2)
    assert mean_accuracy(evals, [10, 5]) == pytest.approx((0.55 + 0.275) / 2)
    assert best_within(evals, 0.5) == pytest.approx((0.5 + 0.9) / 2), "the second is beyond the budget"


def test_tokens_of_right_and_wrong_weigh_the_halves_by_their_responses():
    row = {"halves": [half(0.75, 0, right=10, wrong=40), half(0.25, 0, right=20, wrong=20)]}
    assert tokens_of(row, True) == pytest.approx((75 * 10 + 25 * 20) / 100)
    assert tokens_of(row, False) == pytest.approx((25 * 40 + 75 * 20) / 100)
    assert tokens_of({"halves": [half(1.0, 9, wrong=None)]}, False) is None


def test_regret_is_paired_by_seed_and_the_best_arm_of_a_task_has_none():
    first = task("x", [run("a", 0, 0.5), run("a", 1, 0.7), run("b", 0, 0.6), run("b", 1, 0.6), run("c", 1, 0.4)])
    second = task("y", [run("a", 0, 0.3), run("a", 1, 0.3), run("b", 0, 0.2), run("b", 1, 0.1)])
    table = regrets([first, second])
    assert table["a"]["x"] == {0: 0.0, 1: 0.0}, "the first of equals is the best"
    assert table["b"]["x"] == pytest.approx({0: -0.1, 1: 0.1}) and table["b"]["y"] == pytest.approx({0: 0.1, 1: 0.2})
    assert table["c"]["x"] == pytest.approx({1: 0.3})
    mean = overall(table["b"], [first, second])
    assert mean.mean == pytest.approx((0.0 + 0.15) / 2) and mean.count == 2
    assert overall(table["c"], [first, second]).mean is None, "it has not run in every task"


def test_comparisons_are_paired_and_adjusted_over_all_tasks():
    first = task("x", [run("a", s, 0.5) for s in range(3)] + [run("b", s, 0.6 + s / 100) for s in range(3)])
    second = task("y", [run("a", s, 0.5) for s in range(3)] + [run("b", s, 0.5 + (-1) ** s / 10) for s in range(3)])
    compared = comparisons([first, second])
    assert set(compared) == {("x", "b"), ("y", "b")}
    sharp = compared["x", "b"]
    assert sharp.difference.mean == pytest.approx(0.11)
    # t = 0.11 / (0.01 / sqrt 3) with two degrees of freedom: p = 1 - t / sqrt(2 + t^2)
    t = 0.11 / (0.01 / 3**0.5)
    assert sharp.p == pytest.approx(2 * (1 - t / (2 + t * t) ** 0.5), rel=1e-6), "twice, for there are two"
    assert compared["y", "b"].p > 0.5
    alone = comparisons([task("x", [run("a", 0, 0.5), run("b", 0, 0.6)])])["x", "b"]
    assert alone.p is None and alone.difference.half is None, "one seed has no test"


def test_tables_say_what_is_missing_and_show_no_interval_of_one_seed():
    runs = task("x", [run("a", 0, 0.5, 0.6), run("b", 0, 0.6, 0.7)])
    runs.missing.append("b-1")
    text = "\n".join([*(sheet.markdown() for sheet in task_sheets([runs])), *missing_runs([runs])])
    assert "| b | 1 | 70.0 | 70.0 | +10.0 |  | 70.0 |" in text
    assert "±" not in text.split("Regret")[0].partition("|")[2]
    assert "Not run yet in x: b-1." in text and "| b | 0.0 | 0.0 | 0.0 |" in text


def test_charts_show_every_arm_that_has_run_in_any_task():
    from siri.study.task_charts import lengths_chart, regret_chart

    runs = [task("x", [run("a", 0, 0.5), run("a", 1, 0.6), run("b", 0, 0.7)]), task("y", [run("c", 0, 0.4)])]
    lengths, regret = lengths_chart(runs), regret_chart(runs, narrow=True)
    assert lengths and regret
    names = [label.get_text() for label in lengths.axes[0].get_yticklabels()]
    assert names == ["a", "b", "c"] and len(lengths.axes) == 2 and len(regret.axes) == 3
    dots = [list(line.get_xdata()) for line in lengths.axes[0].get_lines() if line.get_marker() == "o"]
    assert sorted(x for xs in dots for x in xs) == pytest.approx([55.0, 70.0])
    assert lengths.axes[0].get_xlim()[0] > 40, "the interval of two seeds is wider than the panel"
    assert lengths_chart([TaskRuns("z", (10.0,), (), {}, {}, [])]) is None and regret_chart([]) is None
