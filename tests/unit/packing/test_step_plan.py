"""What is kept of a step's plan, and seconds predicted from the run's earlier steps."""

import json
import math

import pytest

from siri.packing import pack
from siri.packing.flops import sequence_cost
from siri.packing.step_plan import StepPlan, StepTimes
from siri.planning.models import load_model_config
from tests.support.training import rows, train


def planned(*batches, ranks=2, budget=20):
    plan = StepPlan()
    for lengths in batches:
        plan.add(pack(lengths, token_budget=budget, ranks=ranks), lengths)
    return plan


def test_the_record_holds_every_length_once_where_the_plan_put_it():
    batches = ([9, 3, 12, 20, 7], [5, 5, 5, 19])
    plan = planned(*batches)
    record = json.loads(json.dumps(plan.record(step=4, cap=20)))
    assert record["step"] == 4 and record["starts"][0] == 0 and len(record["starts"]) == 2
    second = record["starts"][1]
    for lengths, steps in zip(batches, (record["lengths"][:second], record["lengths"][second:]), strict=True):
        assert sorted(n for step in steps for bin_ in step for n in bin_) == sorted(lengths)
    assert len(record["costs"]) == len(record["lengths"]) == len(plan.slowest)
    assert plan.slowest == [max(step) for step in plan.costs]
    tokens = sum(map(sum, batches))
    assert plan.budget_use(20) == pytest.approx(tokens / (20 * 2 * len(plan.costs)))
    assert 0 < plan.lockstep_efficiency <= 1
    assert plan.largest(1) == max(sum(step[1]) for step in record["lengths"]) <= 20 and plan.several
    alone = planned([3, 4], [5, 6], ranks=2)
    assert not alone.several and alone.largest(0) == max(alone.lengths[0][0][0], alone.lengths[1][0][0])


def test_nothing_planned():
    plan = StepPlan()
    assert math.isnan(plan.lockstep_efficiency) and math.isnan(plan.budget_use(10)) and plan.slowest == []
    assert plan.largest(0) == 0 and not plan.several
    assert StepTimes().note(plan, []) == {"micro_steps_s": 0, "micro_steps_predicted_s": None}


def test_times_are_learned_from_earlier_steps_only():
    times = StepTimes()
    assert times.predict([1.0]) is None
    costs = [5e12, 3e12, 1e12]
    times.learn(costs, [2e-12 * cost + 0.5 for cost in costs])
    assert times.predict([4e12, 2e12]) == pytest.approx([8.5, 4.5]), "rate and overhead"


def test_recent_steps_weigh_more():
    times = StepTimes()
    for rate in [1e-12] * 20 + [3e-12] * 20:
        times.learn([1e12, 2e12], [rate * 1e12, rate * 2e12])
    (seconds,) = times.predict([1e12])
    assert 2.7 < seconds <= 3.0


@pytest.mark.parametrize("seconds", [[1.0, 2.0, 3.0], [3.1, 3.0, 0.9]], ids=["falling with cost", "below the origin"])
def test_no_rate_and_no_overhead_is_negative(seconds):
    times, costs = StepTimes(), [3e12, 2e12, 1e12]
    times.learn(costs, seconds)
    low, high = times.predict([1e11, 5e12])
    assert 0 <= low < high


def test_equal_costs_say_nothing_of_the_overhead():
    times = StepTimes()
    times.learn([2e12, 2e12], [1.0, 3.0])
    assert times.predict([2e12, 4e12]) == pytest.approx([2.0, 4.0])


def test_a_run_predicts_its_steps_and_keeps_the_plans_of_phase_ends(tmp_path):
    """Cycle 4: the first step, the ends of compression (step 1) and expansion (step 3), and the last one."""
    ratio = tmp_path / "ratio.json"
    ratio.write_text('{"cost_ratio": 40.0}')
    arguments = ("--steps", "5", "--token-budget", "160", "--eval-data", "--profile", "2")
    metrics = train(tmp_path / "run", *arguments, "--cost-ratio", str(ratio))
    assert metrics[0]["micro_steps_predicted_s"] is None
    for row in metrics:
        assert 0 < row["micro_steps_s"] < row["train_s"]
        assert row["micro_steps_s"] == pytest.approx(row["forward_s"] + row["head_s"] + row["backward_s"], rel=0.2)
        assert 0 < row["budget_use"] <= 1
    assert all(row["micro_steps_predicted_s"] > 0 for row in metrics[1:])
    plans = rows(tmp_path / "run", "plans")
    assert [row["step"] for row in plans] == [0, 1, 3, 4] and plans[1]["phase"] == "compression"
    for plan in plans:
        row = metrics[plan["step"]]
        assert len(plan["costs"]) == row["micro_steps"] == len(plan["seconds"]) > 1
        assert sum(plan["seconds"]) == pytest.approx(row["micro_steps_s"])
        assert all(sum(bin_) <= 160 == plan["token_budget"] for step in plan["lengths"] for bin_ in step)
        assert sum(len(bin_) for step in plan["lengths"] for bin_ in step) == row["responses"]
    cost = sequence_cost(load_model_config("siri:demo/model")[0], cost_ratio=40.0)
    lengths, costs = plans[0]["lengths"][0][0], plans[0]["costs"][0][0]
    assert costs == pytest.approx(sum(float(cost(n)) for n in lengths) / 1e12, abs=1e-6), "the file's ratio is used"
    trace = json.loads((tmp_path / "run" / "trace_step_000002_rank_0.json").read_text())
    assert any("mm" in event.get("name", "") for event in trace["traceEvents"])
    again = train(tmp_path / "run", *arguments, "--steps", "6", "--resume", "--cost-ratio", "1.6")
    assert len(again) == 6 and [row["step"] for row in rows(tmp_path / "run", "plans")] == [0, 1, 3, 4, 5]
