"""Whose a run folder is, also where flock is missing or holds on one machine only."""

import errno
import fcntl
import gc
import json
import os
import threading
from unittest.mock import patch

import pytest

from siri.errors import InputError
from siri.runtime.ranks import ALONE
from siri.store import lock
from siri.store.files import write_atomic
from siri.store.lock import LEASE, FolderLock, check_seen, token_at


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in (("WATCH_S", 0.4), ("POLL_S", 0.05), ("BEAT_S", 0.05), ("SEEN_S", 0.1)):
        monkeypatch.setattr(lock, name, seconds)


def lease(folder, **changed) -> None:
    held = {"token": "t", "host": "node7", "machine": "another", "pid": 1, "renewed": 0, **changed}
    write_atomic(folder / LEASE, json.dumps(held).encode())


def test_it_is_given_back(tmp_path):
    holder = FolderLock(tmp_path)
    assert token_at(tmp_path) == holder.token
    with pytest.raises(InputError, match="another process is training there"):
        FolderLock(tmp_path)
    holder.release()
    assert token_at(tmp_path) == ""
    holder = FolderLock(tmp_path)
    del holder
    gc.collect()
    FolderLock(tmp_path).release()


def test_a_lease_that_another_machine_renews_keeps_it_out(tmp_path, monkeypatch):
    monkeypatch.setattr(
        lock, "WATCH_S", 60.0
    )  # the first sign of life ends it; how soon that comes depends on the disk
    lease(tmp_path)
    stop = threading.Event()

    def renew() -> None:
        count = 0
        while not stop.wait(0.03):
            count += 1
            lease(tmp_path, renewed=count)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(InputError, match="process 1 on node7 is training there"):
            FolderLock(tmp_path)
    finally:
        stop.set()
        thread.join()


def test_a_lease_that_nobody_renews_is_taken_over_and_told(tmp_path):
    lease(tmp_path)
    holder = FolderLock(tmp_path)
    assert "process 1 on node7 gave no sign of life" in holder.notes[0] and token_at(tmp_path) == holder.token
    holder.release()


def test_a_lease_of_a_process_that_was_killed_here_costs_no_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "WATCH_S", 600.0)
    lease(tmp_path, machine=lock._machine())
    holder = FolderLock(tmp_path)
    assert holder.notes == []
    holder.release()


def test_what_a_kill_left_of_a_lease_is_cleared_away(tmp_path):
    left, other = tmp_path / f".{LEASE}.0123456789ab.tmp", tmp_path / ".config.json.0123456789ab.tmp"
    left.write_text("{")
    other.write_text("{")  # of the run folder, which clears it
    FolderLock(tmp_path).release()
    assert not left.exists() and other.exists()


def test_a_finalizer_that_is_cut_short_lets_the_lock_go(tmp_path, monkeypatch):
    def interrupted(_path):
        raise KeyboardInterrupt

    holder = FolderLock(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(lock, "_lease", interrupted)
        with pytest.raises(KeyboardInterrupt):
            holder.release()
    FolderLock(tmp_path).release()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_flock_the_lease_alone_keeps_others_out(tmp_path, monkeypatch, number):
    monkeypatch.setattr(
        lock, "WATCH_S", 60.0
    )  # the first sign of life ends it; how soon that comes depends on the disk

    def flock(*_):
        raise OSError(number, os.strerror(number))

    with patch.object(fcntl, "flock", flock):
        holder = FolderLock(tmp_path)
        assert "this file system has no locks" in holder.notes[0]
        with pytest.raises(InputError, match=f"process {os.getpid()} on .* is training there"):
            FolderLock(tmp_path)
        holder.release()
        FolderLock(tmp_path).release()


def test_who_was_suspended_and_lost_it_is_told(tmp_path):
    holder = FolderLock(tmp_path)
    holder.check()
    lease(tmp_path)
    with pytest.raises(InputError, match="process 1 on node7 has taken this run over"):
        holder.check()
    holder.release()
    assert token_at(tmp_path) == "t", "the other's lease stays"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"pid": "x", "host": ["\\u001b[31m"]}'])
def test_a_lease_of_any_shape_is_survived(tmp_path, text):
    (tmp_path / LEASE).write_text(text)
    FolderLock(tmp_path).release()


def test_a_folder_that_is_not_shared_is_found_before_the_first_step(tmp_path):
    holder = FolderLock(tmp_path)
    check_seen(tmp_path, holder.token, ALONE)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(InputError, match=r"not seen on .* put --run-dir on storage that they share"):
        check_seen(tmp_path / "elsewhere", holder.token, ALONE)
    holder.release()
