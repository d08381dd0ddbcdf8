"""Exports: the type of their weights, their model card, and sending them to the hub."""

import json
import shutil
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml
from safetensors.torch import load_file

from siri.cli import main
from siri.store.about import ABOUT, base_dtype
from siri.store.card import CARD
from tests.support.training import train


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("card") / "run"
    train(folder, "--steps", "2", "--cycle", "2", "--quiet", "--eval-problems", "8")
    return folder


def with_about(run: Path, target: Path, **changes) -> Path:
    """A checkpoint outside its run, which says other things of itself."""
    checkpoint = Path(shutil.copytree(run / "checkpoints" / "step_000002", target))
    about = json.loads((checkpoint / ABOUT).read_text()) | changes
    text = json.dumps(about)
    (checkpoint / ABOUT).write_text(text)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    from hashlib import sha256

    manifest[ABOUT] = {"bytes": len(text.encode()), "sha256": sha256(text.encode()).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    return checkpoint


def test_the_card_says_where_it_comes_from_and_how_it_was_measured(run, tmp_path, capsys):
    assert main(["export", str(run / "checkpoints" / "siri-high-1"), str(tmp_path / "my-model")]) == 0
    front, text = (tmp_path / "my-model" / CARD).read_text().split("---\n")[1:]
    about = yaml.safe_load(front)
    assert about == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["siri", "reinforcement-learning", "reasoning"],
    }
    assert "# my-model" in text and "Trained from siri:demo/model by" in text and "recipe `demo`" in text
    assert "after 2 steps, `siri-high-1`" in text and "training data: siri:demo/train.jsonl" in text
    assert "| `l_max` | 64 |" in text and "weights: float32" in text
    evals = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    assert f"| held-out problems | this model | 8 | {100 * evals[-1]['accuracy']:.1f} %" in text
    assert f"| held-out problems | base | 8 | {100 * evals[0]['accuracy']:.1f} %" in text
    assert "reward exact" in text and "temperature 0.6" in text and "template plain" in text


def test_names_of_the_hub_are_known_and_paths_stay_at_home(run, tmp_path, capsys):
    data = ["org/set:main@train[:9]", str(tmp_path / "secret" / "mine.jsonl@q,a"), "org/set@test"]
    checkpoint = with_about(run, tmp_path / "x" / "step_000002", base="org/base-1.5B", data=data, recipe="mine")
    results = tmp_path / "aime.json"
    assert main(["eval", str(checkpoint), "--data", "siri:demo/heldout.jsonl", "--problems", "4", "--samples", "2",
                 "--out", str(results)]) == 0  # fmt: skip
    command = ["export", str(checkpoint), str(tmp_path / "out"), "--results", str(results), "--dtype", "bfloat16"]
    assert main(command) == 0
    card = (tmp_path / "out" / CARD).read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["base_model"] == "org/base-1.5B" and front["datasets"] == ["org/set"]
    assert str(tmp_path) not in card and "mine.jsonl" in card
    row = json.loads(results.read_text())
    assert "## Evaluation: aime" in card and f"{100 * row['accuracy']:.1f} %" in card and "2 samples" in card
    assert "weights: bfloat16" in card
    capsys.readouterr()
    results.write_text("{}")
    assert main([*command[:2], str(tmp_path / "again"), *command[3:]]) == 2
    line = capsys.readouterr().err
    assert "aime.json: not a result file of siri eval --out" in line and not (tmp_path / "again").exists()


@pytest.mark.parametrize(("held", "written"), [("bfloat16", torch.bfloat16), ("", torch.float32)])
def test_weights_have_the_type_of_the_base(run, tmp_path, capsys, held, written):
    checkpoint = with_about(run, tmp_path / "step_000002", base_dtype=held)
    assert main(["export", str(checkpoint), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert ("--dtype float32 keeps what was trained" in printed) == bool(held)
    assert ("is not known: float32" in printed) == (not held)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {written}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == str(written).removeprefix("torch.")
    assert main(["export", str(checkpoint), str(tmp_path / "full"), "--dtype", "float32"]) == 0
    assert {tensor.dtype for tensor in load_file(tmp_path / "full" / "model.safetensors").values()} == {torch.float32}


def test_the_type_of_a_base_is_that_of_its_files(run, tmp_path):
    assert base_dtype("siri:demo/model") == "float32"
    assert base_dtype(str(with_about(run, tmp_path / "step_000002", base_dtype="bfloat16"))) == "bfloat16"
    assert base_dtype(str(tmp_path / "nothing")) == ""


# ---------------------------------------------------------------- the hub


class StandIn:
    """What is asked of huggingface_hub's HfApi, with its own signatures."""

    calls: ClassVar[list] = []
    fault: ClassVar[Exception | None] = None

    def create_repo(self, repo_id, *, private=None, exist_ok=False):
        StandIn.calls.append(("create", repo_id, private, exist_ok))
        if StandIn.fault:
            raise StandIn.fault
        from huggingface_hub import RepoUrl

        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, commit_message=None):
        held = sorted(path.name for path in Path(folder_path).iterdir())
        StandIn.calls.append(("upload", repo_id, held, commit_message))


@pytest.fixture
def hub(monkeypatch):
    import inspect

    import huggingface_hub

    for name in ("create_repo", "upload_folder"):  # the stand-in takes nothing that the real one does not
        real = inspect.signature(getattr(huggingface_hub.HfApi, name)).parameters
        assert set(inspect.signature(getattr(StandIn, name)).parameters) <= set(real)
    StandIn.calls, StandIn.fault = [], None
    monkeypatch.setattr(huggingface_hub, "HfApi", StandIn)
    return StandIn


def test_an_export_is_sent(run, tmp_path, hub, capsys):
    command = ["export", str(run), str(tmp_path / "out"), "--push", "me/my-model", "--private"]
    assert main(command) == 0
    assert "https://huggingface.co/me/my-model" in capsys.readouterr().out
    (made, sent) = hub.calls
    assert made == ("create", "me/my-model", True, True)
    assert sent[:2] == ("upload", "me/my-model") and {CARD, ABOUT, "model.safetensors", "config.json"} <= set(sent[2])


@pytest.mark.parametrize("kind", ["LocalTokenNotFoundError", "of the transport"])
def test_what_cannot_be_sent_stays(run, tmp_path, hub, capsys, kind):
    from huggingface_hub import errors

    # httpx raises errors that are neither the hub's nor the system's
    hub.fault = getattr(errors, kind, type("ConnectError", (Exception,), {}))("Token is required")
    assert main(["export", str(run), str(tmp_path / "out"), "--push", "me/my-model"]) == 2
    line = capsys.readouterr().err
    assert "could not be sent (Token is required); log in with hf auth login" in line and line.count("\n") == 1
    assert (tmp_path / "out" / CARD).is_file()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--push", "no owner"], "--push no owner: no name such as owner/model"),
        (["--push", "lonely"], "--push lonely: no name such as owner/model"),
        (["--private"], "--private is of a repository"),
    ],
)
def test_a_push_that_makes_no_sense_writes_nothing(run, tmp_path, hub, capsys, options, told):
    assert main(["export", str(run), str(tmp_path / "out"), *options]) == 2
    line = capsys.readouterr().err
    assert told in line and line.count("\n") == 1
    assert not (tmp_path / "out").exists() and hub.calls == []
