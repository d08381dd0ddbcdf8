"""Training runs through the command line: recipes, schedules, and what the files of a run hold."""

import json

import pytest

from siri.config.recipe import load_recipe
from tests.support.training import CONTRACT, reproducible, rows, train

BASELINES = ["fixed-high", "fixed-low", "dapo-8k-16k", "stair", "stair-cosine", "siri-7b"]


CAPS = {
    "fixed-high": [40, 40],
    "fixed-low": [40, 40],
    "dapo-8k-16k": [10, 20],
    "stair": [20, 40],
    "stair-cosine": [40, 20],
    "siri-7b": [40, 20],
}


@pytest.mark.parametrize("recipe", BASELINES)
def test_every_recipe_trains(recipe, tmp_path):
    """Each recipe, with the demo's model and problems in place of the big ones, keeps its own schedule."""
    stages = ["--stages", "0", "10", "1", "20"] if "stages" in load_recipe(recipe) else []
    lengths = ["--l-max", "40", "--l-min", "20", "--cycle", "2", "--eval-cap", "40", "--steps", "2", *stages]
    demo = ["--model", "siri:demo/model", "--data", "siri:demo/train.jsonl", "--template", "plain", "--instruction", ""]
    batch = ["--prompts-per-step", "2", "--group-size", "4", "--reward", "exact", "--quiet"]
    metrics = train(tmp_path / "run", *demo, *lengths, *batch, recipe=recipe)
    assert [row["cap"] for row in metrics] == CAPS[recipe]
    assert max(row["response_tokens_max"] for row in metrics) <= max(CAPS[recipe])


@pytest.mark.parametrize(
    ("arguments", "caps", "saved"),
    [
        (["--schedule", "cosine"], [64, 44, 24, 44], {"siri-low-1", "siri-high-1"}),
        (["--schedule", "stair"], [24, 24, 64, 64], {"siri-low-1", "siri-high-1"}),
        (["--schedule", "stair_cosine"], [64, 44, 24, 44], {"siri-low-1", "siri-high-1"}),
        (["--schedule", "constant"], [64, 64, 64, 64], set()),
        (["--schedule", "steps", "--stages", "0", "20", "3", "30"], [20, 20, 20, 30], set()),
    ],
)
def test_schedules(arguments, caps, saved, tmp_path):
    metrics = train(tmp_path / "run", "--steps", "4", *arguments, "--quiet")
    assert [row["cap"] for row in metrics] == caps
    assert all(row["response_tokens_max"] <= row["cap"] for row in metrics)
    links = {path.name: path for path in (tmp_path / "run" / "checkpoints").iterdir() if path.is_symlink()}
    assert set(links) == saved
    if saved:
        assert links["siri-low-1"].resolve().name == "step_000002"
        assert links["siri-high-1"].resolve().name == "step_000004"
        state = json.loads((links["siri-low-1"] / "state.json").read_text())
        assert (state["steps_done"], state["name"]) == (2, "siri-low-1")


def test_metrics_hold_what_the_contract_names(straight):
    metrics = rows(straight)
    assert [row["step"] for row in metrics] == list(range(6))
    assert all(row.keys() >= CONTRACT for row in metrics)
    assert len({tuple(row) for row in reproducible(metrics)}) == 1, "only timings come and go"
    assert [row["phase"] for row in metrics] == ["compression"] * 2 + ["expansion"] * 2 + ["compression"] * 2
    assert all(row["lockstep_efficiency"] == pytest.approx(1) for row in metrics), "one process waits for nobody"
    assert all(row["micro_steps"] >= 1 and row["tokens_per_s"] > 0 for row in metrics)
    assert metrics[-1]["train_tokens"] == sum(row["response_tokens"] for row in metrics)
    untimed = reproducible(metrics)[0].keys()
    assert not untimed & {"rollout_s", "train_s", "tokens_per_s", "step_time_s"} and untimed >= {"loss", "entropy"}


def test_evaluations_hold_what_the_contract_names(straight):
    evals = rows(straight, "eval")
    assert [(row["step"], row["name"]) for row in evals] == [
        (0, "base"),
        (2, "siri-low-1"),
        (4, "siri-high-1"),
        (6, "siri-low-2"),
    ]
    keys = {"step", "name", "cap", "accuracy", "tokens_mean", "truncation_rate", "pass_at_k", "train_tokens"}
    assert all(row.keys() >= keys and row["cap"] == 64 and row["problems"] == 16 for row in evals)
