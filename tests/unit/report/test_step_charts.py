"""The pictures of a step show the rows they are drawn from."""

import re
from itertools import pairwise

import matplotlib
import pytest
from matplotlib.colors import to_hex

from siri.report import style
from siri.report.step_charts import PARTS, chosen_plans, parts_of, plan_chart, time_chart
from siri.store.jsonl import MetricsLog, read_run
from tests.support.synthetic_run import make_run

ROW = {"step": 0, "step_time_s": 10.0, "rollout_s": 5.0, "reward_s": 1.5, "plan_s": 0.25, "old_logp_s": 0.5}
ROW |= {"forward_s": 1.0, "head_s": 0.5, "backward_s": 1.5, "optimizer_s": 0.25, "sync_s": 0.5, "save_s": 2.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return read_run(make_run(tmp_path_factory.mktemp("runs") / "demo"))


def drawn(chart, run, narrow=False):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with matplotlib.rc_context(style.rc_style()):
        figure = chart(run, narrow=narrow)
        FigureCanvasAgg(figure).draw()
    return figure


def edges_over(shape, x):
    """Where the lower and the upper edge of an area are at x."""
    ends = [(start, end) for path in shape.get_paths() for start, end in pairwise(path.vertices)]
    heights = {round(y, 9) for (x0, y), (x1, y1) in ends if y == y1 and min(x0, x1) < x < max(x0, x1)}
    return min(heights), max(heights)


def test_parts_add_up_to_the_step_and_the_save_after_the_one_before():
    parts = parts_of(ROW)
    assert parts["rollout"] == 3.5 and parts["reward"] == 1.5, "grading is within the rollout"
    assert parts["other"] == pytest.approx(0.5)
    assert sum(parts.values()) == pytest.approx(10.0 + 2.0)
    assert [name for name, _ in PARTS] == list(parts)[:-1]
    assert parts_of({"step": 1, "step_time_s": None, "rollout_s": 1.0})["other"] == 0


def test_the_areas_are_the_seconds(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step, factor in enumerate((1.0, 0.5, 2.0)):
        log.append({key: value * factor for key, value in ROW.items()} | {"step": step})
    figure = drawn(time_chart, read_run(tmp_path))
    (axes,) = figure.axes
    areas = {shape.get_label(): shape for shape in axes.collections}
    assert list(areas) == [*(name for name, _ in PARTS), "other"]
    expected = parts_of(ROW)
    for name, shape in areas.items():
        for step, factor in enumerate((1.0, 0.5, 2.0)):
            low, high = edges_over(shape, step + 0.5)
            assert high - low == pytest.approx(factor * expected[name])
    top = areas["other"].get_paths()[0].vertices
    assert max(y for _, y in top) == pytest.approx(2 * 12.0), "step and save"
    colours = [to_hex(shape.get_facecolor()[0]) for shape in areas.values()]
    assert len(set(colours)) == len(colours) and set(colours) <= set(style.LIGHT.values())
    assert figure.legends[0].get_texts()[0].get_text() == "rollout 29.2%"


@pytest.mark.parametrize("narrow", [False, True], ids=["wide", "narrow"])
def test_predicted_beside_measured(run, narrow):
    _, below = drawn(time_chart, run, narrow).axes
    measured, predicted = (line.get_ydata() for line in below.lines)
    assert list(measured) == pytest.approx([row["micro_steps_s"] for row in run.metrics[1:]])
    assert list(predicted) == pytest.approx([row["micro_steps_predicted_s"] for row in run.metrics[1:]])
    assert below.get_ylim()[0] == 0


def test_long_runs_show_means_over_equal_steps(run):
    upper, _ = drawn(time_chart, run).axes
    assert upper.get_title(loc="left") == "Seconds of a step by part, mean of 2 steps"
    top = upper.collections[-1].get_paths()[0].vertices
    means = [sum(row["step_time_s"] + row["save_s"] for row in run.metrics[i : i + 2]) / 2 for i in range(0, 120, 2)]
    assert max(y for _, y in top) == pytest.approx(max(means))


def test_the_newest_plan_of_each_phase_is_drawn(run):
    chosen = chosen_plans(run.plans)
    assert [(plan["phase"], plan["step"]) for plan in chosen] == [("compression", 99), ("expansion", 119)]
    assert chosen_plans([{"step": 0, "phase": "expansion", "costs": []}]) == []


@pytest.mark.parametrize("narrow", [False, True], ids=["wide", "narrow"])
def test_bars_are_what_the_ranks_run(run, narrow):
    figure = drawn(plan_chart, run, narrow)
    for axes, plan in zip(figure.axes, chosen_plans(run.plans), strict=True):
        ranks = len(plan["costs"][0])
        unit = re.search(r"(.)FLOP", axes.get_xlabel()).group(1)
        scale = {"P": 1e3, "T": 1.0, "G": 1e-3}[unit]
        bars = [shape for shape in axes.collections if len(shape.get_facecolor())]
        assert len(bars) == ranks
        left = 0.0
        for index, row in enumerate([[cost / scale for cost in row] for row in plan["costs"]]):
            for rank, cost in enumerate(row):
                box = bars[rank].get_paths()[index].get_extents()
                assert (box.x0, box.x1 - box.x0) == pytest.approx((left, cost))
                assert box.y0 < rank < box.y1
            left += max(row)
        assert axes.get_xlim() == pytest.approx((0, left)), "the axis ends with the slowest rank"
        cuts = [shape for shape in axes.collections if not len(shape.get_facecolor())]
        count = sum(len(shape.get_segments()) for shape in cuts)
        assert count == sum(len(bin_) - 1 for row in plan["lengths"] for bin_ in row), "a cut between two sequences"
        assert plan["phase"] in axes.get_title(loc="left")
        assert f"efficiency {100 * plan['lockstep_efficiency']:.1f}%" in axes.get_title(loc="left")
        for text in (axes.xaxis.label, axes.title, *axes.texts):
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height, text.get_text()


def test_one_rank_with_one_bin(tmp_path):
    MetricsLog(tmp_path / "metrics.jsonl").append({"step": 0, "step_time_s": 1.0})
    plan = {"step": 0, "phase": "expansion", "cap": 8, "starts": [0], "lengths": [[[5, 3]]], "costs": [[2.0]]}
    MetricsLog(tmp_path / "plans.jsonl").append({**plan, "lockstep_efficiency": 1.0})
    (axes,) = drawn(plan_chart, read_run(tmp_path)).axes
    assert "1 micro-step on 1 rank," in axes.get_title(loc="left")
    assert list(axes.get_yticks()) == [0] and "TFLOP" in axes.get_xlabel()


def test_nothing_to_draw(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    empty = read_run(tmp_path)
    assert time_chart(empty) is None and plan_chart(empty) is None
