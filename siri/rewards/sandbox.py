"""A grader's cell: what a process that reads a model's answers can no longer do.

Three layers, each where the platform has it. Limits of the kernel on memory and core files (POSIX). A seccomp filter
(Linux on x86-64): no socket, no program or process started, none signalled or traced, no file created, changed or
removed. An audit hook (everywhere Python runs): the same seen from inside, and no text is compiled or evaluated, so
that no parser can be talked into running an answer. None of them can be taken off again.
"""

import contextlib
import ctypes
import os
import platform
import struct
import sys
from typing import Any

_FORBIDDEN = (
    *("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "os.kill", "pty."),
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown"),
    *("os.utime", "os.setxattr", "os.removexattr", "os.chflags", "os.startfile", "os.putenv", "shutil.", "tempfile."),
    *(
        "ctypes.",
        "code.__new__",
        "signal.pthread_kill",
        "urllib.",
        "http.",
        "ftplib.",
        "smtplib.",
        "poplib.",
        "imaplib.",
    ),
    *("winreg.", "msvcrt.", "webbrowser.", "sys.settrace", "sys.setprofile", "pickle.", "builtins.input"),
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# sympy builds its polynomial arithmetic from templates of its own, with nothing but numbered names in them
_SYMPY_TEMPLATE = b"def monomial_"

_ARCH_X86_64 = 0xC000003E
_DENIED_X86_64 = (
    *(41, 42, 49, 50, 53),  # socket, connect, bind, listen, socketpair
    *(57, 58, 59, 322, 62, 200, 234, 424, 434),  # fork, vfork, execve(at), kill, tkill, tgkill, pidfd_*
    *(129, 297),  # rt_sigqueueinfo, rt_tgsigqueueinfo: signals, too
    *(
        101,
        310,
        311,
        272,
        308,
        161,
        321,
        425,
        319,
    ),  # ptrace, process_vm_*, unshare, setns, chroot, bpf, io_uring, memfd
    *(85, 87, 263, 82, 264, 316, 83, 258, 84, 86, 265, 88, 266),  # creat, unlink, rename, mkdir, rmdir, (sym)link
    *(90, 91, 268, 452, 92, 93, 94, 260, 76, 77, 133, 259),  # chmod, chown, truncate, mknod
    *(132, 235, 261, 280, 188, 189, 190, 165, 166, 437),  # utime, setxattr, mount, openat2 (its flags cannot be seen)
)
_OPEN, _OPENAT, _CLONE, _CLONE3 = 2, 257, 56, 435
_CLONE_THREAD = 0x10000
_EPERM, _ENOSYS = 1, 38


def limit_memory(limit: int) -> bool:
    """Cap the address space of this process at `limit` bytes, for good; whether the platform has such a cap."""
    try:
        import resource
    except ImportError:
        return False
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        return True
    return False


def shut_in() -> list[str]:
    """Close the cell around this process; returns the names of the layers that hold: "seccomp", "audit"."""
    sys.dont_write_bytecode = True
    layers = ["seccomp"] if _filter_system_calls() else []
    sys.addaudithook(_refuse)
    return [*layers, "audit"]


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "compile":
        source = arguments[0]
        if isinstance(source, str):
            source = source.encode(errors="replace")
        if source is not None and not source.startswith(_SYMPY_TEMPLATE) and not _importing():
            raise PermissionError("a grader may not compile text")
    elif event == "open":
        if isinstance(arguments[2], int) and arguments[2] & _WRITING:
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


def _filter_system_calls() -> bool:
    """Install the seccomp filter; False where there is none."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or struct.calcsize("P") != 8:
        return False
    program = _program()
    buffer = ctypes.create_string_buffer(program)
    filter_program = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, mode_filter = 38, 22, 2
    return (
        libc.prctl(no_new_privileges, 1, 0, 0, 0) == 0
        and libc.prctl(set_seccomp, mode_filter, ctypes.c_char_p(filter_program), 0, 0) == 0
    )


def _program() -> bytes:
    """The filter in the kernel's BPF: refuse (EPERM) what is on the list, opening to write, and new processes."""
    load, jump_equal, jump_at_least, jump_any_bit, give_back = 0x20, 0x15, 0x35, 0x45, 0x06
    number, architecture, second_argument, third_argument, first_argument = 0, 4, 24, 32, 16
    allow, errno = 0x7FFF0000, 0x00050000
    refuse = [(give_back, 0, 0, errno | _EPERM)]
    permit = [(give_back, 0, 0, allow)]
    code = [
        (load, 0, 0, architecture),
        (jump_equal, 1, 0, _ARCH_X86_64),
        *refuse,
        (load, 0, 0, number),
        (jump_at_least, 0, 1, 0x40000000),  # the x32 twins of all calls
        *refuse,
    ]
    for call in _DENIED_X86_64:
        code += [(jump_equal, 0, 1, call), *refuse]
    # glibc then falls back to clone, whose flags a filter can see; the timer of the worker is a thread
    code += [(jump_equal, 0, 1, _CLONE3), (give_back, 0, 0, errno | _ENOSYS)]
    for call, flags, bits, others in (
        (_OPEN, second_argument, _WRITING, (permit, refuse)),
        (_OPENAT, third_argument, _WRITING, (permit, refuse)),
        (_CLONE, first_argument, _CLONE_THREAD, (refuse, permit)),
    ):
        without, with_bits = others
        code += [(jump_equal, 0, 4, call), (load, 0, 0, flags), (jump_any_bit, 1, 0, bits), *without, *with_bits]
    code += permit
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)
