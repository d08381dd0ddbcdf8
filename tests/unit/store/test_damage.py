"""What is wrong with a checkpoint is found when it is read, and named."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from siri.errors import InputError
from siri.store import checkpoint
from siri.store.checkpoint import (
    MANIFEST,
    OPTIMIZER,
    STATE,
    WEIGHTS,
    checkpoints,
    discard_after,
    newest_good,
    restore,
    verify,
)
from tests.support.saving import file_of
from tests.support.trained import claim, flip_a_bit, rewrite, save, trained, truncate

pytestmark = pytest.mark.torture


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER, STATE, "config.json", "tokenizer.json"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [(truncate, "bytes instead of"), (flip_a_bit, "does not match its checksum"), (Path.unlink, "is missing")],
)
def test_damage_is_found_and_named(tmp_path, subject, name, damage, said, fault):
    path = save(tmp_path, *subject, 1)
    victim = file_of(path, name) if (path / name).is_dir() else path / name
    damage(victim)
    report = verify(path)
    assert report is not None and victim.relative_to(path).as_posix() in report and said in report
    fault(f"checkpoint: {name} {damage.__name__}d", "1", "found and named on load")


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
