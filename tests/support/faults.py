"""System calls that fail: the n-th of those that touch a folder, once, or with the process's death right there.

Inside `faults` the functions of `os`, `fcntl` and `io` by which files are written and read count the calls whose path,
or whose handle's path, lies in the folder. Death is an exception that nothing may handle, after which no call in the
folder succeeds: what is on the disk then is what a kill would have left. Threads count together.
"""

import builtins
import contextlib
import errno
import fcntl
import io
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

NAMES = ("open", "write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "symlink", "listdir", "scandir")
KINDS = ("EIO", "ENOSPC", "ESTALE", "short", "kill")
"""What may become of a call: an error of that name, half of what was to be written and then no room, or death."""


class Killed(BaseException):
    """The process is dead."""


@dataclass
class Faults:
    """Which call fails, and what was called."""

    folder: str
    at: int = -1
    """The number of the call that fails, from 0; -1 = none."""
    kind: str = "EIO"
    calls: list[str] = field(default_factory=list)
    dead: bool = False
    before: Any = None
    """Called with each call before it is made, outside of the lock."""
    lock: Any = field(default_factory=threading.RLock)

    def touch(self, name: str, path: Any) -> str:
        """Count a call; what is to become of it: "" or "short". Raises the error, or Killed."""
        if self.before is not None and self.concerns(path):
            self.before(f"{name} {path_of(path)}")
        with self.lock:
            if not self.concerns(path):
                return ""
            if self.dead:
                raise Killed
            self.calls.append(f"{name} {path_of(path)}")
            if len(self.calls) - 1 != self.at:
                return ""
            if self.kind == "kill":
                self.dead = True
                raise Killed
            if self.kind == "short" and name == "write":
                return "short"
            number = getattr(errno, "ENOSPC" if self.kind == "short" else self.kind)
            raise OSError(number, os.strerror(number), str(path_of(path)))

    def concerns(self, path: Any) -> bool:
        name = path_of(path)
        return name == self.folder or name.startswith(self.folder + os.sep)


def path_of(path: Any) -> str:
    """The absolute path of a path or of an open handle."""
    if isinstance(path, int):
        try:
            return os.readlink(f"/proc/self/fd/{path}").removesuffix(" (deleted)")
        except OSError:
            return ""
    return os.path.abspath(os.fsdecode(path))


class Stream:
    """A file of `open`, whose writes count."""

    def __init__(self, file: Any, plan: Faults) -> None:
        self._file, self._plan = file, plan

    def write(self, data: Any) -> int:
        if self._plan.touch("write", self._file.fileno()) == "short":
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()


@contextlib.contextmanager
def faults(folder: Path, at: int = -1, kind: str = "EIO") -> Iterator[Faults]:
    """Let the call number `at` in `folder` fail in the block."""
    plan = Faults(os.path.abspath(folder), at, kind)
    real = {name: getattr(os, name) for name in NAMES}
    opened, locked = io.open, fcntl.flock

    def called(name: str) -> Any:
        def call(path: Any = ".", *rest: Any, **options: Any) -> Any:
            if isinstance(path, (str, bytes, os.PathLike, int)) and "dir_fd" not in options:
                where = rest[0] if name == "symlink" else path  # the link, not what it names
                if plan.touch(name, where) == "short":
                    data = bytes(rest[0])
                    real["write"](path, data[: len(data) // 2])
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if name == "fsync" and isinstance(path, int) and plan.concerns(path):
                return None  # no power is lost here, and a busy disk takes its time
            return real[name](path, *rest, **options)

        return call

    def open_file(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if isinstance(file, int) or not plan.concerns(file):
            return opened(file, mode, *rest, **options)
        plan.touch("open", file)
        stream = opened(file, mode, *rest, **options)
        return Stream(stream, plan) if set(mode) & set("wax+") else stream

    def flock(handle: Any, operation: int) -> None:
        plan.touch("flock", handle if isinstance(handle, int) else handle.fileno())
        locked(handle, operation)

    def quiet(unraised: Any) -> None:
        if not isinstance(unraised.exc_value, Killed):
            hook(unraised)

    hook = threading.excepthook
    with contextlib.ExitStack() as stack:
        for name in NAMES:
            stack.enter_context(patch.object(os, name, called(name)))
        stack.enter_context(patch.object(io, "open", open_file))
        stack.enter_context(patch.object(builtins, "open", open_file))
        stack.enter_context(patch.object(fcntl, "flock", flock))
        stack.enter_context(patch.object(threading, "excepthook", quiet))
        yield plan
