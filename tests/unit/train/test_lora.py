"""A run with an adapter: what it saves, how it goes on, what leaves it."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from siri.cli import main
from siri.data.problems import resolve_path
from siri.store.checkpoint import whole_weights
from tests.support.saving import tensors
from tests.support.training import reproducible, rows, same_run, train

LORA = ["--lora-rank", "4", "--lr", "1e-2", "--save-every", "1", "--keep-checkpoints", "9", "--quiet"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "run"
    train(folder, *LORA, "--steps", "4")
    return folder


def test_the_adapter_alone_is_trained_and_saved(run):
    held = tensors(run / "checkpoints" / "step_000004")
    assert held and all("lora_" in name for name in held)
    saved = whole_weights(run / "checkpoints" / "step_000004")
    assert all(name.startswith("base_model.model.model.layers.") for name in saved)
    assert any(tensor.abs().max() > 0 for name, tensor in saved.items() if "lora_B" in name), "it has learnt"
    weights = sum(file.stat().st_size for file in (run / "checkpoints" / "step_000004").rglob("*.safetensors"))
    model = sum(tensor.nbytes for tensor in whole_weights_of_demo().values())
    assert weights < model / 4
    assert rows(run)[-1]["mismatch_abs_mean"] < 1e-4 and rows(run)[-1]["fingerprint_gap_mean"] < 1e-4


def whole_weights_of_demo():
    return AutoModelForCausalLM.from_pretrained(resolve_path("siri:demo/model")).state_dict()


def test_it_resumes_bit_for_bit(run, tmp_path):
    train(tmp_path / "run", *LORA, "--steps", "2")
    train(tmp_path / "run", *LORA, "--steps", "4", "--resume")
    same_run(run, tmp_path / "run", "step_000004")


def logits(model):
    return model(torch.arange(3, 30)[None]).logits


# peft 0.21's own, of transformers 5.24
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@torch.no_grad()
def test_what_is_exported_is_one_model(run, tmp_path, capsys):
    """peft's own reading of the adapter, its own merge, and ours."""
    from peft import PeftModel

    assert main(["export", str(run), str(tmp_path / "merged")]) == 0
    assert main(["export", str(run / "checkpoints" / "siri-low-1"), str(tmp_path / "low"), "--merge"]) == 0
    assert main(["export", str(run), str(tmp_path / "adapter"), "--adapter"]) == 0
    base = AutoModelForCausalLM.from_pretrained(resolve_path("siri:demo/model"), dtype=torch.float32)
    plain = logits(base)
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    low = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "low"))
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), merged, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(logits(loaded.merge_and_unload()), merged, rtol=1e-5, atol=1e-4)
    assert (merged - plain).abs().max() > 1e-2 and (low - merged).abs().max() > 1e-3
    AutoTokenizer.from_pretrained(tmp_path / "merged")
    adapter = tmp_path / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == resolve_path(
        "siri:demo/model"
    )
    assert not (adapter / "config.json").exists() and not (adapter / "state.json").exists()


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_is_exported_in_16_bits(run, tmp_path, capsys, dtype):
    for name, arguments in (("whole", []), ("half", ["--dtype", dtype])):
        assert main(["export", str(run), str(tmp_path / name), *arguments]) == 0
    whole, half = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("whole", "half"))
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == dtype
    for (name, tensor), (_, tensor_16) in zip(whole.state_dict().items(), half.state_dict().items(), strict=True):
        assert tensor_16.dtype == getattr(torch, dtype) and torch.equal(tensor.to(tensor_16.dtype), tensor_16), name
    sizes = [sum(file.stat().st_size for file in (tmp_path / n).glob("*.safetensors")) for n in ("whole", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    capsys.readouterr()
    line = one_line(capsys, "export", str(run), str(tmp_path / "adapter"), "--adapter", "--dtype", dtype)
    assert "--dtype is of a whole model" in line and not (tmp_path / "adapter").exists()


def test_a_checkpoint_is_evaluated_and_trained_on_as_the_merged_model(run, tmp_path, capsys):
    checkpoint = run / "checkpoints" / "siri-high-1"
    assert main(["export", str(checkpoint), str(tmp_path / "merged")]) == 0
    figures = []
    for model in (checkpoint, tmp_path / "merged"):
        options = ["--data", "siri:demo/heldout.jsonl", "--problems", "8", "--samples", "2", "--cap", "48"]
        options += ["--reward", "exact", "--no-think", "--instruction", "", "--out", str(tmp_path / "out.json")]
        assert main(["eval", str(model), *options]) == 0
        figures.append(json.loads((tmp_path / "out.json").read_text())["tokens_mean"])
    assert figures[0] == figures[1]
    first = train(tmp_path / "one", "--model", str(checkpoint), "--steps", "1", "--quiet")
    second = train(tmp_path / "two", "--model", str(tmp_path / "merged"), "--steps", "1", "--quiet")
    assert reproducible(first) == reproducible(second)
    assert any("embed_tokens" in name for name in tensors(tmp_path / "one" / "checkpoints" / "step_000001"))


def test_a_post_mortem_is_replayed_with_its_adapter(tmp_path, capsys):
    train(tmp_path / "run", *LORA, "--steps", "3", "--ratio-limit", "0.5", "--health", "ratio=warn")
    bundle = next((tmp_path / "run" / "postmortem").glob("step_*"))
    assert main(["replay", str(bundle)]) == 0
    assert "the same, bit for bit" in capsys.readouterr().out


def one_line(capsys, *arguments: str) -> str:
    assert main([*arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_what_cannot_be_is_one_line_and_leaves_nothing(run, tmp_path, capsys):
    train(tmp_path / "whole", "--steps", "1", "--quiet")
    capsys.readouterr()
    out = str(tmp_path / "out")
    assert "holds whole weights and no adapter; export it without --adapter" in one_line(
        capsys, "export", str(tmp_path / "whole"), out, "--adapter"
    )
    assert "give one of them" in one_line(capsys, "export", str(run), out, "--adapter", "--merge")
    settings = ["train", "demo", "--run-dir", out]
    assert "'q_porj' is no layer of the model; it has q_proj and" in one_line(
        capsys, *settings, "--lora-rank", "4", "--lora-targets", "q_porj"
    )
    assert "lora_alpha is set, but lora_rank is 0" in one_line(capsys, *settings, "--lora-alpha", "4")
    assert "lora_rank is -1; it must be" in one_line(capsys, *settings, "--lora-rank", "-1")
    assert "vocab_parallel cuts the lm_head" in one_line(
        capsys, *settings, "--lora-rank", "4", "--lora-targets", "lm_head", "--vocab-parallel"
    )
    assert not (tmp_path / "out").exists()
    resumed = one_line(capsys, "train", "demo", "--run-dir", str(tmp_path / "whole"), "--resume", "--lora-rank", "4")
    assert "lora_rank" in resumed


def test_peft_that_is_missing_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    line = one_line(capsys, "train", "demo", "--run-dir", str(tmp_path / "run"), "--lora-rank", "4")
    assert "lora_rank needs peft, which is not installed; pip install -e ./kernels -e '.[lora]'" in line
