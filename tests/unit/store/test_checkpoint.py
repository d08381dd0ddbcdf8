"""Checkpoints: whole or not at all, verified when read, bit-exact, and exported as plain model folders."""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from siri.errors import InputError
from siri.model.policy import load_policy
from siri.store import checkpoint
from siri.store.checkpoint import (
    MANIFEST,
    OPTIMIZER,
    STATE,
    WEIGHTS,
    checkpoints,
    discard_after,
    export,
    finish,
    newest_good,
    prune,
    restore,
    verify,
)
from tests.support.saving import file_of, save_now, tensors
from tests.support.tiny import bpe_tokenizer, save_tiny

pytestmark = pytest.mark.torture
IDS = torch.tensor([[5, 9, 30, 31, 8, 77]])


def trained(folder: Path, *, steps: int = 3, seed: int = 0, **model):
    """A policy that took a few AdamW steps, and its optimizer."""
    torch.manual_seed(seed)
    policy = load_policy(str(save_tiny(folder, **model)), torch.device("cpu"))
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-2)
    take_steps(policy, optimizer, steps)
    return policy, optimizer


def take_steps(policy, optimizer, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        policy.model.lm_head(policy.model.model(input_ids=IDS).last_hidden_state).square().mean().backward()
        optimizer.step()


def logits(model) -> torch.Tensor:
    return model(input_ids=IDS).logits.detach()


def save(folder: Path, policy, optimizer, *steps: int, name: str | None = None) -> Path:
    for step in steps:
        path = save_now(folder, step, policy, optimizer, {"train_tokens": 10 * step}, name=name)
    return path


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("subject") / "model")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_round_trip_is_bit_exact(tmp_path, tied, kind):
    """Weights, AdamW's moments and step counts; what follows is the same as if nothing had been saved."""
    policy, optimizer = trained(tmp_path / "model", kind=kind, tie_word_embeddings=tied)
    path = save(tmp_path / "checkpoints", policy, optimizer, 3, name="siri-low-1")
    assert verify(path) is None
    fresh, fresh_optimizer = trained(tmp_path / "other", steps=1, kind=kind, tie_word_embeddings=tied, seed=1)
    state = restore(path, fresh, fresh_optimizer)
    assert state == {"steps_done": 3, "name": "siri-low-1", "train_tokens": 30}
    shared = fresh.model.lm_head.weight is fresh.model.model.embed_tokens.weight
    assert shared == tied
    for further in (0, 2):
        take_steps(policy, optimizer, further)
        take_steps(fresh, fresh_optimizer, further)
        for one, two in zip(policy.model.parameters(), fresh.model.parameters(), strict=True):
            assert torch.equal(one, two)
        old, new = optimizer.state_dict(), fresh_optimizer.state_dict()
        assert old["param_groups"] == new["param_groups"] and old["state"].keys() == new["state"].keys()
        assert len(old["state"]) == len(list(policy.model.parameters()))
        for index, moments in old["state"].items():
            assert all(torch.equal(moments[key], new["state"][index][key]) for key in moments)


def test_an_optimizer_that_never_stepped(tmp_path):
    policy, optimizer = trained(tmp_path / "model", steps=0)
    path = save(tmp_path / "checkpoints", policy, optimizer, 1)
    assert verify(path) is None
    fresh, fresh_optimizer = trained(tmp_path / "other", steps=0, seed=1)
    restore(path, fresh, fresh_optimizer)
    assert fresh_optimizer.state_dict()["state"] == {}
    assert torch.equal(logits(fresh.model), logits(policy.model))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER, STATE, "config.json", "tokenizer.json"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [(truncate, "bytes instead of"), (flip_a_bit, "does not match its checksum"), (Path.unlink, "is missing")],
)
def test_damage_is_found_and_named(tmp_path, subject, name, damage, said, fault):
    path = save(tmp_path, *subject, 1)
    victim = file_of(path, name) if (path / name).is_dir() else path / name
    damage(victim)
    found = verify(path)
    assert found is not None and victim.relative_to(path).as_posix() in found and said in found
    fault(f"checkpoint: {name} {damage.__name__}d", "1", "found and named on load")


def claim(path: Path, name: str, data: bytes) -> None:
    """Put a file into the manifest of a checkpoint, with a checksum that fits."""
    listing = json.loads((path / MANIFEST).read_text())
    listing[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / MANIFEST).write_text(json.dumps(listing))


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/hostname", "weights/../../outside", "weights/link", "state.json/.."]
)
def test_a_manifest_cannot_lead_out_of_its_folder(tmp_path, subject, name, fault):
    path = save(tmp_path / "run", *subject, 1)
    (tmp_path / "run" / "outside").write_bytes(b"secret")
    (tmp_path / "outside").write_bytes(b"secret")
    if name.endswith("link"):
        (path / name).symlink_to(tmp_path / "outside")
    claim(path, name, b"secret")
    assert verify(path)
    assert newest_good(tmp_path / "run")[0] is None
    fault(f"manifest names {name}", "1", "refused")


def test_what_the_manifest_does_not_list_is_not_read(tmp_path, subject, fault):
    """A shard of another save would be merged into the weights."""
    path = save(tmp_path, *subject, 1)
    stray = path / WEIGHTS / "shard-00009-model-00001-of-00001.safetensors"
    shutil.copyfile(file_of(path, WEIGHTS), stray)
    assert "is not in its manifest" in verify(path)
    stray.unlink()
    (path / "model.safetensors.index.json").symlink_to("/etc/hostname")
    assert "is not in its manifest" in verify(path)
    (path / "model.safetensors.index.json").unlink()
    assert verify(path) is None
    fault("stray or linked file in a checkpoint", "2", "refused")


def test_links_are_no_checkpoints_and_removing_one_spares_its_target(tmp_path, subject):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    folder = tmp_path / "run"
    save(folder, *subject, 1, 2, 3)
    (folder / "step_000009").symlink_to(outside, target_is_directory=True)
    (folder / ".step_000008.part").symlink_to(outside, target_is_directory=True)
    (folder / "siri-low-7").symlink_to("../outside")
    assert [path.name for path in checkpoints(folder)] == ["step_000001", "step_000002", "step_000003"]
    discard_after(folder, 2)
    prune(folder, 1)
    assert (outside / "precious").read_text() == "mine"
    assert [path.name for path in checkpoints(folder)] == ["step_000002"]


@pytest.mark.parametrize(
    "manifest",
    [None, "", "{", "[]", "{}", '{"state.json": 3}', '{"state.json": {"bytes": 1}}', '{"model.safetensors": null}'],
)
def test_a_manifest_that_says_nothing(tmp_path, subject, manifest):
    path = save(tmp_path, *subject, 1)
    (path / MANIFEST).unlink()
    if manifest is not None:
        (path / MANIFEST).write_text(manifest)
    assert verify(path)


def test_newest_good_passes_over_damaged_ones(tmp_path, subject):
    assert newest_good(tmp_path / "nowhere") == (None, [])
    save(tmp_path, *subject, 999999, 2, 1000000)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_000002", "step_999999", "step_1000000"]
    truncate(file_of(tmp_path / "step_1000000", OPTIMIZER))
    path, notes = newest_good(tmp_path)
    assert path == tmp_path / "step_999999"
    assert len(notes) == 1 and "step_1000000" in notes[0] and OPTIMIZER in notes[0]
    (tmp_path / "step_999999" / MANIFEST).unlink()
    truncate(tmp_path / "step_000002" / STATE)
    path, notes = newest_good(tmp_path)
    assert path is None and len(notes) == 3


def test_saving_again_replaces(tmp_path, subject):
    path = save(tmp_path, *subject, 4, name="siri-low-1")
    truncate(file_of(path, WEIGHTS))
    assert save(tmp_path, *subject, 4, name="siri-low-1") == path
    assert verify(path) is None and verify(tmp_path / "siri-low-1") is None
    assert (tmp_path / "siri-low-1").readlink() == Path(path.name), "relative, so that the run folder can move"


def test_a_kill_around_the_rename_leaves_no_checkpoint_without_its_name(tmp_path, subject, monkeypatch):
    rename = Path.rename
    for step, after in ((1, False), (2, True)):
        part, final = tmp_path / f".{step}.part", tmp_path / f"step_{step:06d}"
        shutil.copytree(save(tmp_path / "elsewhere", *subject, step), part)
        listing = json.loads((part / MANIFEST).read_text())

        def killed(self, target, after=after):
            if after:
                rename(self, target)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(Path, "rename", killed)
            finish(part, final, listing, f"siri-low-{step}")
    discard_after(tmp_path, 2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_000002"]
    assert verify(tmp_path / "siri-low-2") is None and not (tmp_path / "siri-low-1").is_symlink()


def test_prune_keeps_the_newest_the_named_and_every_so_many(tmp_path, subject):
    save(tmp_path, *subject, 1, 2, 4, 5, 6)
    save(tmp_path, *subject, 3, name="siri-low-1")
    prune(tmp_path, 2, keep_every=2)
    kept = ["step_000002", "step_000003", "step_000004", "step_000005", "step_000006"]
    assert [path.name for path in checkpoints(tmp_path)] == kept
    prune(tmp_path, 2)
    names = ["siri-low-1", "step_000003", "step_000005", "step_000006"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == names
    prune(tmp_path, 2)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == names


def test_damaged_checkpoints_of_later_steps_are_put_aside_when_a_run_continues(tmp_path, subject):
    """Else they would be the newest for ever, and pruning would remove good ones in their favour. Nothing of them is
    deleted: whoever found them damaged may have been wrong."""
    save(tmp_path, *subject, 1, 2)
    save(tmp_path, *subject, 3, name="siri-low-1")
    (tmp_path / ".step_000009.part").mkdir()
    (note,) = discard_after(tmp_path, 2)
    assert "step_000003 is kept as step_000003.damaged" in note
    kept = ["step_000001", "step_000002", "step_000003.damaged"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == kept
    save(tmp_path, *subject, 3)
    discard_after(tmp_path, 2)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [*kept, "step_000003.damaged-2"]
    discard_after(tmp_path / "nowhere", 0)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EACCES, errno.ETIMEDOUT])
def test_storage_that_fails_is_no_damage(tmp_path, subject, number, monkeypatch, fault):
    """Asked again, it may answer; if not, that is said, and no checkpoint is passed over."""
    save(tmp_path, *subject, 1, 2)
    once, reads = checkpoint._sha256, []

    def fails(path: Path) -> str:
        reads.append(path)
        if "step_000002" in str(path) and (len(reads) == 1 or number != errno.ESTALE):
            raise OSError(number, os.strerror(number))
        return once(path)

    monkeypatch.setattr(checkpoint, "_sha256", fails)
    if number == errno.ESTALE:
        assert newest_good(tmp_path) == (tmp_path / "step_000002", []), "the second time it answers"
    else:
        with pytest.raises(InputError, match=rf"step_000002: cannot be read \({os.strerror(number)}\); nothing was"):
            newest_good(tmp_path)
    fault(f"{errno.errorcode[number]} while a checkpoint is read", "1", "asked again, then one line; nothing changed")


def test_what_nfs_leaves_of_an_open_file_is_no_damage(tmp_path, subject):
    path = save(tmp_path, *subject, 1)
    (path / WEIGHTS / ".nfs0000000004a1b2c3000001d7").write_bytes(b"gone")
    assert verify(path) is None
    (path / WEIGHTS / ".nfs0000.safetensors").write_bytes(b"strange")
    assert "is not in its manifest" in verify(path)


def rewrite(path: Path, name: str, data: bytes) -> None:
    (path / name).write_bytes(data)
    claim(path, name, data)


@pytest.mark.parametrize(
    "change",
    [
        *({"steps_done": value} for value in (-1, True, "1", 1.0, 2, 10**400)),
        *({"train_tokens": value} for value in (None, -1, "x", 10**400)),
        *({"sampler": {"epoch": value, "cursor": 0, "seed": 0}} for value in (-1, None, 1.5, 10**400, True, [])),
        *({"sampler": value} for value in ([], None, {}, {"epoch": 0, "cursor": 0, "seed": 0, "order": 3})),
        *({"health": value} for value in ([], {"ratio": "x"}, {"ratio": -1}, {"ratio": None})),
        {"name": ["a"]},
    ],
    ids=str,
)
def test_a_state_with_absurd_values_is_damage(tmp_path, subject, change):
    path = save(tmp_path, *subject, 1)
    state = json.loads((path / STATE).read_text()) | {"sampler": {"epoch": 0, "cursor": 0, "seed": 0}, "health": {}}
    rewrite(path, STATE, json.dumps(state).encode())
    assert verify(path) is None
    rewrite(path, STATE, json.dumps(state | change).encode())
    assert verify(path).startswith(STATE)


def test_tensors_that_are_none_or_do_not_fit_are_one_line(tmp_path, subject):
    path = save(tmp_path / "run", *subject, 1)
    good = file_of(path, WEIGHTS)
    name, data = good.relative_to(path).as_posix(), good.read_bytes()
    for absurd in (b"", b"\xff" * 64, (2**62).to_bytes(8, "little") + data[8:], data[:-4]):
        rewrite(path, name, absurd)
        assert "holds no tensors" in verify(path), absurd[:8]
    other, optimizer = trained(tmp_path / "other", hidden_size=48)
    rewrite(path, name, data)
    assert verify(path) is None
    with pytest.raises(InputError, match="its tensors cannot be read into this model"):
        restore(path, other, optimizer)


def test_a_shard_that_rank_0_does_not_see_is_a_failed_save(tmp_path, subject):
    """As where the run folder is not shared between machines."""
    path = save(tmp_path / "elsewhere", *subject, 1)
    part = tmp_path / ".step_000001.part"
    shutil.copytree(path, part)
    listing = json.loads((part / MANIFEST).read_text())
    listing["weights/shard-00002-model-00001-of-00001.safetensors"] = {"bytes": 9, "sha256": "0" * 64}
    with pytest.raises(OSError, match="the run folder must be shared"):
        finish(part, tmp_path / "step_000001", listing, None)
    assert not (tmp_path / "step_000001").exists()


def test_a_kill_while_pruning_leaves_no_half_of_a_checkpoint(tmp_path, subject, monkeypatch):
    save(tmp_path, *subject, 1, 2)

    def killed(path, **_):
        next(Path(path).iterdir()).unlink() if not (Path(path) / WEIGHTS).is_dir() else None
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "rmtree", killed)
        prune(tmp_path, 1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_000002"]
    discard_after(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000002"]


# --- export ---


@pytest.mark.parametrize("tied", [False, True])
def test_export_is_a_folder_for_transformers(tmp_path, tied):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = bpe_tokenizer(["the answer is not known </think>"])
    policy, optimizer = trained(tmp_path / "model", tokenizer=tokenizer, tie_word_embeddings=tied)
    path = save(tmp_path / "run" / "checkpoints", policy, optimizer, 3, name="siri-high-1")
    for number, source in enumerate((path, path.parent / "siri-high-1", tmp_path / "run")):
        target = export(source, tmp_path / f"export_{number}")
        found = {entry.name for entry in target.iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= found
        assert not found & {MANIFEST, STATE, OPTIMIZER, WEIGHTS}
        model = AutoModelForCausalLM.from_pretrained(target)
        assert torch.equal(logits(model), logits(policy.model))
        loaded = AutoTokenizer.from_pretrained(target)
        assert loaded("the answer")["input_ids"] == tokenizer("the answer")["input_ids"]
        assert loaded.chat_template == tokenizer.chat_template
        text = (target / "config.json").read_text()
        assert "attn_implementation" not in text, "the packed attention is the trainer's own"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["export_0", "export_1", "export_2", "model", "run"]


def test_export_refuses(tmp_path, subject):
    run = tmp_path / "run"
    path = save(run / "checkpoints", *subject, 1, 2)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    for target in (full, full / "mine.txt"):
        with pytest.raises(InputError, match=r"no empty folder; choose a new one"):
            export(path, target)
    assert [entry.name for entry in full.iterdir()] == ["mine.txt"]
    with pytest.raises(InputError, match="no checkpoint there"):
        export(tmp_path, tmp_path / "new")

    truncate(file_of(path, WEIGHTS))
    with pytest.raises(InputError, match=r"step_000002: damaged, weights/shard-00001\S*\.safetensors has"):
        export(path, tmp_path / "new")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert export(run, empty) == empty, "the newest good one, and an empty folder may be there"
    shutil.rmtree(run / "checkpoints" / "step_000001")
    with pytest.raises(InputError, match=r"no good checkpoint in this run; .*step_000002: damaged"):
        export(run, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert json.loads((empty / "config.json").read_text())["model_type"] == "qwen2"


def test_nothing_in_a_checkpoint_is_pickled(tmp_path, subject):
    path = save(tmp_path, *subject, 1)
    names = {entry.relative_to(path).as_posix() for entry in path.rglob("*") if entry.is_file()}
    assert {os.path.splitext(name)[1] for name in names} <= {".json", ".safetensors", ".jinja", ".txt"}
    assert tensors(path).keys() > {"weights/lm_head.weight", "optimizer/lm_head.weight.exp_avg"}
