"""Options do what they say, on the demo: there rewards vary, so weights move."""

import json
from pathlib import Path

import pytest

from siri.cli import main
from tests.support.training import reproducible, rows, same_run, train


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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--outlier-cut", "--outlier-deviations", "1", "--outlier-margin", "1", "--reward",
          "tests.support.user_rewards:finished"], "responses_cut"),
        (["--advantages", "drpo", "--loss", "cispo", "--clip-low", "0", "--clip-high", "0", "--aggregation", "seq_mean",
          "--drpo-delta", "0"], "policy_distance"),
        (["--filter-keep", "4"], ""),
        (["--advantages", "dler"], ""),
        (["--hard-responses", "12"], "responses_again"),
        (["--length-reward", "kimi", "--penalty-on", "1", "--penalty-off", "1"], "penalised"),
        (["--length-reward", "l1_exact", "--asked-least", "5", "--asked-most", "24"], ""),
        (["--length-reward", "laser", "--laser-target", "20"], ""),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else "",
)  # fmt: skip
def test_methods_train_under_the_cosine(arguments, said, straight, tmp_path):
    metrics = train(tmp_path / "run", "--steps", "2", "--quiet", *arguments)
    assert reproducible(metrics) != reproducible(rows(straight)[:2]) and metrics[0]["grad_norm"] > 0
    if said == "penalised":
        assert [row[said] for row in metrics] == [1, 0] and metrics[0]["reward_mean"] != metrics[0]["accuracy"]
        assert metrics[1]["reward_mean"] == metrics[1]["accuracy"]
    elif said:
        assert any(row[said] > 0 for row in metrics)


def test_targets_of_laser_d_go_on_where_they_were(tmp_path):
    options = ["--length-reward", "laser_d", "--schedule", "constant", "--laser-every", "2", "--laser-target", "40"]
    options += ["--save-every", "1", "--quiet"]
    train(tmp_path / "straight", "--steps", "4", *options)
    train(tmp_path / "parts", "--steps", "3", *options)
    held = json.loads((tmp_path / "parts" / "checkpoints" / "step_000003" / "state.json").read_text())["laser"]
    assert held["steps"] == 1 and held["targets"] != [40, 40, 40]
    train(tmp_path / "parts", "--steps", "4", *options, "--resume")
    same_run(tmp_path / "straight", tmp_path / "parts", "step_000004")
