"""torch.cuda for tensors without data: loads the shim that `test_fake_cuda` has built, and stands in for streams,
events and properties. To be imported before torch."""

import contextlib
import ctypes
import os
from types import SimpleNamespace

ctypes.CDLL(os.environ["SIRI_FAKE_CUDA"])

import torch  # noqa: E402  (after the shim)

H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", total_memory=80 * 10**9, multi_processor_count=132, major=9, minor=0, warp_size=32,
    regs_per_multiprocessor=65536, shared_memory_per_block_optin=232448, L2_cache_size=50 * 2**20,
)  # fmt: skip


class Stream:
    """Everything happens at once."""

    device = torch.device("cuda", 0)
    stream_id = device_index = cuda_stream = priority = 0
    device_type = 1

    def __init__(self, *_, **__):
        pass

    def wait_event(self, *_):
        pass

    wait_stream = synchronize = wait_event

    def record_event(self, event=None):
        return event or Event()

    def query(self):
        return True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Event:
    def __init__(self, *_, **__):
        pass

    def record(self, *_):
        pass

    wait = synchronize = record

    def query(self):
        return True

    def elapsed_time(self, _):
        return 1.0


def install() -> None:
    """Put the stand-ins into torch.cuda."""
    cuda, only = torch.cuda, Stream()
    for name, value in {
        "Stream": Stream, "Event": Event, "current_stream": lambda *_: only, "default_stream": lambda *_: only,
        "stream": lambda *_: contextlib.nullcontext(), "device": lambda *_: contextlib.nullcontext(),
        "current_device": lambda: 0, "set_device": lambda *_: None, "device_count": lambda: 8,
        "is_initialized": lambda: True, "is_available": lambda: True, "synchronize": lambda *_: None,
        "get_device_properties": lambda *_: H100, "get_device_capability": lambda *_: (9, 0),
        "get_device_name": lambda *_: H100.name, "_lazy_init": lambda: None, "empty_cache": lambda: None,
        "max_memory_allocated": lambda *_: 0, "reset_peak_memory_stats": lambda *_: None,
        "mem_get_info": lambda *_: (80 * 10**9, 80 * 10**9), "memory_reserved": lambda *_: 0,
        "is_bf16_supported": lambda *_, **__: True,
    }.items():  # fmt: skip
        setattr(cuda, name, value)


def unpinned(optimizer: type) -> type:
    """An optimizer whose memory on the host is not pinned, which takes a driver."""

    class Unpinned(optimizer):
        def step(self, closure=None):
            empty = torch.empty
            torch.empty = lambda *shape, pin_memory=False, **options: empty(*shape, **options)
            try:
                super().step(closure)
            finally:
                torch.empty = empty

    return Unpinned
