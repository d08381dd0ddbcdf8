"""`siri eval` of models that say how they are measured, of several side by side, and under torchrun."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from siri.cli import main
from siri.store.about import ABOUT, read_about
from siri.store.checkpoint import read_state
from siri.store.export import good_checkpoint
from tests.support import warm
from tests.support.training import train

HELD_OUT = ["--data", "siri:demo/heldout.jsonl", "--problems", "8", "--samples", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("about") / "run"
    train(folder, "--steps", "2", "--cycle", "2", "--quiet", "--eval-top-p", "0.9")
    return folder


def figures(path: Path | str) -> dict:
    return json.loads(Path(path).read_text())


def test_a_checkpoint_says_how_it_is_measured(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoint = run / "checkpoints" / "siri-high-1"
    about = read_about(checkpoint)
    assert about["base"] == "siri:demo/model" and about["recipe"] == "demo" and about["base_dtype"] == "float32"
    assert about["evaluation"]["reward"] == "exact" and about["evaluation"]["top_p"] == 0.9
    assert main(["eval", str(checkpoint), *HELD_OUT, "--out", "own.json"]) == 0
    printed = capsys.readouterr().out
    assert "measured as it says itself (reward 'exact'" in printed and "answer could be read" not in printed
    row = figures("own.json")
    assert row["accuracy"] > 0.2, "the demo's answers are graded by its own reward"
    expected = {"reward": "exact", "template": "plain", "instruction": "", "think": True, "temperature": 0.6}
    expected |= {"top_p": 0.9, "cap": 64, "samples": 2, "template_args": "", "max_prompt_tokens": 1024, "seed": 0}
    assert row["protocol"] == expected

    assert main(["export", str(run), "exported"]) == 0
    state = read_state(good_checkpoint(run))
    progress = {key: state[key] for key in ("steps_done", "train_tokens")}
    assert read_about(Path("exported")) == about | progress, "an export says how far it came, too"
    assert main(["eval", "exported", *HELD_OUT, "--out", "exported.json"]) == 0
    assert figures("exported.json")["benchmarks"] == row["benchmarks"]
    capsys.readouterr()
    assert main(["eval", "exported", *HELD_OUT, "--temperature", "0.7", "--out", "other.json"]) == 0
    assert "trained and measured with another temperature than here" in capsys.readouterr().out
    assert figures("other.json")["protocol"]["temperature"] == 0.7


def test_nothing_that_could_be_read_is_told(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoint = str(run / "checkpoints" / "siri-high-1")
    assert main(["eval", checkpoint, *HELD_OUT, "--reward", "math", "--out", "none.json"]) == 0
    assert "in none of 16 responses an answer could be read" in " ".join(capsys.readouterr().out.split())
    assert figures("none.json")["without_answer"] == 16


def test_models_side_by_side(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    models = ["siri:demo/model", str(run / "checkpoints" / "siri-high-1")]
    assert main(["eval", *models, *HELD_OUT, "--budgets", "16", "32", "64", "--out", "side.json"]) == 0
    printed = capsys.readouterr().out
    assert "side by side" in printed and "against the first" in printed and "points" in printed
    first, second = figures("side-model.json"), figures("side-siri-high-1.json")
    assert first["protocol"] == second["protocol"] and second["base"] == "siri:demo/model"
    (name,) = second["benchmarks"]
    at_budgets = first["benchmarks"][name]["budgets"]
    assert set(at_budgets) == {"16", "32", "64"}
    assert at_budgets["64"]["accuracy"] == first["benchmarks"][name]["accuracy"], "64 is the cap"
    assert second["differences"][name]["accuracy"] == pytest.approx(second["accuracy"] - first["accuracy"])
    assert not list(tmp_path.glob("*.partial.jsonl"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--budgets", "65"], "budgets: 65 must be at least 1 and at most the cap of 64 tokens"),
        (["--budgets", "0"], "budgets: 0 must be at least 1"),
        (["--budgets", "8", "8"], "budgets names a number of tokens twice"),
        (["--top-p", "0"], "top_p is 0"),
        (["--top-p", "1.5"], "top_p is 1.5"),
        (["--base", "x.json", "--out", "y.json"], "--base x.json: not a result file"),
        (["--data", "siri:demo/heldout.jsonl@weight=2"], "has a weight"),
    ],
)
def test_options_that_make_no_sense(run, tmp_path, monkeypatch, capsys, options, told):
    monkeypatch.chdir(tmp_path)
    assert main(["eval", str(run / "checkpoints" / "siri-high-1"), *HELD_OUT, *options]) == 2
    line = capsys.readouterr().err
    assert told in line and line.count("\n") == 1 and not list(tmp_path.iterdir())


def altered(run: Path, target: Path, **changes) -> Path:
    checkpoint = Path(shutil.copytree(run / "checkpoints" / "step_000002", target))
    about = figures(checkpoint / ABOUT)
    about["evaluation"] |= changes
    (checkpoint / ABOUT).write_text(json.dumps(about))
    return checkpoint


def test_models_that_were_measured_differently_have_to_be_told_how(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    other = altered(run, tmp_path / "other", instruction="Think.")
    models = [str(run / "checkpoints" / "siri-high-1"), str(other)]
    assert main(["eval", *models, *HELD_OUT]) == 2
    assert "give --instruction, so that both are measured alike" in capsys.readouterr().err
    assert main(["eval", models[0], models[0], *HELD_OUT]) == 2
    assert "names a model twice" in capsys.readouterr().err


def test_a_file_chooses_no_code_and_no_nonsense(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = altered(run, tmp_path / "code", reward="os:system")
    assert main(["eval", str(code), *HELD_OUT]) == 2
    assert "a file alone may not choose" in capsys.readouterr().err
    for number, changes in enumerate(({"cap": "x"}, {"think": 1}, {"cap": True}, {"strange": 1})):
        wrong = altered(run, tmp_path / f"wrong-{number}", **changes)
        assert main(["eval", str(wrong), *HELD_OUT]) == 2
        assert f"{ABOUT}: cannot be read (its " in capsys.readouterr().err
    wrong = altered(run, tmp_path / "low", cap=0)
    assert main(["eval", str(wrong), *HELD_OUT]) == 2
    assert "cap is 0" in capsys.readouterr().err


def test_ranks_share_the_problems(run, tmp_path):
    checkpoint = str(run / "checkpoints" / "siri-high-1")
    siri = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "siri"]
    command = [*siri, "eval", checkpoint, *HELD_OUT, "--temperature", "0", "--out", str(tmp_path / "two.json")]
    ran = warm.run(command, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("measured with another temperature") == 1, "rank 0 alone speaks"
    assert main([*command[len(siri) :][:-1], str(tmp_path / "one.json")]) == 0
    alone, shared = figures(tmp_path / "one.json"), figures(tmp_path / "two.json")
    assert shared["benchmarks"] == alone["benchmarks"], "greedy answers do not depend on who gives them"
    assert not (tmp_path / "two.json.partial.jsonl").exists()
