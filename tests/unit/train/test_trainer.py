"""Training runs through the command line, from real problems to a resumed run that is bit for bit the same.

All but the first group train the package's demo model on its own problems: there rewards vary, so weights move.
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

import siri
from siri.cli import main
from siri.config.recipe import load_recipe
from siri.data.problems import load_problems
from tests.support.saving import file_of, tensors
from tests.support.tiny import bpe_tokenizer, save_tiny

ROOT = Path(siri.__file__).parent.parent
CONTRACT = {
    *("step", "phase", "cap", "reward_mean", "response_tokens_mean", "truncation_rate", "entropy", "loss"),
    *("grad_norm", "clip_low_fraction", "clip_high_fraction", "approx_kl", "lockstep_efficiency"),
    *("rollout_s", "train_s", "tokens_per_s"),
}
SMALL = ["--prompts-per-step", "4", "--group-size", "8", "--mini-batch-prompts", "2", "--lr", "1e-3"]
SMALL += ["--eval-problems", "16", "--eval-samples", "1", "--l-max", "64", "--l-min", "24", "--cycle", "4"]


def train(folder: Path, *arguments: str, recipe: str = "demo", expect: int = 0, report: bool = False) -> list[dict]:
    """A small run of the demo; the rows of its metrics.jsonl. Without `report` no pictures are drawn, which takes
    longer than all the rest."""
    settings = SMALL if recipe == "demo" else []
    command = ["train", recipe, *settings, *arguments, "--run-dir", str(folder)]
    with nullcontext() if report else patch("siri.report.view.write_report"):
        assert main(command) == expect
    return rows(folder)


def rows(folder: Path, name: str = "metrics") -> list[dict]:
    def refuse(constant: str):
        raise AssertionError(f"{constant} in {name}.jsonl: what does not exist is null")

    text = (folder / f"{name}.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def reproducible(metrics: list[dict]) -> list[dict]:
    """The rows without what depends on clock and machine, by the contract's rule."""
    marks = ("per_s", "time", "memory", "mfu")
    return [
        {key: value for key, value in row.items() if not key.endswith("_s") and not any(m in key for m in marks)}
        for row in metrics
    ]


def weights(folder: Path, checkpoint: str) -> dict[str, torch.Tensor]:
    return tensors(folder / "checkpoints" / checkpoint)


def assert_same_weights(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys() and any("exp_avg" in key for key in one)
    different = [key for key in one if not torch.equal(one[key], two[key])]
    assert not different


# --- real problems ---


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


# --- recipes and schedules ---

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


# --- resume ---


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """Six steps in one go, saved at every step."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    train(folder, "--steps", "6", "--save-every", "1", "--keep-checkpoints", "9", "--quiet")
    return folder


def same_run(one: Path, two: Path, last: str = "step_000006") -> None:
    assert reproducible(rows(one)) == reproducible(rows(two))
    assert_same_weights(weights(one, last), weights(two, last))


def test_the_run_is_worth_resuming(straight):
    """Weights move at every step, or the tests below would pass for nothing."""
    metrics = rows(straight)
    assert (
        sum(row["grad_norm"] > 0 for row in metrics) >= 5 and len({row["response_tokens_mean"] for row in metrics}) == 6
    )
    first, last = weights(straight, "step_000001"), weights(straight, "step_000006")
    assert not torch.equal(first["weights/lm_head.weight"], last["weights/lm_head.weight"])


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


def test_the_same_seed_gives_the_same_run_and_another_does_not(straight, tmp_path):
    common = ["--steps", "2", "--save-every", "1", "--quiet"]
    train(tmp_path / "same", *common)
    assert reproducible(rows(tmp_path / "same")) == reproducible(rows(straight)[:2])
    train(tmp_path / "other", *common, "--seed", "1")
    assert reproducible(rows(tmp_path / "other")) != reproducible(rows(straight)[:2])


def test_a_shorter_run_continues_as_the_longer_one(straight, tmp_path, capsys):
    common = ["--save-every", "1", "--keep-checkpoints", "9"]
    train(tmp_path / "run", "--steps", "3", *common, "--quiet")
    # what a kill in the middle of step 4 leaves: a row that no checkpoint knows, and half a row
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    train(tmp_path / "run", "--steps", "6", *common, "--resume", "--quiet")
    same_run(tmp_path / "run", straight)
    base, later = rows(straight, "eval"), rows(tmp_path / "run", "eval")
    assert [row for row in later if row["name"] != "final"] == base

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    capsys.readouterr()
    for flag in ("--auto-resume", "--resume"):
        train(tmp_path / "run", "--steps", "6", *common, flag)
        text = capsys.readouterr().out
        assert "siri-low-2" in text and "Against base" in text
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_run_with_its_state_saved(number, straight, tmp_path):
    folder = tmp_path / "run"
    arguments = ["train", "demo", *SMALL, "--steps", "6", "--save-every", "3", "--run-dir", str(folder)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(
        [sys.executable, "-m", "siri", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        patience = time.monotonic() + 600
        log = folder / "metrics.jsonl"
        while not (log.exists() and log.read_text().count("\n") >= 1):
            assert process.poll() is None and time.monotonic() < patience
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=600)
    done = len(rows(folder))
    if process.returncode == 0 and done == 6:
        pytest.skip("the run was over before the signal came")
    assert (process.returncode, err) == (75, "")
    assert f"stopped at step {done}, state saved; continue with --resume" in out and 1 <= done < 6
    assert (folder / "checkpoints" / f"step_{done:06d}").is_dir() and (folder / "report.html").exists()
    train(folder, "--steps", "6", "--save-every", "3", "--auto-resume", "--quiet")
    same_run(folder, straight)


def test_damaged_checkpoints(straight, tmp_path, capsys):
    common = ["--save-every", "1", "--keep-checkpoints", "2"]
    folder = tmp_path / "run"
    train(folder, "--steps", "5", *common, "--quiet")
    saved = sorted(path.name for path in (folder / "checkpoints").glob("step_*"))
    assert saved == ["step_000002", "step_000003", "step_000004", "step_000005"], "two named, two newest"
    damaged = file_of(folder / "checkpoints" / "step_000005", "optimizer")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    capsys.readouterr()
    train(folder, "--steps", "6", *common, "--resume")
    text = capsys.readouterr().out
    assert "step_000005: damaged, optimizer/shard-00001-model-00001-of-00001.safetensors has" in text
    same_run(folder, straight)

    for path in (folder / "checkpoints").glob("step_*/state.json"):
        path.write_text("{}")
    before = (folder / "metrics.jsonl").read_bytes()
    for flag in ("--resume", "--auto-resume"):
        capsys.readouterr()
        train(folder, "--steps", "7", *common, flag, expect=2)
        error = capsys.readouterr().err
        assert "no good checkpoint" in error and "step_000006: damaged" in error and error.count("\n") == 1
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_resume_of_a_run_without_a_checkpoint_starts_over(straight, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_bytes((straight / "config.json").read_bytes())
    train(folder, "--steps", "6", "--save-every", "1", "--keep-checkpoints", "9", "--resume", "--quiet")
    same_run(folder, straight)
    assert rows(folder, "eval") == rows(straight, "eval")


# --- options do what they say ---


@pytest.mark.parametrize(
    "arguments",
    [
        ["--loss", "gspo"],
        ["--loss", "cispo", "--clip-low", "0.0001", "--clip-high", "0.0001"],
        ["--advantage-norm", "none"],
        ["--aggregation", "seq_mean"],
        ["--aggregation", "seq_mean_fixed"],
        ["--entropy-coef", "0.01"],
        ["--temperature", "0.8"],
        ["--mini-batch-prompts", "4"],
        ["--lr", "1e-2"],
        ["--grad-clip", "1e-4"],
        ["--weight-decay", "50"],
    ],
    ids=lambda arguments: "-".join(arguments),
)
def test_options_change_the_run(arguments, straight, tmp_path):
    metrics = train(tmp_path / "run", "--steps", "2", "--quiet", *arguments)
    untouched = reproducible(rows(straight)[:2])
    assert reproducible(metrics) != untouched
    if arguments[0] in ("--lr", "--grad-clip", "--weight-decay"):  # these act on what follows the first gradient
        assert metrics[0]["reward_mean"] == untouched[0]["reward_mean"]


def test_token_budget_changes_the_packing_only(straight, tmp_path):
    metrics = train(tmp_path / "run", "--steps", "1", "--quiet", "--token-budget", "120")
    (plain, *_), (packed,) = reproducible(rows(straight)), reproducible(metrics)
    assert packed["micro_steps"] > plain["micro_steps"]
    assert packed["loss"] == pytest.approx(plain["loss"], abs=1e-5)
    assert packed["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-3)


def test_overlong_modes(tmp_path):
    """At a cap that cuts most responses the four modes part: what is rewarded, and what is trained on."""
    tight = ["--schedule", "constant", "--l-max", "20", "--steps", "1", "--eval-problems", "1", "--quiet"]
    modes = {
        mode: train(tmp_path / mode, *tight, "--overlong", mode, "--overlong-buffer", "10")[0]
        for mode in ("zero", "mask", "soft", "grade")
    }
    assert modes["zero"]["truncation_rate"] > 0.3
    assert modes["mask"]["reward_mean"] == modes["zero"]["reward_mean"]
    assert modes["mask"]["grad_norm"] != modes["zero"]["grad_norm"], "cut responses are out of the loss"
    assert modes["soft"]["reward_mean"] < modes["zero"]["reward_mean"], "the penalty can only take away"
    assert modes["soft"]["accuracy"] == modes["grade"]["accuracy"] == modes["zero"]["accuracy"]
    assert len({row["response_tokens"] for row in modes.values()}) == 1, "the same responses"


def test_dynamic_sampling_fills_the_batch_with_mixed_groups(tmp_path):
    tight = ["--schedule", "constant", "--l-max", "40", "--steps", "1", "--eval-problems", "1", "--group-size", "2"]
    plain = train(tmp_path / "plain", *tight, "--quiet")[0]
    rounds = ["--dynamic-sampling", "--dynamic-sampling-rounds", "99"]
    refilled = train(tmp_path / "dynamic", *tight, "--quiet", *rounds)[0]
    assert plain["zero_variance_groups"] > 0 and plain["groups_dropped"] == 0
    assert refilled["groups_dropped"] > 0
    assert refilled["responses"] == 2 * (4 + refilled["groups_dropped"])
    assert refilled["train_tokens"] == refilled["response_tokens"], "dropped groups were sampled too"


def test_a_limit_on_tokens_ends_the_run(straight, tmp_path):
    limit = rows(straight)[2]["train_tokens"]
    metrics = train(tmp_path / "run", "--steps", "6", "--train-tokens", str(limit), "--quiet")
    assert reproducible(metrics) == reproducible(rows(straight)[:3])
    assert rows(tmp_path / "run", "eval")[-1]["name"] == "final"
    assert train(tmp_path / "run", "--steps", "6", "--train-tokens", str(limit), "--resume", "--quiet") == metrics


def test_evaluations_and_checkpoints_when_they_are_due(tmp_path):
    train(
        tmp_path / "run",
        *("--schedule", "constant", "--steps", "5", "--eval-every", "2", "--save-every", "1"),
        *("--keep-checkpoints", "2", "--logger", "tensorboard", "--quiet"),
    )
    evals = rows(tmp_path / "run", "eval")
    assert [(row["step"], row["name"]) for row in evals] == [(0, "base"), (2, "step-2"), (4, "step-4"), (5, "final")]
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved == ["step_000004", "step_000005"]
    for section in ("train", "eval"):
        (events,) = (tmp_path / "run" / "tensorboard" / section).iterdir()
        assert events.name.startswith("events.out.tfevents") and events.stat().st_size > 500


def test_a_reward_of_the_users_own(tmp_path, monkeypatch):
    """From the working directory; it sees the whole response, and what it says is the reward."""
    (tmp_path / "my_rewards.py").write_text(
        "def shorter(response, answer):\n"
        "    assert answer.strip() and response.strip()\n"
        "    return 0.25 + 0.5 * (len(response.split()) % 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    metrics = train(
        tmp_path / "run", "--steps", "2", "--reward", "my_rewards:shorter", "--overlong", "grade", "--quiet"
    )
    assert all(0.25 < row["reward_mean"] < 0.75 and row["grad_norm"] > 0 for row in metrics)
    assert all(row["accuracy"] == 0 and row["tokens_right_mean"] is None for row in metrics), "null, and never NaN"


def test_no_think_grades_the_whole_response(straight, tmp_path):
    """The demo's answers stand behind </think>: graded as a whole, none is exact."""
    metrics = train(tmp_path / "run", "--steps", "1", "--no-think", "--quiet")
    assert metrics[0]["reward_mean"] == 0 < rows(straight)[0]["reward_mean"]
    assert metrics[0]["grad_norm"] == 0


def test_a_reward_that_always_fails_is_refused_and_one_that_sometimes_does_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("broken_reward.py").write_text("def always(response, answer):\n    return 1 / 0\n")
    with open("broken_reward.py", "a") as file:
        file.write("def on_rambling(response, answer):\n    return 1 / ('boxed' in response)\n")
    options = ["train", "demo", "--steps", "1", "--prompts-per-step", "2", "--group-size", "2", "--eval-problems", "2"]
    assert main([*options, "--run-dir", "always", "--reward", "broken_reward:always"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "fails on every answer" in message and "division by zero" in message
    assert not Path("always").exists()
    assert main([*options, "--run-dir", "some", "--reward", "broken_reward:on_rambling"]) == 0
    assert "warning: the reward failed on 4 answers" in capsys.readouterr().out
    assert json.loads(Path("some/metrics.jsonl").read_text())["reward_errors"] == 4
    assert json.loads(Path("some/eval.jsonl").read_text().splitlines()[0])["reward_errors"] == 2
