"""siri plan of a run whose length is given in epochs: priced by the problems that the trainer would count."""

import json
import shutil
from pathlib import Path

import pytest

from siri.cli import main
from siri.data.problems import resolve_path

MODEL = ["--model", "siri:demo/model", "--template", "plain"]
SHORT = ["--prompts-per-step", "2", "--max-prompt-tokens", "60"]


@pytest.fixture
def data(tmp_path):
    """Six problems: a prompt that is too long, and one that repeats, among them."""
    rows = [{"problem": f"a{n} b{n + 1} <think>", "answer": str(n)} for n in range(4)]
    rows += [rows[0], {"problem": "a1 " * 80 + "<think>", "answer": "60"}]
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def plan(*arguments, expect=0):
    assert main(["plan", "demo", "--gpus", "1", *MODEL, *SHORT, *arguments]) == expect


def hours(out):
    return out[out.index("a step at") :]


@pytest.mark.parametrize(
    ("options", "problems", "steps"),
    [([], 5, 8), (["--duplicates", "drop"], 4, 6), (["--max-prompt-tokens", "900"], 6, 9)],
    ids=["as-it-is", "without-duplicates", "long-prompts-too"],
)
def test_epochs_are_priced_as_the_trainer_counts_them(options, problems, steps, data, tmp_path, capsys):
    if options[:1] == ["--max-prompt-tokens"]:
        options = [*options, "--l-max", "64"]
    plan("--data", data, "--epochs", "3", *options)
    by_epochs = capsys.readouterr().out
    line = f"3 epochs of {problems} problems at 2 a step: {steps} steps"
    assert line in by_epochs and f"GPU-hours for {steps} steps" in by_epochs
    plan("--data", data, "--epochs", "0", "--steps", str(steps), *options)
    assert hours(capsys.readouterr().out) == hours(by_epochs)
    run = ["train", "demo", *MODEL, *SHORT, "--data", data, "--epochs", "3", *options, "--group-size", "2"]
    assert main([*run, "--run-dir", str(tmp_path / "run"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"{steps:,} steps of 2 x 2 responses" in out


def test_weights_of_sources_count(data, capsys):
    plan("--data", f"{data}@weight=2", f"{data}@[:2],weight=0.5".replace(",weight", "@weight"), "--epochs", "1")
    assert "1 epochs of 11 problems at 2 a step: 6 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "missing.jsonl"], "missing.jsonl: no such file"),
        (["--data", "DATA@question,gold"], "question"),
        (["--data", "DATA", "--max-prompt-tokens", "1"], "all 6 prompts are longer"),
        (["--data", "DATA", "--model", "BARE"], "no tokenizer of"),
    ],
    ids=["no-file", "no-column", "no-prompt", "no-tokenizer"],
)
def test_what_keeps_epochs_from_being_priced_is_one_line_and_no_figure(options, said, data, tmp_path, capsys):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(Path(resolve_path("siri:demo/model"), "config.json"), bare)
    plan("--epochs", "2", *(each.replace("DATA", data).replace("BARE", str(bare)) for each in options))
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("hours: ")]
    assert line.startswith("hours: 2 epochs are not priced, because the problems cannot be counted: ") and said in line
    assert "It fits." in out and "GPU-hours" not in out and "a step at" not in out


def test_a_warm_up_that_is_longer_than_the_epochs_is_refused(data, capsys):
    plan("--data", data, "--epochs", "1", "--lr-warmup", "4", expect=2)
    assert "lr_warmup is 4, but steps is 3" in capsys.readouterr().err
