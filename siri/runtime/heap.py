"""Memory that a process keeps: freed blocks between operators, and objects that live as long as it does.

glibc gives a large block back to the kernel as soon as it is free, and the next operator's block of the same size comes
back page by page, each cleared by the kernel: in a step of a small model that is a good part of the time.
"""

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's numbers of these settings (malloc.h)."""
KEPT = 1 << 29
"""Bytes at the end of the heap that are kept though they are free."""
MAPPED = 1 << 25
"""Bytes from which a block is mapped by itself, and unmapped when it is freed: the most that glibc allows."""


def keep_freed_memory() -> bool:
    """Let glibc keep up to KEPT bytes of freed memory for blocks to come; whether it did: other libraries know no such
    setting, and are left as they are."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all((mallopt(M_MMAP_THRESHOLD, MAPPED), mallopt(M_TRIM_THRESHOLD, KEPT)))


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """What is made inside is no garbage, and is not looked through for any: modules. The collector otherwise goes
    through those of torch and transformers again and again, while they are imported and after. For the beginning of a
    process: what else is alive by then is not looked through any more either."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()
