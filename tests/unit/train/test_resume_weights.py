"""Runs that go on from weights alone, at a step, with new moments (`siri.store.bare_weights`)."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from siri.cli import main
from siri.data.problems import resolve_path
from siri.report.lineage import lineage_text
from tests.support.tiny import save_tiny
from tests.support.training import SMALL, reproducible, rows, train, weights


@pytest.fixture(scope="module")
def exported(straight, tmp_path_factory):
    """The weights after three steps, as siri export writes them."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    assert main(["export", str(straight / "checkpoints" / "step_000003"), str(folder), "--dtype", "float32"]) == 0
    return folder


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


def go_on(folder, source, *arguments, expect=0):
    return train(folder, "--save-every", "1", *arguments, "--resume-weights", str(source), expect=expect)


def test_the_next_step_is_that_of_the_run_that_had_its_optimizer(straight, exported, tmp_path, capsys):
    """Cap, learning rate, problems, samples and gradient are those of the run that never stopped; the update is not,
    because AdamW begins anew."""
    metrics = go_on(tmp_path / "run", exported, "--steps", "5", "--lr-schedule", "constant")
    assert [row["step"] for row in metrics] == [3, 4]
    assert reproducible(metrics)[0] == reproducible(rows(straight))[3]
    said = capsys.readouterr().out
    assert f"weights of {exported}, taken for those after 3 steps" in said and "AdamW's moments are new" in said
    assert "after 12 problems)" in said
    assert [row["name"] for row in rows(tmp_path / "run", "eval")] == ["step-3", "siri-high-1", "final"]
    ours, theirs = (weights(folder, "step_000004") for folder in (tmp_path / "run", straight))
    before = weights(straight, "step_000003")
    counts = [{float(v) for name, v in held.items() if name.endswith(".step")} for held in (ours, theirs, before)]
    (new,), (on,), (then,) = counts
    assert new == on - then > 0 < then, "AdamW counts from 0"
    moved = [name for name in ours if not name.endswith((".step", "exp_avg", "exp_avg_sq"))]
    assert len(moved) > 10 and any(not torch.equal(ours[name], theirs[name]) for name in moved)
    lineage = json.loads((tmp_path / "run" / "config.json").read_text())["lineage"]
    assert lineage_text(lineage) == f"the weights of {exported} alone, taken for those after step 3"


def test_it_resumes_bit_for_bit_and_needs_the_weights_no_more(exported, tmp_path):
    straight, split, source = tmp_path / "one", tmp_path / "two", shutil.copytree(exported, tmp_path / "source")
    whole = go_on(straight, source, "--steps", "5", "--quiet")
    go_on(split, source, "--steps", "4", "--quiet")
    shutil.rmtree(source)
    assert reproducible(go_on(split, source, "--steps", "5", "--quiet", "--resume")) == reproducible(whole)
    assert "have no row" not in (split / "log.txt").read_text()


def test_before_its_first_checkpoint_it_needs_the_same_weights(copy, tmp_path, capsys):
    run = tmp_path / "run"
    go_on(run, copy, "--steps", "4", "--quiet")
    shutil.rmtree(run / "checkpoints")  # as after a kill in the first step
    (run / "saved.json").unlink()
    (run / "metrics.jsonl").unlink()
    kept = {path: path.read_bytes() for path in run.rglob("*.json")}
    again = load_file(copy / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in again.items()}, copy / "model.safetensors", {"format": "pt"})
    options = ["--save-every", "1", "--steps", "4", "--resume-weights", str(copy), "--resume", "--run-dir", str(run)]
    assert main(["train", "demo", *SMALL, *options]) == 2
    assert "other weights than this run began with" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*.json")} == kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_folder_that_knows_no_step_is_given_it(copy, dtype, tmp_path, capsys):
    """As another trainer leaves it: in 16 bits, in parts or whole, and without a tokenizer."""
    for path in copy.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    held = {name: tensor.to(dtype) for name, tensor in load_file(copy / "model.safetensors").items()}
    save_file(held, copy / "model.safetensors", {"format": "pt"})
    (row,) = go_on(tmp_path / "run", f"{copy}@2", "--steps", "3", "--quiet")
    assert row["step"] == 2 and row["train_tokens"] == row["response_tokens"]
    go_on_without = ["train", "demo", *SMALL, "--run-dir", str(tmp_path / "no"), "--resume-weights", str(copy)]
    assert main(go_on_without) == 2
    assert f"does not say after how many steps it was written; give {copy}@STEP" in capsys.readouterr().err


def test_a_checkpoint_without_its_optimizer_state_goes_on_so(straight, tmp_path, capsys):
    run = shutil.copytree(straight, tmp_path / "run", symlinks=True)
    for path in (run / "checkpoints").glob("step_*"):
        shutil.rmtree(path / "optimizer")
    assert main(["train", "demo", *SMALL, "--run-dir", str(run), "--steps", "7", "--resume"]) == 2
    assert "--resume-weights CHECKPOINT where its weights are whole" in capsys.readouterr().err
    metrics = go_on(tmp_path / "on", run / "checkpoints" / "step_000003", "--steps", "4", "--quiet")
    assert reproducible(metrics)[0] == reproducible(rows(straight))[3]


def adapter_alone(folder):
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}')


def other_model(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 77}))


def other_words(folder):
    path = folder / "tokenizer.json"
    held = json.loads(path.read_text())
    held["model"]["vocab"] = {word: 1 - i if i < 2 else i for word, i in held["model"]["vocab"].items()}
    path.write_text(json.dumps(held))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights, no model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "no model there, it has no config.json"),
        (shutil.rmtree, "no such folder"),
        (adapter_alone, "holds an adapter alone; merge it into its base"),
        (other_model, "weights of another model, its intermediate_size is 77, and that of siri:demo/model"),
        (other_words, "its tokenizer is not that of siri:demo/model"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "its tokenizer cannot be read"),
        (lambda folder: (folder / "siri.json").write_text("{"), "siri.json: cannot be read"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "not to be read as safetensors"),
    ],
    ids=["no-weights", "no-config", "nothing", "adapter", "model", "words", "tokenizer", "about", "damaged"],
)
def test_weights_that_do_not_fit_are_told_in_one_line(harm, said, copy, tmp_path, capsys):
    harm(copy)
    command = ["train", "demo", *SMALL, "--steps", "9", "--run-dir", str(tmp_path / "run")]
    for dry in ([], ["--dry-run"]):
        assert main([*command, "--resume-weights", str(copy), *dry]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--steps", "3"], "3 steps are done, and the run has 3; raise --steps"),
        (["--epochs", "0.001"], "3 steps are done, and the run has 2; raise --steps"),
        (["--lora-rank", "4"], "lora_rank trains an adapter of --model; give the folder, merged, as --model"),
        (["--schedule", "auto"], "schedule auto goes by what earlier steps showed"),
        (["--keep-best", "efficiency"], "keep_best efficiency needs the base's evaluation"),
        (["--from", "runs/x@3"], "branch_of starts from a checkpoint with its optimizer state"),
        (["--resume"], "no run there to resume"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_settings_that_need_more_than_weights_are_refused(options, said, exported, tmp_path, capsys):
    command = ["train", "demo", *SMALL, "--steps", "9", "--run-dir", str(tmp_path / "run")]
    assert main([*command, "--resume-weights", str(exported), *options]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["@3", "{}@x", "{}@-1", "{}@", "{}@1.5"])
def test_a_step_that_is_none_is_told(text, exported, tmp_path, capsys):
    command = ["train", "demo", *SMALL, "--steps", "9", "--run-dir", str(tmp_path / "run")]
    assert main([*command, "--resume-weights", text.format(exported)]) == 2
    error = capsys.readouterr().err
    assert ("is no FOLDER@STEP" in error or "no such folder" in error) and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_resume_in_a_folder_of_weights_says_what_to_do(exported, straight, tmp_path, capsys):
    before = sorted(path.name for path in exported.iterdir())
    assert main(["train", "demo", "--run-dir", str(exported), "--resume"]) == 2
    assert f"--resume-weights {exported}@STEP" in capsys.readouterr().err
    assert sorted(path.name for path in exported.iterdir()) == before
    assert main(["train", "demo", "--run-dir", str(straight / "checkpoints" / "siri-low-1"), "--resume"]) == 2
    assert f"a checkpoint; give its run, --run-dir {straight}" in capsys.readouterr().err


def test_a_run_is_no_model_and_its_checkpoints_are_named(straight, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no runs/demo is in the way
    for command in (["train", "demo", "--model"], ["eval"]):
        assert main([*command, str(straight), "--data", "siri:demo/heldout.jsonl"]) == 2
        assert (
            f"a run's folder; give one of its checkpoints, such as {straight}/checkpoints/" in capsys.readouterr().err
        )
    command = ["train", "demo", *SMALL, "--run-dir", str(tmp_path / "run"), "--resume-weights", str(straight)]
    assert main(command) == 2 and f"--run-dir {straight} --resume" in capsys.readouterr().err


def test_another_architecture_is_named(tmp_path, capsys):
    folder = save_tiny(tmp_path / "tiny")
    command = ["train", "demo", *SMALL, "--steps", "9", "--run-dir", str(tmp_path / "run")]
    assert main([*command, "--resume-weights", f"{folder}@1"]) == 2
    assert "weights of another model, its vocab_size is" in capsys.readouterr().err
    assert main([*command, "--resume-weights", f"{resolve_path('siri:demo/model')}@1", "--dry-run"]) == 0
    assert "taken for those after 1 steps" in capsys.readouterr().out
