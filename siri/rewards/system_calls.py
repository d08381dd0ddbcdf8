"""The list of system calls that a grader needs, and the seccomp filter (Linux on x86-64) that ends it at any other.

What it needs once its libraries are loaded is little: memory, time, reading files (for imports that come late), its
connection and its standard error. No process, thread, socket, signal or shared memory is among it, and nothing that
changes a file. Calls that do several things are let through only with the arguments that are meant.
"""

import ctypes
import os
import platform
import struct
import sys

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
"""Flags of open(2) of which a grader may have none."""

ALLOWED = {
    "memory": {"mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "mremap": 25, "madvise": 28},
    "open files": {
        "read": 0,
        "write": 1,
        "close": 3,
        "poll": 7,
        "lseek": 8,
        "pread64": 17,
        "readv": 19,
        "writev": 20,
        "select": 23,
        "dup": 32,
        "fadvise64": 221,
        "pselect6": 270,
        "ppoll": 271,
    },
    "names of files": {
        "stat": 4,
        "fstat": 5,
        "lstat": 6,
        "access": 21,
        "getcwd": 79,
        "readlink": 89,
        "getdents64": 217,
        "newfstatat": 262,
        "readlinkat": 267,
        "faccessat": 269,
        "statx": 332,
        "faccessat2": 439,
    },
    "time": {
        "nanosleep": 35,
        "getitimer": 36,
        "setitimer": 38,
        "gettimeofday": 96,
        "times": 100,
        "time": 201,
        "clock_gettime": 228,
        "clock_getres": 229,
        "clock_nanosleep": 230,
        "restart_syscall": 219,
    },
    "signals it gets": {"rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "sigaltstack": 131},
    "what it is": {
        "getpid": 39,
        "uname": 63,
        "getrlimit": 97,
        "getrusage": 98,
        "sysinfo": 99,
        "getuid": 102,
        "getgid": 104,
        "geteuid": 107,
        "getegid": 108,
        "getppid": 110,
        "gettid": 186,
        "sched_getaffinity": 204,
        "getrandom": 318,
    },
    "its one thread": {"sched_yield": 24, "futex": 202, "set_robust_list": 273, "rseq": 334},
    "its end": {"exit": 60, "exit_group": 231},
}
"""Calls that go through whatever their arguments are, by their number on x86-64."""

_OPEN, _OPENAT, _IOCTL, _FCNTL, _PRLIMIT = 2, 257, 16, 72, 302
NARROWED = {"open": _OPEN, "openat": _OPENAT, "ioctl": _IOCTL, "fcntl": _FCNTL, "prlimit64": _PRLIMIT}
"""Calls that go through with some arguments only."""
# TCGETS and, since glibc 2.42, TCGETS2 (is it a terminal?), FIONCLEX, FIOCLEX, FIONBIO
_IOCTLS = (0x5401, 0x802C542A, 0x5450, 0x5451, 0x5421)
_FCNTLS = (1, 2, 3, 1030)  # F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC: none that sends signals

_ARCH_X86_64 = 0xC000003E
_X32 = 0x40000000
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _EACCES = 0x7FFF0000, 0x80000000, 0x00050000 | 13
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_Instruction = tuple[int, int, int, int]


def no_new_privileges() -> bool:
    """Give up, for good, what a program with other rights would bring: the condition of both cells of the kernel."""
    set_no_new_privileges = 38
    return ctypes.CDLL(None, use_errno=True).prctl(set_no_new_privileges, 1, 0, 0, 0) == 0


def supported() -> bool:
    """Whether the list is that of this machine's system calls."""
    return sys.platform == "linux" and platform.machine() == "x86_64" and struct.calcsize("P") == 8


def install() -> bool:
    """Let this process, with all its threads, make no other calls from here on; False where there is no such filter."""
    if not supported() or not no_new_privileges():  # without which only root may have a filter
        return False
    program = compiled()
    buffer = ctypes.create_string_buffer(program)
    filter_program = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    seccomp, set_filter, all_threads = 317, 1, 1
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.syscall(seccomp, ctypes.c_uint(set_filter), ctypes.c_uint(all_threads), ctypes.c_char_p(filter_program))
    return done == 0


def compiled() -> bytes:
    """The filter in the kernel's BPF."""
    allow, kill = (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _KILL)
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, _ARCH_X86_64),
        kill,
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_AT_LEAST, 0, 1, _X32),  # the x32 twins of all calls
        kill,
    ]
    for number in (number for group in ALLOWED.values() for number in group.values()):
        code += [(_JUMP_EQUAL, 0, 1, number), allow]
    for number, place in ((_OPEN, 1), (_OPENAT, 2)):
        # refused, not ended: a library may try a cache, and does without
        code += _block(number, [_argument(place), (_JUMP_ANY_BIT, 0, 1, WRITING), (_RETURN, 0, 0, _EACCES), allow])
    for number, commands in ((_IOCTL, _IOCTLS), (_FCNTL, _FCNTLS)):
        tests = [step for command in commands for step in ((_JUMP_EQUAL, 0, 1, command), allow)]
        code += _block(number, [_argument(1), *tests, kill])
    nothing = [(_JUMP_EQUAL, 1, 0, 0), kill]  # reading limits, of this process: no pid, no new limit (a pointer)
    code += _block(
        _PRLIMIT,
        [_argument(0), *nothing, _argument(2), *nothing, _argument(2, high=True), *nothing, allow],
    )
    return b"".join(struct.pack("HBBI", *instruction) for instruction in [*code, kill])


def _block(number: int, steps: list[_Instruction]) -> list[_Instruction]:
    """Steps, each way through which ends in a return, for one call."""
    return [(_JUMP_EQUAL, 0, len(steps), number), *steps]


def _argument(place: int, *, high: bool = False) -> _Instruction:
    """Load the lower half of an argument (all of it, for the kernel, where it is an int), or the higher."""
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * place + 4 * high)
