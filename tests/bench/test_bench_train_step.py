"""The benchmark of a training step runs at its tiny size and compares like with like; its plans hold at real sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import train_step
from train_step import CAPS, MODELS, Setup, draw, goals_of, measure, packed_plan, padded_plan, predicted_bytes

from siri.runtime.ranks import ALONE

BENCH = Path(__file__).parents[2] / "bench"


def planned(memory: int) -> Setup:
    """The real model's shapes on a GPU of that many bytes, without either."""
    from transformers import Qwen2Config

    config = Qwen2Config(**MODELS["1.5b"], **train_step.COMMON)
    assert config.rope_parameters["rope_theta"] == 10_000
    policy = SimpleNamespace(model=SimpleNamespace(config=config))
    return Setup(policy, None, ALONE, torch.device("cpu"), memory)


def test_the_program(tmp_path):
    out = tmp_path / "new" / "results.json"
    environment = {"PYTHON": sys.executable, "OUT": str(out.parent), "SIZES": "tiny", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(BENCH / "gpu.sh"), "train"], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(out.read_text())
    ways = {"siri packed", "padded full logits"} | (
        {"padded TRL chunked"} if train_step.installed("trl.kernels") else set()
    )
    for cap in ("96", "48"):
        rows = {row["impl"]: row for row in record["rows"] if row["size"] == f"tiny-{cap}"}
        assert rows.keys() == ways
        norms = [row["grad_norm"] for row in rows.values()]
        assert max(norms) < min(norms) * (1 + 1e-4) and min(norms) > 0
        assert 0 < rows["siri packed"]["head_share"] < 1
        assert all(row["tokens_per_s"] > 0 for row in rows.values())
    assert {goal["met"] for goal in record["goals"]} == {None}, "a CPU measures nothing"


def test_who_computes_something_else_is_left_out(monkeypatch, capsys, tmp_path):
    setup = train_step.build("tiny", torch.device("cpu"))
    monkeypatch.setattr(train_step, "full_logits", lambda policy, batch: 1.01 * right(policy, batch))
    rows, _ = measure(setup, "tiny", 48, 1, float("inf"), tmp_path / "rows.json")
    assert "padded full logits" not in {row["impl"] for row in rows} and "is off by" in capsys.readouterr().out


right = train_step.full_logits


def test_time_is_up(capsys, tmp_path):
    setup = train_step.build("tiny", torch.device("cpu"))
    assert measure(setup, "tiny", 48, 1, 0.0, tmp_path / "rows.json") == ([], {})
    assert "siri packed stays unmeasured" in capsys.readouterr().out


@pytest.mark.parametrize("cap", CAPS["1.5b"])
def test_lengths(cap, monkeypatch):
    monkeypatch.setitem(train_step.SEQUENCES, "1.5b", 400)
    lengths = np.array([len(sample.response_ids) for sample in draw("1.5b", cap)])
    assert lengths.max() == cap and (lengths == cap).mean() == pytest.approx(0.127, abs=0.05)  # P(z > log(1/0.45)/0.7)
    assert np.median(lengths) == pytest.approx(0.45 * cap, rel=0.1)


def test_plans_at_real_sizes():
    h200 = planned(141 * 10**9)
    budget, level = packed_plan(h200, 16_512)
    assert (budget, level) == (24_576, "none")
    assert predicted_bytes(h200, budget, level) <= 0.9 * h200.memory < predicted_bytes(h200, 36_864, level)
    assert padded_plan(h200, 16_512, logits=True) == (1, "none")
    assert padded_plan(h200, 8320, logits=False)[0] > padded_plan(h200, 8320, logits=True)[0] >= 2
    assert packed_plan(planned(80 * 10**9), 16_512)[1] != "none"


def test_the_prediction_is_that_of_the_plan():
    """What the trainer would print, without the rollout engine's weights, which this program does not hold."""
    from siri.config import Config
    from siri.planning.memory_plan import Machine, memory_plan, update_peak

    setup = planned(141 * 10**9)
    config = Config(token_budget=24_576, checkpointing="none", max_prompt_tokens=128)
    plan = memory_plan(setup.config, config, Machine(1, setup.memory), rollout="local")
    assert plan.engine > 0
    peak = update_peak(setup.config, plan, 24_576, several=True)
    assert predicted_bytes(setup, 24_576, "none") == peak - plan.engine


def test_goals():
    goals = {goal["id"]: goal for goal in goals_of("1.5b", 16_384, {"mfu": 0.5, "speedup-padded": 2.0})}
    assert goals["train.mfu.1.5b-16k"]["met"] is True and goals["train.speedup-padded.1.5b-16k"]["met"] is False
    assert goals["train.memory-error.1.5b-16k"]["met"] is None
    assert "train.mfu.1.5b-8k" not in {goal["id"] for goal in goals_of("1.5b", 8192, {})}
