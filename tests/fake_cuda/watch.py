"""What a pass on fake CUDA tensors must not do, and how many bytes are alive at its worst moment."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

BLOCK = 512
"""torch's allocator gives memory in multiples of so many bytes."""
COLLECTIVES = ("c10d", "_c10d_functional", "fsdp")
COPIES = ("_to_copy", "copy_", "to.", "empty", "new_", "_unsafe_view", "detach")
READS = ("_local_scalar_dense", "item", "nonzero", "is_nonzero")
DEVICE = torch.ops.prim.device.default
"""More than half of all calls: autograd, FSDP2 and DTensor ask each tensor where it is."""


class Fault(Exception):
    """What a GPU would wait for, or could not do."""


class Watch(TorchDispatchMode):
    """Follows storages on the GPU by their size, FSDP2's resizing included, through the named parts of an update; it
    stands in for the trainer's stopwatch. Between the first forward and the optimizer the host may read nothing."""

    def __init__(self, fake: Any) -> None:
        super().__init__()
        self.fake = fake
        self.alive: dict[int, int] = {}
        self.made: dict[int, tuple] = {}
        self.now = self.peak = 0
        self.parts: list[str] = []
        self.peaks: dict[str, int] = {}
        self.collectives: dict[str, int] = {}
        self.calls: dict[str, int] = {}
        """How many operators ran in each part."""
        self.at_peak: dict[str, list[tuple]] = {}
        self.detail = False

    # --- the stopwatch ---

    @contextmanager
    def __call__(self, name: str):
        self.parts.append(name)
        self._mark()
        yield
        self.parts.pop()

    @property
    def guarded(self) -> bool:
        return any(part in ("old_logp", "forward", "head", "backward") for part in self.parts)

    # --- bytes ---

    def reset(self) -> None:
        self.peak, self.peaks, self.collectives, self.at_peak, self.calls = 0, {}, {}, {}, {}
        self._mark()

    def add(self, tensor: Any, operator: str = "") -> None:
        if isinstance(tensor, DTensor):
            tensor = tensor._local_tensor
        if _kind(tensor) != "cuda":
            return
        if getattr(tensor, "fake_mode", self.fake) is not self.fake:
            return  # DTensor's own inference of shapes
        storage = tensor.untyped_storage()
        key = id(storage)
        if key not in self.alive:
            self.alive[key] = size = _rounded(storage)
            self.made[key] = (operator, tuple(tensor.shape), str(tensor.dtype))
            self.now += size
            weakref.finalize(storage, self._gone, key)
            self._mark()

    def _gone(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)
        self.made.pop(key, None)

    def _mark(self) -> None:
        part = self.parts[-1] if self.parts else "between"
        self.peak = max(self.peak, self.now)
        if self.now > self.peaks.get(part, 0):
            self.peaks[part] = self.now
            if self.detail:
                sizes = sorted(((size, *self.made[key]) for key, size in self.alive.items()), reverse=True)
                self.at_peak[part] = sizes[:30]

    def __enter__(self):
        self._resize = resize = torch.UntypedStorage.resize_
        watch = self

        def resize_(storage, size):
            out = resize(storage, size)
            key = id(storage)
            if key in watch.alive:
                new = _rounded(storage)
                watch.now += new - watch.alive[key]
                watch.alive[key] = new
                watch._mark()
            return out

        torch.UntypedStorage.resize_ = resize_
        return super().__enter__()

    def __exit__(self, *exception):
        torch.UntypedStorage.resize_ = self._resize
        return super().__exit__(*exception)

    # --- operators ---

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is DEVICE and type(args[0]) is FakeTensor and not args[0].fake_mode.in_kernel_invocation:
            return args[0].fake_device  # as the mode below would answer
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented
        kwargs = kwargs or {}
        about = _about(function)
        tensors = [*_tensors(args), *_tensors(kwargs)]
        if about.reads:
            if self.guarded and any(_kind(tensor) == "cuda" for tensor in tensors):
                raise Fault(f"the host reads a tensor's data in the {self.parts[-1]}: {about.name}")
            if about.scalar:
                return 1.0
        self._places(about, tensors)
        part = self.parts[-1] if self.parts else "between"
        self.calls[part] = self.calls.get(part, 0) + 1
        out = function(*args, **kwargs)
        for leaf in _tensors((out,)):
            self.add(leaf, about.name)
        return out

    def _places(self, about: "Operator", tensors: list[torch.Tensor]) -> None:
        guarded = self.guarded
        if about.collective:
            self.collectives[about.short] = self.collectives.get(about.short, 0) + 1
            if any(_kind(tensor) == "cpu" for tensor in tensors if tensor.dim() or guarded):
                raise Fault(f"a CPU tensor in a collective: {about.name}")
        if not guarded or about.copies:
            return
        kinds = {(_kind(tensor), tensor.dim() > 0) for tensor in tensors}
        if ("cpu", True) in kinds and (("cuda", True) in kinds or ("cuda", False) in kinds):
            raise Fault(f"a CPU tensor among those of the GPU in the {self.parts[-1]}: {about.name}")


class Operator(NamedTuple):
    """What is to be known of an operator, by its name."""

    name: str
    short: str
    reads: bool
    scalar: bool
    """It reads one number."""
    collective: bool
    copies: bool


@cache
def _about(function: Any) -> Operator:
    name = str(function)
    short = name.split("::")[-1].removeprefix("aten.")
    reads = short.startswith(READS)
    scalar = "scalar" in short or short.startswith("item")
    return Operator(name, short, reads, scalar, name.split(".")[0] in COLLECTIVES, short.startswith(COPIES))


def _kind(tensor: torch.Tensor) -> str:
    return (tensor.fake_device if type(tensor) is FakeTensor else tensor.device).type


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    """The tensors among the arguments of an operator: by themselves, or in lists."""
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple, dict)):
            yield from _tensors(value)


def _rounded(storage: Any) -> int:
    return -(-storage.nbytes() // BLOCK) * BLOCK
