"""Whose a run folder is: a lock that goes with its process, and a lease for what a lock cannot tell.

`.lock` is held with flock. On some file systems that holds on one machine only, or is not there at all, so the holder
also renews `.lease` every few seconds. A lease of another machine that has not been given back is watched: while it is
renewed its holder is alive, and no clocks are compared.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from siri.errors import InputError, parse_json
from siri.runtime.ranks import Ranks
from siri.store import files
from siri.text import encoded, printable

LOCK, LEASE = ".lock", ".lease"
BEAT_S = 10.0
"""Between two renewals of a lease."""
WATCH_S = 35.0
"""A lease that was not renewed for so long has lost its holder."""
POLL_S = 1.0
SEEN_S = 90.0
"""Longest wait for a file of another machine to be seen."""
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""flock is not there."""


class FolderLock:
    """Exclusive use of a folder, until `release`, the end of this object, or that of its process."""

    def __init__(self, folder: Path) -> None:
        """InputError: another process has it. OSError: its files cannot be written."""
        self.path = folder / LEASE
        self.token = secrets.token_hex(8)
        """What this holder is known by."""
        self.notes: list[str] = []
        handle = _locked(folder)
        try:
            if handle is None:
                self.notes.append(f"{folder}: this file system has no locks; the lease in it alone keeps others out")
            self._await(folder, locked=handle is not None)
            if handle is not None:
                _clear(folder)
            about = {"token": self.token, "host": socket.gethostname(), "machine": _machine(), "pid": os.getpid()}
            files.write_atomic(self.path, _written(about, 0))
            if handle is None:  # of two that come at once, the later one has it
                time.sleep(POLL_S)
                self.check()
        except BaseException:
            if handle is not None:
                os.close(handle)
            raise
        stop = threading.Event()
        beat = threading.Thread(target=_beat, args=(self.path, about, stop), name="lease", daemon=True)
        beat.start()
        self.release = weakref.finalize(self, _release, handle, self.path, self.token, stop, beat)
        """Give the folder back."""

    def check(self) -> None:
        """InputError where another process has taken the folder over, as it may while this one was suspended."""
        try:
            lease = _lease(self.path)
        except OSError:
            return  # what cannot be read says nothing
        if lease is not None and lease.get("token") != self.token:
            raise InputError(f"{self.path.parent}: {_holder(lease)} has taken this run over; stop one of the two")

    def _await(self, folder: Path, *, locked: bool) -> None:
        """Go on where nobody holds the lease; watch it where only its holder could tell."""
        first = _lease(self.path)
        here = first is not None and first.get("machine") == _machine()
        if first is None or (here and (locked or not _alive(first.get("pid")))):
            return
        end = time.monotonic() + WATCH_S
        while time.monotonic() < end:
            time.sleep(POLL_S)
            lease = _lease(self.path)
            if lease is None:
                return
            if lease != first:
                raise InputError(f"{folder}: {_holder(lease)} is training there; wait for it, or stop it")
        self.notes.append(f"{folder}: {_holder(first)} gave no sign of life for {WATCH_S:.0f} s; going on without it")


def _locked(folder: Path) -> int | None:
    """An open `.lock` that nobody else holds; None where the file system has no locks."""
    path = folder / LOCK
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False)):
                    return handle
            os.close(handle)  # its holder has just removed it: it is a lock on nothing
        except BlockingIOError:
            os.close(handle)
            raise InputError(f"{folder}: another process is training there; wait for it, or stop it") from None
        except OSError as error:
            os.close(handle)
            if error.errno in NO_LOCKS:
                return None
            raise


def _clear(folder: Path) -> None:
    """Remove what a kill left half-written of a lease, in a folder that is locked."""
    with contextlib.suppress(OSError):  # the next start may succeed
        for name in os.listdir(folder):
            if name.startswith(f".{LEASE}.") and files.TEMPORARY.fullmatch(name):
                os.unlink(folder / name)


def _beat(path: Path, about: dict[str, Any], stop: threading.Event) -> None:
    """The thread that renews a lease, until another has it."""
    count = 0
    while not stop.wait(BEAT_S):
        count += 1
        with contextlib.suppress(OSError):  # the next one may succeed
            lease = _lease(path)
            if lease is not None and lease.get("token") != about["token"]:
                return
            files.write_atomic(path, _written(about, count))


def _release(handle: int | None, path: Path, token: str, stop: threading.Event, beat: threading.Thread) -> None:
    stop.set()
    if beat is not threading.current_thread():  # which may be the one that collects the garbage
        beat.join(5.0)
    try:
        with contextlib.suppress(OSError):
            lease = _lease(path)
            if lease is not None and lease.get("token") == token:
                os.unlink(path)
    finally:
        if handle is not None:
            os.close(handle)


def _written(about: dict[str, Any], count: int) -> bytes:
    return encoded(json.dumps({**about, "renewed": count}))


def _lease(path: Path) -> dict[str, Any] | None:
    """The lease of a folder; None where there is none, or what is there is none."""
    try:
        lease = parse_json(files.read(path))
    except FileNotFoundError:
        return None
    except ValueError:
        return None
    return lease if isinstance(lease, dict) else None


def token_at(folder: Path) -> str:
    """What the holder of a folder is known by, as this process sees it; "" where it sees none."""
    with contextlib.suppress(OSError):
        return str((_lease(folder / LEASE) or {}).get("token", ""))
    return ""


def check_seen(folder: Path, token: str, ranks: Ranks) -> None:
    """InputError, on every rank, unless all see the folder that the holder writes. Every rank calls it."""
    end = time.monotonic() + SEEN_S
    while (sees := token_at(folder) == token) is False and time.monotonic() < end:
        time.sleep(0.2)  # NFS may show it a moment later
    blind = sorted({host for host in ranks.gather("" if sees else socket.gethostname()) if host})
    if blind:
        raise InputError(
            f"{folder}: not seen on {', '.join(blind)} as rank 0 sees it; every machine writes its part of the "
            "checkpoints there, so put --run-dir on storage that they share"
        )


def _holder(lease: dict[str, Any]) -> str:
    return printable(f"process {lease.get('pid')} on {lease.get('host')}")[:200]


def _machine() -> str:
    """This machine since it was started: where flock excludes others, it does so among its processes."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _alive(pid: Any) -> bool:
    if type(pid) is not int or not 0 < pid < 2**31:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
