"""The recipes gsm8k-0.5b: planned under an hour on one GPU of 24 to 80 GB, and their whole path rehearsed on a tiny
random model with rows in GSM8K's format."""

import json
import re

import pyarrow as pa
import pytest
from pyarrow import parquet

from siri.cli import main
from siri.commands.plan import PlanOptions
from siri.config.recipe import resolve
from siri.model.liger import planned
from siri.planning.gpus import GPUS
from siri.planning.hours import Rates, run_hours
from siri.planning.memory_plan import Machine, memory_plan
from siri.planning.models import KNOWN, load_model_config
from siri.store.responses import read_responses, response_files
from tests.support.tiny import bpe_tokenizer, save_tiny
from tests.support.training import rows, train

RECIPES = ("gsm8k-0.5b", "gsm8k-0.5b-lora")
PROBLEMS = [
    ("Natalia sold 48 clips in April and half as many in May. How many in all?", "48/2 = <<48/2=24>>24\n#### 72"),
    (
        "A house costs $1,300 and twice as much to repair. What does it cost in all?",
        "It is <<1300*3=3900>>.\n#### 3,900",
    ),
    ("It was 3 degrees and fell by 8. How many is it now?", "3 - 8 = <<3-8=-5>>-5\n#### -5"),
    ("How many legs have six hens?", "6*2=<<6*2=12>>12\n#### 12"),
]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("gpu", ["a10", "rtx4090", "a100-40", "l40s", "a100-80", "h100"])
@pytest.mark.parametrize("rollout", ["local", "colocated"])
def test_it_is_planned_under_an_hour_on_a_gpu(recipe, gpu, rollout):
    config = resolve(recipe, PlanOptions, ["--gpus", "1"]).config("model")
    model, sheet = load_model_config(config.model)[0], GPUS[gpu]
    machine = Machine(1, sheet.memory, 1, multiprocessors=sheet.multiprocessors)
    plan = memory_plan(model, config, machine, rollout=rollout, liger=planned(config.liger))
    assert plan.fits and plan.parameters == 494_032_768
    hours = run_hours(model, plan, Rates(0.4 * sheet.flops, sheet.bandwidth))
    assert hours.total < 1, f"{60 * hours.total:.0f} minutes"


@pytest.mark.parametrize("recipe", [*RECIPES, "siri-1.5b", "siri-7b", "l1-max"])
def test_siri_plan_asks_nobody_for_the_recipes_models(recipe, monkeypatch, capsys):
    def never(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", never)
    monkeypatch.setattr("transformers.utils.cached_file", never)
    assert main(["plan", recipe, "--gpus", "8"]) == 0
    out = capsys.readouterr().out
    assert ": planned by the sizes that are known of it; the hub was not asked" in out and "It fits." in out
    assert re.search(r"\d GPU-hours for [\d,]+ steps", out)


def test_known_sizes_are_those_of_the_models():
    from siri.planning.formulas import parameter_shapes

    for name, count in (
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1_777_088_000),
        ("agentica-org/DeepScaleR-1.5B-Preview", 1_777_088_000),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", 7_615_616_512),
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
    ):
        shapes = parameter_shapes(load_model_config(name)[0])
        total = 0
        for shape in shapes.values():
            size = 1
            for side in shape:
                size *= side
            total += size
        assert total == count, name
    assert len(KNOWN) == 4


def test_a_folder_of_that_name_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "Qwen" / "Qwen2.5-0.5B-Instruct")
    config, note = load_model_config("Qwen/Qwen2.5-0.5B-Instruct")
    assert config.hidden_size == 32 and not note


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gsm8k")
    tokenizer = bpe_tokenizer([question for question, _ in PROBLEMS])
    tokenizer.chat_template = (
        "{% for m in messages %}<|User|>{{ m['content'] }}<eos>{% endfor %}"
        "{% if add_generation_prompt %}<|Assistant|>{% endif %}"
    )
    save_tiny(folder / "model", tokenizer, max_position_embeddings=1024, tie_word_embeddings=True)
    table = pa.table({"question": [q for q, _ in PROBLEMS], "answer": [a for _, a in PROBLEMS]})
    for name in ("train", "test"):
        parquet.write_table(table, folder / f"{name}.parquet")
    return folder


def paths(inputs):
    names = {"--model": "model", "--data": "train.parquet", "--eval-data": "test.parquet"}
    return [word for flag, name in names.items() for word in (flag, str(inputs / name))]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_whole_path(recipe, inputs, tmp_path, capsys):
    """Dry run, training over a cycle, evaluations, responses, report, export, and an evaluation of what was exported:
    with everything of the recipe but its model, its data and its sizes."""
    run = tmp_path / "run"
    small = ["--prompts-per-step", "2", "--group-size", "2", "--mini-batch-prompts", "1", "--reward-workers", "1"]
    small += ["--l-max", "12", "--l-min", "6", "--cycle", "2", "--steps", "2", "--eval-cap", "12", "--device", "cpu"]
    assert main(["train", recipe, "--dry-run", *paths(inputs), *small, "--run-dir", str(run)]) == 0
    said = capsys.readouterr().out
    assert r"reward math, tried: 1 for The answer is \boxed{72}., 0 for The answer is \boxed{987654321}." in said
    assert ("LoRA of rank 32" in said) == recipe.endswith("lora") and not run.exists()
    train(run, *paths(inputs), *small, "--score-all", recipe=recipe)
    steps, evals = rows(run), rows(run, "eval")
    assert [row["cap"] for row in steps] == [12, 6] and [row["name"] for row in evals] == [
        "base",
        "siri-low-1",
        "siri-high-1",
    ]
    assert all(row["problems"] == 4 and row["samples"] == 1 and row["cap"] == 12 for row in evals)
    assert all(row["skipped_updates"] == 0 and row["reward_errors"] == 0 for row in steps)
    first = read_responses(response_files(run)[0])
    assert [response.gold for response in first] == ["72", "3,900", "-5", "12"]
    assert "Natalia sold" in first[0].prompt and r"final answer within \boxed{}" in first[0].prompt
    assert main(["look", str(run), "--eval", "--longest"]) == 0
    folder = tmp_path / "exported"
    assert main(["export", str(run), str(folder)]) == 0
    out = tmp_path / "eval.json"
    measured = ["--data", str(inputs / "test.parquet"), "--cap", "12", "--samples", "1", "--temperature", "0"]
    assert main(["eval", str(folder), *measured, "--no-think", "--device", "cpu", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["problems"] == 4
