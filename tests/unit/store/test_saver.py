"""Saving in the background: what fails is told and never costs a good checkpoint, alone and on several ranks."""

import contextlib
import errno
import json
import os
import resource
import subprocess
import threading
import time
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open

from siri import cli
from siri.errors import InputError
from siri.model.fsdp import full, shard
from siri.model.offload import HostAdamW
from siri.runtime.ranks import ALONE, Ranks, leave_ranks
from siri.store import saver, shards
from siri.store.checkpoint import checkpoints, discard_after, newest_good, restore, verify
from siri.store.saver import MAX_FAILURES, Saver
from tests.runs.test_distributed import join, spawn
from tests.support.saving import save_now, tensors
from tests.support.tiny import tiny_policy
from tests.support.training import SMALL

pytestmark = pytest.mark.torture


def trained(*, ranks: Ranks = ALONE, steps: int = 2, seed: int = 0, optimizer_class=torch.optim.AdamW):
    """A policy whose sizes no number of ranks divides, and an optimizer that has stepped."""
    policy = tiny_policy(vocab_size=97, hidden_size=40, intermediate_size=51, seed=seed)
    if ranks.size > 1:
        shard(policy.model, ranks, compute_dtype=torch.float32)
    optimizer = optimizer_class(policy.model.parameters(), lr=1e-2)
    for step in range(steps):
        for parameter in policy.model.parameters():
            parameter.grad = parameter.detach() * 0.1 + step
        optimizer.step()
    return policy, optimizer


@pytest.fixture(scope="module")
def subject():
    policy, optimizer = trained()
    if not hasattr(policy.tokenizer, "save_pretrained"):
        raise AssertionError
    return policy, optimizer


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """What is written is what was there when the save began, whatever happens to the weights meanwhile."""
    policy, optimizer = trained()
    go, write = threading.Event(), saver.write_pieces

    def slow(*args, **options):
        assert go.wait(300)
        write(*args, **options)

    monkeypatch.setattr(saver, "write_pieces", slow)
    writer = Saver(tmp_path, keep=9)
    before = policy.model.lm_head.weight.detach().clone()
    path = writer.save(1, policy, optimizer, {"train_tokens": 0})
    assert checkpoints(tmp_path) == [] and writer.failure() == ("", 0), "it is under way"
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.fill_(7.0)
            optimizer.state[parameter]["exp_avg"].fill_(7.0)
    go.set()
    writer.wait()
    assert verify(path) is None
    held = tensors(path)
    assert torch.equal(held["weights/lm_head.weight"], before)
    assert not any(bool((tensor == 7).all()) for tensor in held.values())


STAGES = ("write_pieces", "describe", "finish")


@pytest.mark.parametrize("stage", STAGES)
def test_a_failed_save_is_told_once_and_the_good_one_stays(tmp_path, subject, monkeypatch, stage, fault):
    good = save_now(tmp_path, 1, *subject, {}, name="siri-low-1")
    expected = tensors(good)
    writer = Saver(tmp_path, keep=9)
    place = saver if stage == "write_pieces" else saver.checkpoint
    with monkeypatch.context() as patched:

        def fails(*_args, **_options):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patched.setattr(place, stage, fails)
        for number in range(1, MAX_FAILURES + 1):
            writer.save(2, *subject, {"train_tokens": 0}, name="siri-low-1")
            writer._join()
            assert writer.failure() == ("No space left on device", number)
            assert writer.failure() == ("", 0), "told once"
        writer.save(2, *subject, {"train_tokens": 0})
        with pytest.raises(InputError, match=r"could not be saved \(No space left on device\); step_000001 is there"):
            writer.wait()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["siri-low-1", "step_000001"] and newest_good(tmp_path) == (good, [])
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors(good).items())
    path = writer.save(2, *subject, {"train_tokens": 0}, name="siri-low-1")
    writer.wait()
    assert writer.failures == 0 and verify(path) is None and verify(tmp_path / "siri-low-1") is None
    fault(f"save fails: {stage}", "3 in a row", "told by the next step, good one stays, next save works")


def test_a_failure_to_prune_is_told_and_costs_no_save(tmp_path, subject, monkeypatch):
    writer = Saver(tmp_path / "c", keep=1, record=tmp_path / "saved.json")

    def fails(*_args, **_options):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(saver.checkpoint, "prune", fails)
    path = writer.save(2, *subject, {"train_tokens": 0})
    assert writer.outcome() == "" and writer.failures == 0 and verify(path) is None
    assert "could not be cleared away (Device or resource busy)" in writer.warning() and writer.warning() == ""
    assert json.loads((tmp_path / "saved.json").read_text()) == {"step": 2}


@contextlib.contextmanager
def small_disk(folder: Path, size: str):
    """A file system of its own in `folder`, where this process may mount one."""
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=False).returncode
    ):
        pytest.skip("mounting a small disk takes root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def longest_pause(writer: Saver, before: int) -> float:
    """Of a thread that wants to go on every half millisecond, while the saver's is under way, seconds."""
    longest, last = 0.0, time.perf_counter()
    while threading.active_count() > before:
        time.sleep(0.0005)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    writer.wait()
    return longest


@pytest.mark.quiet
def test_a_step_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """DCP's own writer holds Python's lock for as long as it takes to make one string of a rank's file."""
    from torch.distributed import checkpoint as dcp

    policy = tiny_policy(vocab_size=97, hidden_size=40)
    policy.model.register_parameter("large", torch.nn.Parameter(torch.zeros(2**26)))  # 256 MB
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-2)
    pauses = []
    for by_dcp in (False, True):
        with monkeypatch.context() as patch:
            if by_dcp:
                patch.setattr(
                    shards, "_writer", lambda path: dcp.HuggingFaceStorageWriter(str(path), save_distributed=True)
                )
            writer, before = Saver(tmp_path / str(by_dcp), keep=1), threading.active_count()
            writer.save(1, policy, optimizer, {"train_tokens": 0})
            pauses.append(longest_pause(writer, before))
    assert pauses[0] < pauses[1] / 4, f"{pauses[0]:.3f} s, and {pauses[1]:.3f} s as DCP writes it"


def test_a_file_is_what_dcp_would_write(tmp_path, subject):
    from torch.distributed import checkpoint as dcp

    pieces = shards.weights_of(subject[0])
    shards.write_pieces(tmp_path / "ours", pieces, group=None, alone=True)
    with patch.object(shards, "_writer", lambda path: dcp.HuggingFaceStorageWriter(str(path), save_distributed=True)):
        shards.write_pieces(tmp_path / "theirs", pieces, group=None, alone=True)
    (ours,), (theirs,) = (list((tmp_path / name).iterdir()) for name in ("ours", "theirs"))
    assert ours.name == theirs.name
    headers = []
    for path in (ours, theirs):
        with safe_open(path, framework="pt") as file:
            headers.append(({name: file.get_tensor(name) for name in file.keys()}, file.metadata()))  # noqa: SIM118
    assert headers[0][1] == headers[1][1] and headers[0][0].keys() == headers[1][0].keys()
    assert all(torch.equal(tensor, headers[1][0][name]) for name, tensor in headers[0][0].items())


def test_the_disk_is_full(tmp_path, subject, fault):
    needed = size_of(save_now(tmp_path / "elsewhere", 1, *subject, {}))
    with small_disk(tmp_path / "disk", f"{int(1.7 * needed) // 1024 + 40}k"):
        good = save_now(tmp_path / "disk" / "c", 1, *subject, {})
        with pytest.raises(InputError, match=r"No space left on device\); step_000001 is there; make room"):
            save_now(tmp_path / "disk" / "c", 2, *subject, {})
        assert newest_good(tmp_path / "disk" / "c") == (good, [])
        assert [path.name for path in (tmp_path / "disk" / "c").iterdir()] == ["step_000001"], (
            "the half is cleared away"
        )
    fault("disk full (a small tmpfs)", "1", "one clear line, the good checkpoint stays")


def test_the_folder_becomes_read_only(tmp_path, subject, fault):
    with small_disk(tmp_path / "disk", "8m"):
        good = save_now(tmp_path / "disk" / "c", 1, *subject, {})
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk"], check=True)
        with pytest.raises(InputError, match="Read-only file system"):
            save_now(tmp_path / "disk" / "c", 2, *subject, {})
        assert newest_good(tmp_path / "disk" / "c") == (good, [])
    fault("run folder read-only", "1", "one clear line, the good checkpoint stays")


def test_files_may_not_grow(tmp_path, subject, fault):
    """A quota, which needs no root to try."""
    good = save_now(tmp_path, 1, *subject, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(InputError, match=r"File too large\); step_000001 is there"):
            save_now(tmp_path, 2, *subject, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert newest_good(tmp_path) == (good, [])
    fault("file size limit", "1", "one clear line, the good checkpoint stays")


def test_what_a_kill_left_is_cleared_away(tmp_path, subject, fault):
    good = save_now(tmp_path, 1, *subject, {})
    for name in (".step_000002.part", ".step_000003.part"):
        (tmp_path / name / "weights").mkdir(parents=True)
        (tmp_path / name / "weights" / "shard-00007-model-00001-of-00001.safetensors").write_text(
            "from before the kill"
        )
    assert newest_good(tmp_path) == (good, [])
    path = save_now(tmp_path, 2, *subject, {})
    assert verify(path) is None
    discard_after(tmp_path, 2)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step_000001", "step_000002"]
    fault("stale temporary folder", "2", "not mistaken for a checkpoint, cleared away")


# --- on several ranks ---


def worker(rank: int, world: int, port: int, results, folder: Path) -> None:
    everybody = join(rank, world, port)
    for size in (2, 3, 4):
        mesh = dist.DeviceMesh("cpu", list(range(size)))
        if rank >= size:
            continue
        ranks = Ranks(rank, size, mesh, mesh.get_group())
        policy, optimizer = trained(ranks=ranks)
        save_now(folder / f"by_{size}", 2, policy, optimizer, {}, ranks=ranks)
        for number, source in enumerate((folder / "by_1", folder / f"by_{max(2, size - 1)}")):
            for optimizer_class in (torch.optim.AdamW, HostAdamW)[: 2 - number]:
                other, fresh = trained(ranks=ranks, steps=1, seed=5, optimizer_class=optimizer_class)
                restore(source / "step_000002", other, fresh, ranks=ranks)
                for parameter, restored in zip(policy.model.parameters(), other.model.parameters(), strict=True):
                    assert torch.equal(full(parameter), full(restored)), (size, source)
                if optimizer_class is torch.optim.AdamW:
                    for parameter, restored in zip(policy.model.parameters(), other.model.parameters(), strict=True):
                        for key, value in optimizer.state[parameter].items():
                            assert torch.equal(full(value), full(fresh.state[restored][key])), (size, source, key)
    # one rank cannot write: all hear of it, none waits, and the next save works
    policy, optimizer = trained(ranks=everybody)
    for victim, stage in ((2, "write_pieces"), (0, "write_pieces"), (3, "describe"), (0, "finish")):
        writer = Saver(folder / "broken", keep=2, ranks=everybody)
        place = saver if stage == "write_pieces" else saver.checkpoint

        def fails(*_args, **_options):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with (
            patch.object(place, stage, fails)
            if rank == victim and stage != "write_pieces"
            else contextlib.nullcontext()
        ):
            stuck = contextlib.nullcontext()
            if rank == victim and stage == "write_pieces":  # inside DCP, where the others are waiting
                stuck = patch("safetensors.torch.save_file", fails)
            with stuck:
                writer.save(1, policy, optimizer, {"train_tokens": 0})
                with contextlib.suppress(InputError):
                    writer.wait()
                    raise AssertionError("it should have failed")
        assert writer.failures == 1
    save_now(folder / "broken", 2, policy, optimizer, {}, ranks=everybody)
    if rank == 0:
        results["left"] = sorted(path.name for path in (folder / "broken").iterdir())
    leave_ranks()


def test_any_number_of_ranks_writes_what_any_other_reads(tmp_path, fault):
    policy, optimizer = trained()
    save_now(tmp_path / "by_1", 2, policy, optimizer, {})
    expected = tensors(tmp_path / "by_1" / "step_000002")
    assert spawn(worker, 4, tmp_path)["left"] == ["step_000002"]
    for size in (2, 3, 4):
        path = tmp_path / f"by_{size}" / "step_000002"
        assert verify(path) is None and len(list((path / "weights").iterdir())) == size
        held = tensors(path)
        assert held.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in held.items()), size
    fresh, fresh_optimizer = trained(steps=1, seed=5)
    restore(tmp_path / "by_3" / "step_000002", fresh, fresh_optimizer)
    for parameter, restored in zip(policy.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(parameter, restored)
        assert all(
            torch.equal(value, fresh_optimizer.state[restored][key])
            for key, value in optimizer.state[parameter].items()
        )
    fault("one of 4 ranks cannot write", "4", "all ranks hear of it, none hangs, the next save works")


def late(rank: int, world: int, port: int, results, folder: Path) -> None:
    """Rank 1 is too late for the others' collective; the next save is made over new connections."""
    ranks = join(rank, world, port)
    policy, optimizer = trained(ranks=ranks)
    write = saver.write_pieces

    def slow(*args, **options):
        time.sleep(10)
        write(*args, **options)

    with patch.object(saver, "PATIENCE", timedelta(seconds=4)):
        writer = Saver(folder, keep=9, ranks=ranks)
    with patch.object(saver, "write_pieces", slow) if rank == 1 else contextlib.nullcontext():
        writer.save(1, policy, optimizer, {"train_tokens": 0})
        writer._join()
    told = [writer.failure(), writer.failures]
    writer.save(2, policy, optimizer, {"train_tokens": 0})
    writer.wait()
    results[rank] = [*told, writer.failures]
    leave_ranks()


def test_a_collective_that_fails_is_a_failed_save_and_the_next_works(tmp_path, fault):
    for (message, counted), failures, afterwards in spawn(late, 2, tmp_path).values():
        assert message and counted == failures == 1 and afterwards == 0
    assert [path.name for path in checkpoints(tmp_path)] == ["step_000002"] and verify(tmp_path / "step_000002") is None
    fault("one of 2 ranks late for a collective of the save", "1", "counted, told, and the next save works")


# --- a whole run ---


def run(folder: Path, *arguments: str) -> int:
    with patch("siri.report.view.write_report"):
        return cli.main(["train", "demo", *SMALL, *arguments, "--save-every", "1", "--run-dir", str(folder)])


def test_a_phase_whose_save_failed_has_its_name_at_the_next(tmp_path, monkeypatch):
    write, lost = saver.write_pieces, []

    def fails_at_four(folder, *rest, **options):
        if "step_000004" in str(folder):
            lost.append(folder)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(folder, *rest, **options)

    monkeypatch.setattr(saver, "write_pieces", fails_at_four)
    with patch("siri.report.view.write_report"):
        options = ["--cycle", "8", "--steps", "8", "--save-every", "100", "--run-dir", str(tmp_path / "run"), "--quiet"]
        assert cli.main(["train", "demo", *SMALL, *options]) == 0
    assert lost, "the compression ends after four steps"
    named = tmp_path / "run" / "checkpoints" / "siri-low-1"
    assert "step_000005" <= named.resolve().name <= "step_000007" and verify(named) is None


def test_a_run_outlives_two_failed_saves_and_ends_at_the_third(tmp_path, monkeypatch, capsys, fault):
    write, failing = saver.write_pieces, []

    def sometimes(*args, **options):
        if failing and failing.pop(0):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(*args, **options)

    monkeypatch.setattr(saver, "write_pieces", sometimes)
    failing[:] = [True, True]
    assert run(tmp_path / "two", "--steps", "6") == 0
    out = capsys.readouterr().out
    assert 1 <= out.count("warning: a checkpoint could not be saved (No space left on device); trying again") <= 2
    assert newest_good(tmp_path / "two" / "checkpoints")[0].name == "step_000006"

    failing[:] = [False, False] + [True] * 99  # weights and moments of the first save
    assert run(tmp_path / "all", "--steps", "9", "--quiet") == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "step_000001 is there" in captured.err, captured.err
    assert newest_good(tmp_path / "all" / "checkpoints")[0].name == "step_000001"
    failing.clear()
    assert run(tmp_path / "all", "--steps", "9", "--quiet", "--resume") == 0
    fault("every save of a run fails", "2", "2 failures: it goes on; 3 in a row: one clear line, resumable")
