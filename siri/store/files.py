"""Files that last: written whole, on the disk together with the folder that names them, and never through a link.

What writes a run folder goes through here. Storage that is away for a moment (EIO, ESTALE) is asked again; what stays
an OSError is the caller's to tell in one line.
"""

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from siri.errors import InputError

T = TypeVar("T")
TEMPORARY = re.compile(r"\..+\.[0-9a-f]+\.tmp")
"""Names of what `write_atomic` has not finished."""

PAUSES_S = (0.05, 0.5)
"""Waits before storage is asked again."""
ABSENT = (errno.ENOENT, errno.ENOTDIR)
"""There is no such file. Anything else that keeps one from being read says nothing about what is in it."""
CREATE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


def reason(error: OSError) -> str:
    """What the system says of an error, without the path."""
    return error.strerror or type(error).__name__


def patient(function: Callable[[], T]) -> T:
    """What `function` returns; asked again where storage fails. For reading: the last OSError is raised, and one that
    says that there is no such file, or no right to it, at once."""
    for pause in PAUSES_S:
        try:
            return function()
        except OSError as error:
            if error.errno in (*ABSENT, errno.EISDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EINVAL):
                raise
        time.sleep(pause)
    return function()


def read(path: Path) -> bytes:
    """The bytes of a regular file. OSError: there is none, or it cannot be read."""

    def once() -> bytes:
        # not to hang at the end of a pipe that somebody has put there
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "no regular file")
            pieces = []
            while piece := os.read(handle, max(1 << 16, status.st_size)):
                pieces.append(piece)
            return b"".join(pieces)
        finally:
            os.close(handle)

    return patient(once)


def there(path: Path) -> bool:
    """Whether the folder holds such a name, whatever it is. OSError where that cannot be said: os.path.exists would
    take storage that fails for an empty folder."""
    try:
        patient(lambda: os.lstat(path))
    except OSError as error:
        if error.errno in ABSENT:
            return False
        raise
    return True


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, a crash or a power cut sees the old content or the new, never a mixture.
    A link of that name is replaced, not followed; nobody can guess the name that the file bears meanwhile."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    handle = os.open(temporary, CREATE | os.O_EXCL, 0o666)
    try:
        try:
            write_all(handle, data)
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync(path.parent)


def check_target(path: str | Path, option: str) -> None:
    """InputError where no file of that name can be written, said before the work that it is to hold. option: what the
    user calls it, such as --out."""
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise InputError(f"{option} {path}: no such folder; make it first, or give {option} FILE")
    if Path(path).is_dir():
        raise InputError(f"{option} {path}: a folder; give {option} FILE")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{option} {path}: its folder cannot be written; give {option} FILE")


def append(path: Path, data: bytes, *, fsync: bool) -> None:
    """Write `data` at the end of a file that need not be there yet; with `fsync`, wait until it is on the disk."""
    new = not there(path)
    handle = os.open(path, CREATE | os.O_APPEND, 0o666)
    try:
        # one call, if the system takes it whole: a kill leaves a line whole, absent or torn at the end
        write_all(handle, data)
        if fsync:
            os.fsync(handle)
    finally:
        os.close(handle)
    if new and fsync:
        sync(path.parent)


def write_all(handle: int, data: bytes) -> None:
    """Write all of `data`; the system may take it in pieces."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        # some file systems have no fsync of folders: they need none
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not stat.S_ISDIR(os.fstat(handle).st_mode):
            raise
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Make a folder with its parents, each of them on the disk; nothing where it is there."""
    missing = [path]
    while not missing[-1].is_dir():
        missing.append(missing[-1].parent)
    for folder in reversed(missing[:-1]):
        with contextlib.suppress(FileExistsError):  # by another process
            os.mkdir(folder)
        sync(folder.parent)
    if not path.is_dir():
        raise OSError(errno.EEXIST, "a file is in the way")


def free_name(path: Path, word: str) -> Path:
    """The first of NAME.word, NAME.word-2, ... that is free."""
    for number in range(1, 10**6):
        target = path.with_name(f"{path.name}.{word}" + (f"-{number}" if number > 1 else ""))
        if not there(target):
            return target
    raise OSError(errno.EEXIST, f"too many files named {path.name}.{word}")


def aside(path: Path, word: str) -> Path:
    """Give a file or folder the first free name of NAME.word, NAME.word-2, ...; returns the new path."""
    target = free_name(path, word)
    os.rename(path, target)
    sync(path.parent)
    return target
