"""A model's files and its config.json: tensors of another shape or kind, too few and too many, told before a run."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from siri import cli
from siri.config import Config
from siri.errors import InputError
from siri.model.fit import check_fit
from siri.model.policy import load_policy, random_policy
from siri.train.setup import prepare
from tests.support.tiny import save_tiny

CPU = torch.device("cpu")
EMBEDDING, LAST = "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path):
    save_tiny(tmp_path / "model")
    return tmp_path / "model"


def change(folder, **tensors) -> None:
    """Replace tensors of the only file, by name; None takes one away."""
    path = folder / "model.safetensors"
    held = load_file(path) | tensors
    save_file({name: tensor for name, tensor in held.items() if tensor is not None}, path, {"format": "pt"})


def write_config(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder) -> str:
    """The one line of the dry run and of the run itself, which is the same."""
    lines = []
    for weights in ("none", "read"):
        with pytest.raises(InputError) as caught:
            prepare(Config(model=str(folder), data=("x",)), device=CPU, weights=weights)
        lines.append(str(caught.value))
    assert lines[0] == lines[1] and "\n" not in lines[0]
    return lines[0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": 64}, "32 in its files"),
        ({"intermediate_size": 50}, "32 x 50 by its config.json"),
        ({"num_key_value_heads": 4}, "16 in its files and 32 by its config.json"),
        ({"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}, "hold no model.layers.2."),
        ({"pad_token_id": 10**6}, "pad_token_id is 1000000"),
        ({"num_attention_heads": 0}, "config.json"),
    ],
)
def test_a_configuration_of_other_weights(folder, changes, named):
    write_config(folder, **changes)
    assert named in refused(folder)


def test_a_vocabulary_of_another_size_names_both(folder):
    rows = load_file(folder / "model.safetensors")[EMBEDDING].shape[0]
    write_config(folder, vocab_size=rows + 8)
    assert f"{rows} x 32 in its files and {rows + 8} x 32 by its config.json" in refused(folder)


@pytest.mark.parametrize("name", [EMBEDDING, LAST])
def test_a_tensor_that_is_not_there(folder, name):
    change(folder, **{name: None})
    assert f"hold no {name}" in refused(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.bool])
def test_weights_that_need_a_scale(folder, dtype):
    change(folder, **{LAST: load_file(folder / "model.safetensors")[LAST].to(dtype)})
    assert f"{LAST} is " in refused(folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats_are_weights(folder, dtype):
    change(folder, **{LAST: load_file(folder / "model.safetensors")[LAST].to(dtype)})
    assert load_policy(str(folder), CPU).notes == ()


def test_a_tensor_that_the_model_does_not_have_is_told(folder):
    change(folder, **{"lm_head.bias": torch.zeros(4), "model.rotary_emb.inv_freq": torch.ones(4)})
    for weights in (True, False):
        (note,) = load_policy(str(folder), CPU, weights=weights).notes
        assert note.endswith("lm_head.bias in its files is no part of the model, and is not used")


def test_a_backbone_saved_by_itself_has_other_names(folder):
    held = load_file(folder / "model.safetensors")
    save_file({n.removeprefix("model."): t for n, t in held.items()}, folder / "model.safetensors", {"format": "pt"})
    assert load_policy(str(folder), CPU, weights=False).notes == ()


@pytest.mark.parametrize(("before", "after"), [("model.", "model.language_model."), ("layers", "h"), ("model.", "x.")])
def test_names_that_transformers_does_not_translate_are_refused_by_the_dry_run_too(folder, before, after):
    held = load_file(folder / "model.safetensors")
    renamed = {name.replace(before, after, 1): tensor for name, tensor in held.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    assert ", which would be random" in refused(folder)


def test_names_that_transformers_translates_are_left_to_it(tmp_path):
    config = AutoConfig.for_model("mixtral", hidden_size=32, intermediate_size=48, vocab_size=400, num_hidden_layers=1)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)  # writes each expert by its older name
    assert load_file(tmp_path / "model.safetensors").keys() != model.state_dict().keys()
    assert check_fit(model, "mixtral", tmp_path, fetch=False) == ""


def test_a_head_by_a_name_that_nobody_reads(folder):
    held = load_file(folder / "model.safetensors")
    change(folder, **{"lm_head.weight": None, "model.lm_head.weight": held["lm_head.weight"]})
    for tied in (False, True):
        write_config(folder, tie_word_embeddings=tied)
        assert "call the head model.lm_head.weight" in refused(folder)
    change(folder, **{"model.lm_head.weight": None, "mtp.lm_head.weight": held["lm_head.weight"]})
    assert "mtp.lm_head.weight in its files is no part" in load_policy(str(folder), CPU).notes[-1]


def test_a_folder_without_weights_is_no_model_to_train_and_one_to_plan(folder, capsys):
    held = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    assert "holds no weights; copy model.safetensors" in refused(folder)
    torch.save(held, folder / "pytorch_model.bin")
    assert "save it as safetensors" in refused(folder)
    for name, told in (("consolidated", "holds consolidated.safetensors"), ("adapter_model", "holds an adapter")):
        save_file(held, folder / f"{name}.safetensors", {"format": "pt"})
        assert told in refused(folder)
        (folder / f"{name}.safetensors").unlink()
    save_file(held, folder / "model-00001-of-00002.safetensors", {"format": "pt"})
    assert "model.safetensors.index.json is not there" in refused(folder)
    assert random_policy(str(folder), CPU).model is not None
    assert cli.main(["plan", "siri-1.5b", "--model", str(folder), "--gpus", "1", "--gpu", "h100"]) == 0
    capsys.readouterr()


def test_a_shard_that_is_not_there_is_named_by_the_dry_run_too(folder):
    held = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(held, folder / "model-00001-of-00002.safetensors", {"format": "pt"})
    index = {"weight_map": dict.fromkeys(held, "model-00001-of-00002.safetensors")}
    index["weight_map"][LAST] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors" in refused(folder)


def test_another_set_of_weights_in_the_folder_is_told(folder):
    held = load_file(folder / "model.safetensors")
    save_file(held, folder / "model-00001-of-00001.safetensors", {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    for files, told in (
        (["model.safetensors"], 0),
        (["gone.safetensors"], 0),
        (["model-00001-of-00001.safetensors"], 1),
    ):
        index.write_text(json.dumps({"weight_map": dict(zip(held, files * len(held), strict=True))}))
        notes = load_policy(str(folder), CPU, weights=False).notes
        assert len(notes) == told and all("names model-00001-of-00001.safetensors, which is not" in n for n in notes)
    index.write_text("[")
    assert load_policy(str(folder), CPU).notes == ()
