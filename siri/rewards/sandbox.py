"""A grader's cell: what a process that reads a model's answers can no longer do.

| layer | where | what it takes away |
|---|---|---|
| limits | POSIX | memory, processor time, processes, files beyond a few, every byte written to a file |
| landlock | Linux from 5.13 | every file but those of Python and its libraries, which it may read; TCP, from 6.7 on |
| user | Linux, started as root | root's powers: a user and a group that nobody else has |
| seccomp | Linux on x86-64 | every system call that is not on a list (`system_calls`): the kernel ends the process |
| audit | everywhere | compiling or evaluating text, and the above once more, seen from inside Python |

None of them can be taken off again. Each is left out where the platform has it not, which `shut_in` says.
"""

import contextlib
import ctypes
import os
import struct
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from siri.rewards import system_calls

LAYERS = ("limits", "landlock", "user", "seccomp", "audit")
MOST_FILES = 64
"""Files that a grader has open at once, its imports among them."""

_FORBIDDEN = (
    *("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "os.kill", "pty."),
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown"),
    *("os.utime", "os.setxattr", "os.removexattr", "os.chflags", "os.startfile", "os.putenv", "shutil.", "tempfile."),
    *("ctypes.", "code.__new__", "signal.pthread_kill", "urllib.", "http.", "ftplib.", "smtplib.", "poplib."),
    *("imaplib.", "winreg.", "msvcrt.", "webbrowser.", "sys.settrace", "sys.setprofile", "pickle.", "builtins.input"),
)
# sympy builds its polynomial arithmetic from templates of its own, with nothing but numbered names in them
_SYMPY_TEMPLATE = b"def monomial_"

_CAP_KILL, _CAP_SETGID, _CAP_SETUID, _CAP_DAC_READ_SEARCH = 5, 6, 7, 2
_FIRST_USER = 1_900_000_000
"""Users of graders are this plus the process id, far from what is given to people and containers."""
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
"""System calls, by the same number on every processor."""


def limit_memory(limit: int) -> bool:
    """Cap the address space of this process at `limit` bytes, for good, and write no core files; whether the platform
    has such a cap."""
    return _limit("AS", limit) and _limit("CORE", 0)


def shut_in(cpu_seconds: int) -> list[str]:
    """Close the cell around this process, which may compute for `cpu_seconds` in all; returns the names of the layers
    that hold, among `LAYERS`. Nothing may run in it that has not been imported, or can be read on `sys.path`."""
    sys.dont_write_bytecode = True
    held = {"limits": _limit_all(cpu_seconds), "landlock": _restrict_files()}
    held["user"] = _become_nobody(may_read_all=held["landlock"])
    held["seccomp"] = system_calls.install()
    sys.addaudithook(_refuse)
    held["audit"] = True
    return [layer for layer in LAYERS if held[layer]]


# --- audit: from inside Python ---


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "compile":
        source = arguments[0]
        if isinstance(source, str):
            source = source.encode(errors="replace")
        if source is not None and not source.startswith(_SYMPY_TEMPLATE) and not _importing():
            raise PermissionError("a grader may not compile text")
    elif event == "open":
        if isinstance(arguments[2], int) and arguments[2] & system_calls.WRITING:
            raise PermissionError(f"a grader may not write to {str(arguments[0])[:100]!r}")
    elif event.startswith(_FORBIDDEN):
        raise PermissionError(f"a grader may not do {event}")


def _importing() -> bool:
    """Whether an import statement is at work: modules of libraries compile what is in their own files."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


# --- limits of the kernel ---


def _limit_all(cpu_seconds: int) -> bool:
    most = {"CPU": cpu_seconds, "NPROC": 0, "NOFILE": MOST_FILES, "FSIZE": 0, "MEMLOCK": 0, "MSGQUEUE": 0, "CORE": 0}
    held = {name: _limit(name, value) for name, value in most.items()}
    return all(held[name] for name in ("CPU", "NPROC", "NOFILE", "FSIZE"))


def _limit(name: str, limit: int) -> bool:
    """Lower both limits of a resource; False where there is no such limit."""
    try:
        import resource
    except ImportError:
        return False
    number = getattr(resource, f"RLIMIT_{name}", None)
    if number is None:
        return False
    _, hard = resource.getrlimit(number)
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(number, (limit, limit))
        return True
    return False


# --- landlock: files ---


def _restrict_files() -> bool:
    """Leave nothing of the file system but reading what `_readable` names; no TCP, no socket and no signal out of the
    cell where the kernel's Landlock is new enough for that. False where there is none."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    if version < 1:
        return False
    # what each version of the interface has learnt to refuse: 1 to 12, moves (2), truncation (3), devices' ioctl (5)
    files = (1 << 13) - 1 | (version >= 2) << 13 | (version >= 3) << 14 | (version >= 5) << 15
    fields = [files]
    if version >= 4:
        fields.append(0b11)  # TCP: bind, connect
    if version >= 6:
        fields.append(0b11)  # abstract sockets, signals
    attributes = struct.pack(f"{len(fields)}Q", *fields)
    rules = libc.syscall(
        _LANDLOCK_CREATE, ctypes.c_char_p(attributes), ctypes.c_size_t(len(attributes)), ctypes.c_uint(0)
    )
    if rules < 0:
        return False
    try:
        read_file, read_folder = 1 << 2, 1 << 3
        for path in _readable():
            with contextlib.suppress(OSError):
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
                allowed = read_file | (read_folder if path.is_dir() else 0)
                rule = ctypes.c_char_p(struct.pack("=Qi", allowed, place))
                added = libc.syscall(_LANDLOCK_ADD, rules, ctypes.c_int(1), rule, ctypes.c_uint(0))
                os.close(place)
                if added:
                    return False
        return system_calls.no_new_privileges() and libc.syscall(_LANDLOCK_RESTRICT, rules, ctypes.c_uint(0)) == 0
    finally:
        os.close(rules)


def _readable() -> Iterator[Path]:
    """Python, its libraries, and this package: what an import may still have to read."""
    package = Path(__file__).resolve().parents[1]
    yield package
    for entry in sys.path:  # the folder that holds this package may be a checkout, with whatever else lies there
        if os.path.isabs(entry) and Path(entry).resolve() != package.parent:
            yield Path(entry)
    yield from (Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    yield from (Path(name) for name in libraries if os.path.isabs(name))
    yield Path(sys.base_prefix, "lib")
    yield from map(
        Path, ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/dev/null")
    )


# --- user: root's powers ---


def _become_nobody(may_read_all: bool) -> bool:
    """Where this is root, become a user and group that nobody else has, without capabilities. Python may lie where only
    root can read (/root): then reading is kept, if `may_read_all`, which Landlock has narrowed to what imports need.
    False where this is not root, or not one that may."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    powers = _capabilities()
    if not all(powers >> need & 1 for need in (_CAP_KILL, _CAP_SETGID, _CAP_SETUID)):
        return False  # nor could the trainer, which has the same, end a process of somebody else's
    number = _FIRST_USER + os.getpid()
    kept = 0
    try:
        if not _can_read_as(number):
            if not may_read_all or not powers >> _CAP_DAC_READ_SEARCH & 1:
                return False
            keep_capabilities = 8
            ctypes.CDLL(None).prctl(keep_capabilities, 1, 0, 0, 0)
            kept = 1 << _CAP_DAC_READ_SEARCH
        os.setgroups([])
        os.setresgid(number, number, number)
        os.setresuid(number, number, number)
    except OSError:  # a user name space that does not know such a number
        return False
    return _keep_only(kept) and _capabilities() == kept


def _can_read_as(number: int) -> bool:
    """Whether a user without powers can look into all folders of `sys.path`."""
    folders = [entry for entry in sys.path if os.path.isdir(entry)]
    os.setegid(number)
    os.seteuid(number)
    try:
        return all(os.access(folder, os.R_OK | os.X_OK, effective_ids=True) for folder in folders)
    finally:
        os.seteuid(0)
        os.setegid(0)


_CAPABILITIES = struct.pack("Ii", 0x20080522, 0)
"""Version 3 of the interface; this process."""


def _capabilities() -> int:
    """The effective capabilities of this process, as bits."""
    sets = ctypes.create_string_buffer(24)
    ctypes.CDLL(None).capget(ctypes.c_char_p(_CAPABILITIES), sets)
    low, _, _, high, _, _ = struct.unpack("6I", sets)
    return low | high << 32


def _keep_only(kept: int) -> bool:
    sets = struct.pack("6I", kept, kept, 0, 0, 0, 0)  # effective, permitted, inheritable; the higher halves
    return ctypes.CDLL(None).capset(ctypes.c_char_p(_CAPABILITIES), ctypes.c_char_p(sets)) == 0
