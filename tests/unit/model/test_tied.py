"""Configurations and files that agree, and disagree, about a tied head: one rule, whoever reads them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from siri import cli
from siri.config import Config
from siri.errors import InputError
from siri.model.policy import allocate, hollow_copy, load_policy, random_policy
from siri.model.weight_files import settle_tying
from siri.rollout import Request
from siri.rollout.colocated import engine_options
from siri.rollout.engines import vllm_options
from siri.rollout.local import local_engine
from siri.store.checkpoint import MANIFEST, describe, load_weights, restore
from siri.store.export import export
from siri.train.setup import read_policy
from tests.support.saving import save_now
from tests.support.tiny import save_tiny, tiny_policy

CPU = torch.device("cpu")
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
CASES = {
    # what config.json says, what the files hold: what the model is
    "tied": (True, None, True),
    "untied": (False, "its own", False),
    "untied, equal": (False, "equal", False),
    "tied, equal": (True, "equal", True),
    "tied, equal in fp32": (True, "equal, in another dtype", True),
    "tied, not a number": (True, "equal, not a number", True),
    "tied, one bit off": (True, "one bit off", False),
    "tied, a head": (True, "its own", False),
}
LAYOUTS = ("one file", "shards")


def folder_of(folder: Path, says: bool, head: str | None, layout: str = "one file") -> Path:
    """A model folder whose config.json says so, and whose files hold such a head; None = none."""
    save_tiny(folder, tie_word_embeddings=False)
    write_config(folder, tie_word_embeddings=says)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    embedding = tensors[EMBEDDING]
    if head is None:
        del tensors[HEAD]
    elif head != "its own":
        tensors[EMBEDDING] = embedding = embedding.bfloat16()
        if head == "equal, not a number":
            embedding[5, 3] = float("nan")
        tensors[HEAD] = embedding.float() if "dtype" in head else embedding.clone()
        if head == "one bit off":
            tensors[HEAD].view(torch.int16)[-1, -1] ^= 1
    if layout == "one file":
        save_file(tensors, path, {"format": "pt"})
        return folder
    path.unlink()
    names = [f"model-{number}.safetensors" for number in (1, 2, 3)]
    places = {name: names[number % 3] for number, name in enumerate(sorted(tensors))}
    for file in names:
        held = {name: tensor for name, tensor in tensors.items() if places[name] == file}
        save_file(held, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def is_tied(policy) -> bool:
    tied = policy.model.lm_head.weight is policy.model.get_input_embeddings().weight
    assert tied == policy.model.config.tie_word_embeddings == (HEAD not in dict(policy.model.named_parameters()))
    return tied


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_what_the_files_hold_is_the_model(tmp_path, case, layout):
    says, head, tied = CASES[case]
    folder = folder_of(tmp_path, says, head, layout)
    files: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        files |= load_file(path)
    policy, hollow = load_policy(str(folder), CPU), load_policy(str(folder), CPU, weights=False)
    dry = load_policy(str(folder), CPU, weights=False, fetch=False)
    allocate(hollow.model, CPU)
    load_weights(folder, hollow)
    notes = set()
    for each in (policy, hollow, dry, random_policy(str(folder), CPU)):
        assert is_tied(each) == tied
        notes.add(each.notes)
    (lines,) = notes
    assert len(lines) == (says and not tied)
    assert all(f"{folder}: tie_word_embeddings is true" in line and "\n" not in line for line in lines)
    for each in (policy, hollow):
        weight = each.model.lm_head.weight
        torch.testing.assert_close(weight, files.get(HEAD, files[EMBEDDING]).float(), rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(
            each.model.model.embed_tokens.weight, files[EMBEDDING].float(), rtol=0, atol=0, equal_nan=True
        )


def test_the_line_on_a_missing_head_says_that_the_key_is_missing_too(tmp_path):
    folder = folder_of(tmp_path, False, None, LAYOUTS[0])
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    config.pop("tie_word_embeddings", None)
    loaded = AutoConfig.from_pretrained(folder)
    loaded.tie_word_embeddings = False  # as models whose default that is
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"tie_word_embeddings is not in its config\.json, which means false, but"):
        settle_tying(loaded, "m", folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_head_that_is_promised_and_not_there_is_refused_by_everybody(tmp_path, layout, capsys):
    folder = str(folder_of(tmp_path, False, None, layout))
    for load in (
        lambda: load_policy(folder, CPU),
        lambda: load_policy(folder, CPU, weights=False),
        lambda: load_policy(folder, CPU, weights=False, fetch=False),
        lambda: random_policy(folder, CPU),
    ):
        with pytest.raises(InputError, match=rf"{folder}: tie_word_embeddings is false .* no lm_head\.weight") as error:
            load()
        assert "set tie_word_embeddings to true" in str(error.value) and "\n" not in str(error.value)
    for command in (["plan", "demo", "--model", folder], ["eval", folder, "--data", "siri:demo/test.jsonl"]):
        assert cli.main(command) == 2
        assert "hold no lm_head.weight" in capsys.readouterr().err


def test_a_configuration_without_the_key_is_untied(tmp_path):
    """As transformers has it for these architectures, and vLLM."""
    folder = folder_of(tmp_path, True, None)
    config = json.loads((folder / "config.json").read_text())
    del config["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="no lm_head"):
        load_policy(str(folder), CPU)


def test_the_embedding_may_stand_under_the_heads_name_and_without_prefix(tmp_path):
    folder = folder_of(tmp_path / "head", True, None)
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors.pop(EMBEDDING)
    save_file({**tensors, HEAD: embedding}, folder / "model.safetensors", {"format": "pt"})
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    backbone = folder_of(tmp_path / "bare", True, None)
    save_file({**bare, "embed_tokens.weight": embedding}, backbone / "model.safetensors", {"format": "pt"})
    for source in (folder, backbone):
        policy = load_policy(str(source), CPU)
        assert is_tied(policy) and policy.notes == () and torch.equal(policy.model.lm_head.weight, embedding)


def test_any_weight_that_is_not_there_is_refused(tmp_path):
    folder = folder_of(tmp_path, False, "its own")
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.norm.weight", "model.layers.1.mlp.up_proj.weight"):
        del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"hold no model\.layers\.1\.mlp\.up_proj\.weight and 1 more"):
        load_policy(str(folder), CPU)


def test_tying_that_is_null_is_named_with_the_way_out(tmp_path):
    folder = folder_of(tmp_path, True, None)
    settings = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": None}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"tie_word_embeddings.*; set tie_word_embeddings .* to true or false"):
        load_policy(str(folder), CPU)


def test_files_that_cannot_be_read_are_named(tmp_path):
    folder = folder_of(tmp_path, True, None, "shards")
    (folder / "model-2.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(InputError, match=r"model-2\.safetensors: not to be read as safetensors"):
        load_policy(str(folder), CPU)
    (folder / "model-2.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(InputError, match=r"model-2\.safetensors: a pointer of Git LFS, .* git lfs pull"):
        load_policy(str(folder), CPU)
    (folder / "model-2.safetensors").unlink()
    for fetch in (True, False):
        with pytest.raises(InputError, match=r"index\.json: names model-2\.safetensors, which is not there"):
            load_policy(str(folder), CPU, weights=False, fetch=fetch)
    assert is_tied(random_policy(str(folder), CPU)), "config.json's word, without weights"
    for text in ("[]", "{", '{"weight_map": []}', '{"weight_map": {"a": 1}}'):
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(InputError, match=r"index\.json: no index of weights"):
            load_policy(str(folder), CPU)


def test_a_long_vocabulary_is_compared_to_its_last_row(tmp_path, monkeypatch):
    monkeypatch.setattr("siri.model.weight_files.ROWS", 7)
    for head, tied in (("one bit off", False), ("equal", True)):
        assert is_tied(load_policy(str(folder_of(tmp_path / head, True, head)), CPU)) == tied


@pytest.mark.parametrize("case", sorted(CASES.keys() - {"tied, not a number"}))
def test_checkpoint_resume_and_export_hold_the_same_model(tmp_path, case):
    says, head, tied = CASES[case]
    source = str(folder_of(tmp_path / "model", says, head))
    policy = load_policy(source, CPU)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-2)
    policy.model(torch.tensor([[5, 9, 30]])).logits.square().mean().backward()
    optimizer.step()
    checkpoint = save_now(tmp_path / "checkpoints", 1, policy, optimizer, {})
    wanted = dict(policy.model.named_parameters())
    again = load_policy(source, CPU)
    restore(checkpoint, again, torch.optim.AdamW(again.model.parameters(), lr=1e-2))
    exported = load_policy(str(export(checkpoint, tmp_path / "exported")), CPU)
    for each in (again, read_policy(str(checkpoint), CPU), exported):
        assert is_tied(each) == tied
        held = dict(each.model.named_parameters())
        assert held.keys() == wanted.keys() and all(torch.equal(held[name], wanted[name]) for name in wanted)
    assert exported.notes == ()
    for folder in (checkpoint, tmp_path / "exported"):
        assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] == tied
    assert (HEAD in load_file(tmp_path / "exported" / "model.safetensors")) is not tied
    read_by_transformers = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert all(torch.equal(value, wanted[name]) for name, value in read_by_transformers.named_parameters())


def test_a_checkpoint_whose_configuration_is_wrong_keeps_its_head(tmp_path, capsys):
    """As 0.1.0 wrote them for a folder with a head of its own and a configuration that is tied; also one whose head
    happens to equal its embedding: a checkpoint holds a tied tensor once."""
    policy = tiny_policy_on_disk(tmp_path / "model")
    with torch.no_grad():
        policy.model.lm_head.weight.copy_(policy.model.model.embed_tokens.weight)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-2)
    checkpoint = save_now(tmp_path / "checkpoints", 1, policy, optimizer, {})
    rewrite_config(checkpoint, tie_word_embeddings=True)
    loaded = read_policy(str(checkpoint), CPU)
    assert not is_tied(loaded) and len(loaded.notes) == 1
    assert cli.main(["export", str(checkpoint), str(tmp_path / "exported")]) == 0
    assert "tie_word_embeddings is true" in capsys.readouterr().out
    assert torch.equal(
        load_file(tmp_path / "exported" / "model.safetensors")[HEAD], policy.model.lm_head.weight.detach()
    )
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["tie_word_embeddings"] is False


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    tied, untied = (tiny_policy_on_disk(tmp_path / f"{is_it}", tie_word_embeddings=is_it) for is_it in (True, False))
    pairs = ((tied, untied, r"has no lm_head\.weight"), (untied, tied, r"has a lm_head\.weight"))
    for number, (written, into, message) in enumerate(pairs):
        optimizer = torch.optim.AdamW(written.model.parameters())
        checkpoint = save_now(tmp_path / f"checkpoints{number}", 1, written, optimizer, {})
        with pytest.raises(InputError, match=message):
            restore(checkpoint, into, torch.optim.AdamW(into.model.parameters()))
    rewrite_config(checkpoint, num_hidden_layers=1, layer_types=["full_attention"])
    with pytest.raises(InputError, match=r"has a model\.layers\.1\..*unlike"):
        export(checkpoint, tmp_path / "exported")
    assert not (tmp_path / "exported").exists() and not (tmp_path / ".exported.part").exists()


def tiny_policy_on_disk(folder: Path, **options):
    return load_policy(str(save_tiny(folder, **options)), CPU)


def rewrite_config(checkpoint: Path, **changes) -> None:
    """Change config.json of a checkpoint that still verifies."""
    write_config(checkpoint, **changes)
    listing = json.loads((checkpoint / MANIFEST).read_text())
    listing["config.json"] = describe(checkpoint, "config.json")
    (checkpoint / MANIFEST).write_text(json.dumps(listing))


@pytest.mark.parametrize("tied", [False, True])
def test_the_embedded_engines_copy_is_tied_as_the_trained_model_is(tied):
    policy = tiny_policy(tie_word_embeddings=tied)
    engine = local_engine(Config(model="siri:demo/model"), policy, copy=True)
    assert is_tied(engine.policy) == tied and engine.policy.model is not policy.model
    for _ in range(2):
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        engine.sync()
        held = dict(engine.policy.model.named_parameters())
        assert all(torch.equal(held.pop(name), value) for name, value in policy.model.named_parameters())
        assert not held and is_tied(engine.policy) == tied
        requests = [Request([5, 6, 7], 9, 2)]
        local = local_engine(Config(model="siri:demo/model"), policy)
        assert engine.generate(requests, temperature=1.0, seed=3) == local.generate(requests, temperature=1.0, seed=3)
    assert hollow_copy(policy).model.lm_head.weight.is_meta


@pytest.mark.parametrize("case", ["tied", "untied", "tied, a head"])
def test_vllm_and_the_plan_take_the_model_as_it_is_trained(tmp_path, case, capsys):
    says, head, tied = CASES[case]
    folder = str(folder_of(tmp_path, says, head))
    settings = Config(model=folder)
    options = vllm_options(
        settings, 1, folder=None, context=512, tied=load_policy(folder, CPU).model.config.tie_word_embeddings
    )
    assert engine_options(options, gpu=False)["hf_overrides"] == {"tie_word_embeddings": tied}
    config = AutoConfig.from_pretrained(folder)
    assert bool(settle_tying(config, folder, folder, fetch=False)) == (says and not tied)
    assert config.tie_word_embeddings == tied
    cli.main(["plan", "demo", "--model", folder])
    assert ("tie_word_embeddings is true" in capsys.readouterr().out) == (says and not tied)
