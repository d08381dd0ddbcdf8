"""Checkpoints: whole or not at all, bit-exact, and kept as long as they should be."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from siri.store.checkpoint import (
    MANIFEST,
    WEIGHTS,
    checkpoints,
    discard_after,
    finish,
    prune,
    put_back,
    restore,
    verify,
)
from tests.support.saving import file_of, tensors
from tests.support.trained import flip_a_bit, logits, save, take_steps, trained, truncate

pytestmark = pytest.mark.torture


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
        for parameter, restored in zip(policy.model.parameters(), fresh.model.parameters(), strict=True):
            assert torch.equal(parameter, restored)
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


def test_nothing_in_a_checkpoint_is_pickled(tmp_path, subject):
    path = save(tmp_path, *subject, 1)
    names = {entry.relative_to(path).as_posix() for entry in path.rglob("*") if entry.is_file()}
    assert {os.path.splitext(name)[1] for name in names} <= {".json", ".safetensors", ".jinja", ".txt"}
    assert tensors(path).keys() > {"weights/lm_head.weight", "optimizer/lm_head.weight.exp_avg"}


def test_a_checkpoint_whose_replacement_was_cut_short_gets_its_name_back(tmp_path, subject):
    """A kill between its giving way and the newer one's taking its name."""
    policy, optimizer = subject
    path = save(tmp_path / "checkpoints", policy, optimizer, 3)
    aside = path.rename(path.with_name("step_000003.replaced"))
    notes = put_back(tmp_path / "checkpoints")
    assert verify(path) is None and not aside.exists() and "got its name back" in notes[0]
    assert put_back(tmp_path / "checkpoints") == [] == put_back(tmp_path / "none")
    # a kill after it: the newer one is there, and the older one goes
    shutil.copytree(path, aside)
    assert put_back(tmp_path / "checkpoints") == [] and aside.exists()
    discard_after(tmp_path / "checkpoints", 3)
    assert path.exists() and not aside.exists()
    # the newer one is there and damaged: the older one is good, and the newer one is kept
    shutil.copytree(path, aside)
    flip_a_bit(next((path / "weights").iterdir()))
    notes = put_back(tmp_path / "checkpoints")
    assert verify(path) is None and not aside.exists() and "kept as step_000003.damaged" in notes[0], notes
    assert verify(path.with_name("step_000003.damaged")) and "got its name back" in notes[1]
    # what is damaged stays where it is
    shutil.copytree(path, aside)
    flip_a_bit(next((aside / "weights").iterdir()))
    shutil.rmtree(path)
    assert put_back(tmp_path / "checkpoints") == []
    discard_after(tmp_path / "checkpoints", 3)
    assert aside.exists()
