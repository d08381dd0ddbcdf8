"""Numbers that go wrong: found in the step, dealt with by rule, kept as a bundle that replays bit for bit."""

import json
import os
import socket
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from siri import cli
from siri.commands import replay
from siri.config.rules import DEFAULTS, read_rules
from siri.errors import InputError
from siri.model.liger import Applied
from siri.store.checkpoint import newest_good
from siri.train import learner as update
from siri.train.run import DONE
from tests.support import warm
from tests.support.training import SMALL, reproducible, rows

pytestmark = pytest.mark.torture


def train(folder: Path, *arguments: str, expect: int = 0) -> list[dict]:
    command = ["train", "demo", *SMALL, "--eval-problems", "2", *arguments, "--run-dir", str(folder)]
    with patch("siri.report.view.write_report"):
        assert cli.main(command) == expect
    return rows(folder)


def bundles(folder: Path) -> list[Path]:
    return sorted((folder / "postmortem").glob("step_*"))


@pytest.mark.parametrize("text", ["", "ratio", "ratio=", "ratio=stop", "ratios=warn", "ratio=skip:0", "ratio=warn:x"])
def test_what_is_no_rule(text):
    with pytest.raises(InputError, match="is no rule; write case=action"):
        read_rules([text])


def test_rules():
    assert read_rules([]).keys() == DEFAULTS.keys()
    rule = read_rules(["ratio=warn", "ratio=skip:3"])["ratio"]
    assert (rule.action, rule.patience) == ("skip", 3)
    with pytest.raises(InputError, match="would destroy the weights"):
        read_rules(["nonfinite=warn"])


def poison(monkeypatch, *, at: set[int], value: float = float("nan"), what: str = "loss") -> None:
    """Spoil the loss or a metric of the optimizer steps (mini-batches) whose number is in `at`."""
    calls, loss_of = [], update.policy_loss

    def spoilt(*args, **options):
        result = loss_of(*args, **options)
        calls.append(1)
        if len(calls) - 1 not in at:
            return result
        if what == "loss":
            return result._replace(loss=result.loss * value) if hasattr(result, "_replace") else spoil(result, value)
        result.metrics[what] = torch.tensor(value)
        return result

    monkeypatch.setattr(update, "policy_loss", spoilt)


def spoil(result, value: float):
    import dataclasses

    return dataclasses.replace(result, loss=result.loss * value)


def test_a_loss_that_is_not_finite_is_skipped_counted_and_told(tmp_path, monkeypatch, capsys, fault):
    """Mini-batch 2 of 6 (the first of step 1): the weights are as if it had not been there."""
    poison(monkeypatch, at={2})
    metrics = train(tmp_path / "run", "--steps", "3", "--save-every", "1", "--health", "nonfinite=skip:2")
    assert [row["skipped_updates"] for row in metrics] == [0, 1, 0]
    assert metrics[1]["loss"] is None
    out = capsys.readouterr().out
    assert "warning: step 1: the loss or its gradient is nan; update left out" in out
    assert f"siri replay {bundles(tmp_path / 'run')[0]}" in out
    assert all(row["grad_norm"] is not None and row["loss"] is not None for row in (metrics[0], metrics[2]))
    assert [row["case"] for row in rows(tmp_path / "run", "health")] == ["nonfinite"]
    fault("NaN loss", "1 update", "skipped, counted, bundle written; the run goes on")


def test_the_run_ends_at_the_kth_in_a_row_with_its_state_saved(tmp_path, monkeypatch, capsys, fault):
    poison(monkeypatch, at={2, 3, 4, 5, 6, 7, 8, 9}, value=float("inf"))
    train(tmp_path / "run", "--steps", "6", "--quiet", "--health", "nonfinite=skip:2", expect=2)
    error = capsys.readouterr().err
    assert (
        error.count("\n") == 1 and "stopped after step 2" in error and "2 steps in a row (health: nonfinite)" in error
    )
    assert newest_good(tmp_path / "run" / "checkpoints")[0].name == "step_000003"
    monkeypatch.undo()
    assert len(train(tmp_path / "run", "--steps", "4", "--quiet", "--resume")) == 4
    fault("inf loss, step after step", "K = 2", "stopped with one line, state saved, resumable")


@pytest.mark.parametrize(
    ("case", "arguments", "said"),
    [
        ("ratio", ["--ratio-limit", "0.5"], "a probability ratio of"),
        ("entropy", ["--entropy-floor", "99"], "the mean entropy is"),
        ("reward", ["--no-think"], "every response has the score 0"),
        ("variance", ["--reward", "half_marks:half", "--overlong", "grade"], "no group has both right and wrong"),
        ("truncation", ["--l-max", "4", "--l-min", "2"], "the cap cut every response"),
    ],
)
def test_each_case_is_found_and_skipped_or_not_by_rule(tmp_path, monkeypatch, capsys, case, arguments, said, fault):
    monkeypatch.chdir(tmp_path)
    Path("half_marks.py").write_text("def half(response, answer):\n    return 0.5\n")
    common = ["--steps", "1", *arguments, "--lr", "1e-2"]
    off = [f"{other}=off" for other in DEFAULTS if other not in (case, "nonfinite")]
    warned = train(tmp_path / "warn", *common, "--health", *off, f"{case}=warn")
    out = capsys.readouterr().out
    assert f"warning: step 0: {said}" in out and "update made" in out
    assert warned[0]["skipped_updates"] == 0 and len(bundles(tmp_path / "warn")) == 1
    skipped = train(tmp_path / "skip", *common, "--health", *off, f"{case}=skip", "--bundles", "0")
    assert "update left out" in capsys.readouterr().out
    assert skipped[0]["skipped_updates"] == 2 and not bundles(tmp_path / "skip")
    train(tmp_path / "off", *common, "--health", *off, f"{case}=off", "--quiet")
    assert not (tmp_path / "off" / "health.jsonl").exists() and not bundles(tmp_path / "off")
    train(tmp_path / "stop", *common, "--health", *off, f"{case}=warn:1", "--quiet", "--bundles", "0", expect=2)
    assert f"1 steps in a row (health: {case})" in capsys.readouterr().err
    again = replay.replay(bundles(tmp_path / "warn")[0])
    assert again.same and again.recorded[1] == pytest.approx(again.replayed[1], rel=1e-6) and case in again.cases
    fault(f"health: {case}", "4 rules", "warned, skipped, stopped or ignored as told; replay bit for bit")


def test_a_grader_that_fails_too_often_is_told(tmp_path, monkeypatch, capsys):
    """Without a bundle: the update is as it should be."""
    monkeypatch.chdir(tmp_path)
    Path("lost.py").write_text("def lost(response, answer):\n    return 1.0 if 'boxed' in response else 1 / 0\n")
    common = ["--steps", "1", "--reward", "lost:lost"]
    quiet = [f"{other}=off" for other in DEFAULTS if other not in ("grader", "nonfinite")]
    train(tmp_path / "warn", *common, "--health", *quiet)
    out = capsys.readouterr().out
    assert "warning: step 0: 100.0% of the responses timed out or failed in grading; update made" in out
    assert [row["case"] for row in rows(tmp_path / "warn", "health")] == ["grader"] and not bundles(tmp_path / "warn")
    train(tmp_path / "stop", *common, "--health", *quiet, "grader=warn:1", "--quiet", expect=2)
    assert "1 steps in a row (health: grader)" in capsys.readouterr().err


def test_a_bundle_replays_bit_for_bit(tmp_path, monkeypatch, capsys, fault):
    """The second mini-batch of the third step: old log-probs of older weights, moments, several micro-steps."""
    poison(monkeypatch, at={9999})
    options = ["--steps", "3", "--token-budget", "400", "--ratio-limit", "1.0000001", "--quiet"]
    train(tmp_path / "run", *options, "--health", "ratio=warn")
    bundle = bundles(tmp_path / "run")[0]
    held = json.loads((bundle / "state.json").read_text())["bundle"]
    assert held["mini_batch"] == 1 and len(held["plan"]) > 1 and held["old_logps"][0].keys() >= {"0", "1"}
    assert held["sampled_from"]["cursor"] % 4 == 0 and held["metrics"]["ratio_max"] > 1
    assert cli.main(["replay", str(bundle)]) == 0
    out = capsys.readouterr().out
    assert "the same, bit for bit" in out and "largest    micro-step" in out
    with monkeypatch.context() as patched:
        patched.setattr("siri.train.setup.apply_liger", lambda model, choice, device: Applied((), ("left out",)))
        assert cli.main(["replay", str(bundle)]) == 0
    assert capsys.readouterr().out == f"left out\n{out}"
    # sharded over one process, as on a GPU
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    meeting = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    again = [sys.executable, "-m", "siri", "replay", str(bundle)]
    sharded = warm.run(again, env={**os.environ, **meeting}, capture_output=True, text=True, timeout=900)
    assert sharded.returncode == 0 and "the same, bit for bit" in sharded.stdout, sharded.stderr
    changed = json.loads((bundle / "state.json").read_text())
    changed["bundle"]["samples"][0]["response_ids"][0] += 1
    (bundle / "state.json").write_text(json.dumps(changed))
    assert cli.main(["replay", str(bundle)]) == 2
    assert "state.json" in capsys.readouterr().err
    with pytest.raises(InputError, match="no post-mortem bundle"):
        replay.replay(tmp_path / "run" / "checkpoints" / "step_000003")
    with pytest.raises(InputError, match="no post-mortem bundle there"):
        replay.replay(tmp_path)
    fault("post-mortem bundle", "1", "replayed bit for bit; a changed one is refused")


def test_watching_changes_nothing(tmp_path):
    """The same run with every rule off and with every rule on."""
    off = [f"{case}=off" for case in DEFAULTS if case != "nonfinite"]
    unwatched = train(tmp_path / "off", "--steps", "2", "--quiet", "--health", *off)
    on = ["--ratio-limit", "0.01", "--entropy-floor", "99"]
    watched = train(tmp_path / "on", "--steps", "2", "--quiet", *on)
    assert reproducible(unwatched) == reproducible(watched)
    assert DONE == 0
