"""What a cap that goes up and down comes to, against cases worked by hand."""

import math

import pytest

from siri.study.compare import Curve
from siri.study.cycles import at_point, beside_points, cycle_sheets
from siri.study.tasks import TaskRuns
from tests.unit.study.test_tasks import checkpoint


def run(arm: str, seed: int, points: list[tuple], names: dict[int, str] | None = None, steps=None) -> Curve:
    """points: (accuracy, tokens) after each step; 1,000 training tokens a step."""
    evals = [checkpoint(step, point, point) for step, point in enumerate(points)]
    for row in evals:
        row["name"] = (names or {}).get(row["step"], f"step-{row['step']}")
    return Curve(arm, seed, evals, steps or {})


def task(name: str, curves: list[Curve]) -> TaskRuns:
    arms: dict[str, list[Curve]] = {}
    for curve in curves:
        arms.setdefault(curve.arm, []).append(curve)
    return TaskRuns(name, (10.0,), (1.0,), arms, {}, [])


ENDS = {1: "siri-low-1", 2: "siri-high-1", 3: "siri-low-2", 4: "siri-high-2"}


def test_others_have_no_more_training_tokens_and_no_more_length():
    other = run("flat", 0, [(0.4, 10), (0.5, 10), (0.9, 10)])
    assert at_point(other, 10, 1000) == 0.5, "the last checkpoint came later"
    assert at_point(other, 10, 1999) == 0.5 and at_point(other, 10, 2000) == 0.9
    assert at_point(other, 5, 2000) == pytest.approx(0.45), "half of the prompts get no answer"
    lucky = Curve("flat", 0, [checkpoint(0, (0.9, 10), (0.5, 10)), checkpoint(1, (0.6, 10), (0.8, 10))], {})
    assert at_point(lucky, 10, 1000) == pytest.approx((0.5 + 0.6) / 2), "the half that chooses does not report"


def test_the_last_points_of_the_first_arm_are_paired_by_seed():
    siri = [
        run("siri", seed, [(0.4, 20), (0.5, 10), (0.6, 20), (0.7, 8), (0.8 + seed / 10, 16)], ENDS)
        for seed in (0, 1, 2)
    ]
    flat = [run("flat", seed, [(0.4, 20), (0.5, 20), (0.6, 16), (0.6, 16), (0.9, 32)]) for seed in (1, 2, 5)]
    table = beside_points(task("x", siri + flat))
    assert list(table) == [
        ("siri-low-2", "siri"),
        ("siri-low-2", "flat"),
        ("siri-high-2", "siri"),
        ("siri-high-2", "flat"),
    ]
    assert table["siri-low-2", "siri"].accuracy == [0.7] * 3 and table["siri-low-2", "siri"].gaps == []
    assert table["siri-low-2", "flat"].accuracy == pytest.approx([0.3, 0.3]), "16 tokens for 8"
    assert table["siri-low-2", "flat"].gaps == pytest.approx([0.4, 0.4])
    # at 16 tokens 0.6 is better than half of 0.9
    assert table["siri-high-2", "flat"].gaps == pytest.approx([0.9 - 0.6, 1.0 - 0.6])
    (sheet,) = cycle_sheets([task("x", siri + flat)])
    assert sheet.title.startswith(
        "Task x: siri at siri-low-2 (8.0 ± 0.0 tokens, 3 ± 0 K training tokens) and siri-high-2"
    )
    line = sheet.body[1]
    assert line[0] == "flat" and line[2].startswith("+40.0") and line[5].startswith("+35.0")
    # seeds that agree leave no doubt; the other p is the larger of two and stays. t = 7 with one degree of freedom
    assert line[3] == "0" and float(line[6]) == pytest.approx(1 - 2 / math.pi * math.atan(7), abs=0.005)


def test_p_values_are_adjusted_over_all_tasks():
    def runs(name):
        siri = [run("siri", seed, [(0.4, 20), (0.5, 10)], {1: "siri-low-1"}) for seed in range(3)]
        return task(name, siri + [run("flat", seed, [(0.2, 10), (0.3 + seed / 100, 10)]) for seed in range(3)])

    alone, both = cycle_sheets([runs("x")]), cycle_sheets([runs("x"), runs("y")])
    assert len(alone) == 1 and len(both) == 2
    assert float(both[0].body[1][3]) == pytest.approx(2 * float(alone[0].body[1][3]), rel=0.05)


def test_a_task_without_points_has_no_tables():
    assert (
        cycle_sheets([task("x", [run("flat", 0, [(0.5, 10), (0.6, 10)])]), TaskRuns("y", (10.0,), (), {}, {}, [])])
        == []
    )


def test_swings_and_phases_stand_below_the_points_of_their_task():
    period, curves = 12, []
    for seed in range(4):
        turn = [2 * math.pi * step / period for step in range(3 * period)]
        steps = {
            "cap": [40 + 8 * math.sin(angle) for angle in turn],
            "response_tokens_mean": [20 + 3 * math.sin(angle - 0.5) + 0.01 * seed * math.cos(angle) for angle in turn],
            "entropy": [0.3 + 0.001 * seed for _ in turn],
            "phase": ["compression" if math.cos(angle) < 0 else "expansion" for angle in turn],
        }
        curves.append(run("siri", seed, [(0.4, 20), (0.5, 10)], {1: "siri-low-1"}, steps))
    points, swings, phases = cycle_sheets([task("x", curves)])
    assert swings.title.startswith("Task x: swing of training") and phases.title.startswith("Task x: dynamics in")
    arm, cycle, tokens, entropy = swings.body[0]
    assert (arm, cycle) == ("siri", "12") and tokens.startswith("± 3") and "none that can be told" in entropy
    assert points.title.startswith("Task x: siri at siri-low-1")
