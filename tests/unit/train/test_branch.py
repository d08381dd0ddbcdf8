"""Runs that start from a checkpoint of another: its weights, its optimizer state, the problems it would have drawn."""

import json
import shutil

import pytest

from siri.cli import main
from siri.errors import InputError
from siri.report.html import write_report
from siri.report.lineage import lineage_text
from siri.store.lineage import BranchPoint
from tests.support.training import assert_same_weights, reproducible, rows, train, weights


def branch(straight, folder, *arguments: str, expect: int = 0) -> list[dict]:
    return train(folder, *arguments, "--quiet", "--save-every", "1", recipe=f"{straight}@3", expect=expect)


def test_a_branch_with_the_trunks_settings_goes_on_as_the_trunk(straight, tmp_path):
    """Its steps have other seeds than those of the trunk, because they count from 0; the batch is what would come."""
    metrics = branch(straight, tmp_path / "one", "--steps", "2", "--schedule", "constant", "--eval-every", "1")
    assert [row["step"] for row in metrics] == [0, 1]
    held = json.loads((tmp_path / "one" / "config.json").read_text())
    assert held["branch_of"] == f"{straight}@3" and held["lineage"]["step"] == 3
    trunk = rows(straight)
    assert held["lineage"]["train_tokens"] == trunk[2]["train_tokens"] and held["lineage"]["run"] == str(straight)
    state = json.loads((tmp_path / "one" / "checkpoints" / "step_000001" / "state.json").read_text())
    trunk_state = json.loads((straight / "checkpoints" / "step_000004" / "state.json").read_text())
    assert state["sampler"] == trunk_state["sampler"] and state["train_tokens"] == metrics[0]["response_tokens"]
    moved = weights(tmp_path / "one", "step_000001")
    steps = {float(value) for name, value in moved.items() if name.endswith(".step")}
    assert steps == {float(v) for name, v in weights(straight, "step_000004").items() if name.endswith(".step")}, (
        "AdamW counts on"
    )
    again = branch(straight, tmp_path / "two", "--steps", "1", "--schedule", "constant", "--eval-every", "1")
    assert reproducible(again) == reproducible(metrics[:1])
    branch(straight, tmp_path / "two", "--steps", "2", "--schedule", "constant", "--eval-every", "1", "--resume")
    assert reproducible(rows(tmp_path / "two")) == reproducible(metrics)
    assert_same_weights(weights(tmp_path / "two", "step_000002"), weights(tmp_path / "one", "step_000002"))
    assert json.loads((tmp_path / "two" / "config.json").read_text())["lineage"] == held["lineage"]
    write_report(tmp_path / "one")
    page = (tmp_path / "one" / "report.html").read_text()
    assert "starts from" in page and f"{straight} after step 3" in page


def test_a_step_of_size_nothing_leaves_the_weights_of_the_trunk(straight, tmp_path):
    branch(straight, tmp_path / "run", "--steps", "1", "--lr", "1e-30", "--weight-decay", "0")
    branched, trunk = weights(tmp_path / "run", "step_000001"), weights(straight, "step_000003")
    names = [name for name in branched if "exp_avg" not in name and not name.endswith(".step")]
    assert len(names) > 10 and all(bool((branched[name] == trunk[name]).all()) for name in names)


def test_from_is_short_for_branch_of(straight, tmp_path):
    train(tmp_path / "run", "--steps", "1", "--quiet", "--from", f"{straight}@3")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["branch_of"] == f"{straight}@3"


def test_branch_points_that_are_none_are_told_in_one_line(straight, tmp_path, capsys):
    for words, said in (
        ([f"{straight}@77"], "no such checkpoint"),
        ([f"{tmp_path}/nothing@3"], "cannot be read"),
        (["demo"], "names no checkpoint"),
        (["no-recipe"], "'no-recipe' names no checkpoint"),
    ):
        assert main(["branch", *words, "--run-dir", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
    copy = tmp_path / "copy"
    shutil.copytree(straight, copy, symlinks=True)
    point = BranchPoint.of(f"{copy}@3")
    point.check(point.lineage())
    with pytest.raises(InputError, match="another checkpoint"):
        BranchPoint.of(f"{copy}@4").check(point.lineage())
    (copy / "checkpoints" / "step_000003" / "state.json").write_text("{}")
    with pytest.raises(InputError, match="damaged"):
        BranchPoint.of(f"{copy}@3")


def test_lineage_in_words_stops_at_what_is_none():
    whole = {"run": "a", "step": 9, "train_tokens": 1234, "lineage": {"run": "b", "step": 3, "train_tokens": 7}}
    assert lineage_text(whole) == "a after step 9 (1,234 response tokens), from b after step 3 (7 response tokens)"
    for bad in (None, 3, {}, {"run": 3, "step": 1, "train_tokens": 1}, {"run": "a", "step": "x", "train_tokens": 1}):
        assert lineage_text(bad) == ""
