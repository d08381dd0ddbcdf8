"""Training and evaluation on real problems, by the recipe of the paper."""

import json
import math
import re
from pathlib import Path

import pytest

from siri.cli import main
from siri.data.problems import load_problems
from tests.support.tiny import bpe_tokenizer, save_tiny
from tests.support.training import CONTRACT, train, weights


@pytest.fixture(scope="module")
def real_model(tmp_path_factory, data_dir) -> Path:
    """A tiny random Qwen2 with a context of 2,048 and a tokenizer trained on the problems, chat template included."""
    texts = [problem.prompt for problem in load_problems(data_dir / "math_train.json").problems[:1500]]
    tokenizer = bpe_tokenizer(texts, 1000)
    return save_tiny(tmp_path_factory.mktemp("real") / "model", tokenizer, max_position_embeddings=2048)


SMALL_BATCH = ("--prompts-per-step", "12", "--group-size", "4", "--mini-batch-prompts", "6")


@pytest.mark.parametrize(
    ("name", "batch", "responses"),
    [("math_train.json", (), 2048), ("deepscaler_part.parquet", SMALL_BATCH, 48)],
)
def test_siri_1_5b_trains_on_real_problems(name, batch, responses, real_model, data_dir, tmp_path, capsys):
    """The recipe with model, data, lengths and steps of the test's own, and nothing else in the first case; the second
    spares the time of its full batch."""
    metrics = train(
        tmp_path / "run",
        *("--model", str(real_model), "--data", str(data_dir / name)),
        *("--l-max", "16", "--l-min", "8", "--max-prompt-tokens", "128", "--steps", "2"),
        "--score-all",  # no response of a random model earns an advantage, and metrics of none would be null
        *batch,
        recipe="siri-1.5b",
        report=True,
    )
    assert [row["step"] for row in metrics] == [0, 1] and metrics[0].keys() >= CONTRACT
    assert all(row["cap"] == 16 and row["phase"] == "compression" and row["responses"] == responses for row in metrics)
    assert all(row["truncation_rate"] > 0.5 and row["reward_mean"] == 0 for row in metrics), "a random model rambles"
    assert all(0 < row["entropy"] < math.log(1000) and row["skipped_updates"] == 0 for row in metrics)
    assert not (tmp_path / "run" / "eval.jsonl").exists() and (tmp_path / "run" / "report.html").exists()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["recipe"] == "siri-1.5b" and (config["reward"], config["template"]) == ("math", "chat")
    assert set(weights(tmp_path / "run", "step_000002")), "the last step is always saved"
    notes = capsys.readouterr().out
    dropped = load_problems(data_dir / name).dropped
    assert bool(re.search(rf"{re.escape(name)}: {dropped} rows .*left out", notes)) == (dropped > 0)
    assert "report.html" in notes


def test_siri_eval_on_real_problems(real_model, data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    files = [str(data_dir / name) for name in ("aime24.json", "amc83.json", "math500.json")]
    arguments = ["eval", str(real_model), "--data", *files, "--cap", "16", "--samples", "2", "--problems", "6"]
    assert main([*arguments, "--out", "base.json"]) == 0
    assert main([*arguments, "--out", "again.json", "--base", "base.json"]) == 0
    base, again = (json.loads(Path(name).read_text()) for name in ("base.json", "again.json"))
    assert list(base["benchmarks"]) == files and base["benchmarks"] == again["benchmarks"]
    assert base["problems"] == 18 and base["cap"] == 16 and 1 <= base["tokens_mean"] <= 16
    text = capsys.readouterr().out
    assert all(name in text for name in ("aime24.json", "amc83.json", "math500.json", "avg@2", "pass@2", "vs base"))
