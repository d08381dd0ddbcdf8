"""Which binary every launch of a Triton kernel would take on a GPU, without one: Triton's own binder is asked, and
nothing is computed. For processes in which Triton is not interpreted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from triton.runtime import jit

TARGET = GPUTarget("cuda", 90, 32)
BACKEND = make_backend(TARGET)
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


@dataclass(frozen=True)
class Launch:
    """What chooses a binary."""

    kernel: str
    constants: tuple[tuple[str, Any], ...]
    """constexpr arguments and launch options"""
    specialization: tuple[tuple[str, Any], ...]
    """of every other argument: its name, type and what is known of its value"""
    function: Any = field(compare=False, default=None)

    def compile(self) -> Any:
        """What the launch would compile for sm_90."""
        names = self.function.arg_names
        others = dict(self.specialization)
        constants = {name: value for name, value in self.constants if name in names}
        constants |= {name: value for name, (kind, value) in others.items() if kind == "constexpr"}
        signature = {name: "constexpr" if name in constants else others[name][0] for name in names}
        attributes = {
            (names.index(name),): BACKEND.parse_attr(known)
            for name, (kind, known) in others.items()
            if kind != "constexpr" and isinstance(known, str)
        }
        source = ASTSource(
            fn=self.function,
            signature=signature,
            constexprs={(names.index(name),): value for name, value in constants.items()},
            attrs=attributes,
        )
        options = {name: value for name, value in self.constants if name in OPTIONS}
        return triton.compile(source, target=TARGET, options=options)


def launch_of(kernel: Any, arguments: tuple, options: dict) -> Launch:
    binder = jit.create_function_from_signature(kernel.signature, kernel.params, BACKEND)
    _, specialization, rest = binder(*arguments, **options)
    constants, others = [], []
    for parameter, key in zip(kernel.params, specialization, strict=True):
        if parameter.is_constexpr:
            constants.append((parameter.name, key[1]))
        else:
            others.append((parameter.name, tuple(key)))
    return Launch(kernel.fn.__name__, (*constants, *sorted(rest.items())), tuple(others), kernel)


class Launches:
    """Within it kernels are not run but noted, in order; what they would write stays as it is."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch
        self.seen: list[Launch] = []

    def __enter__(self) -> Launches:
        def run(kernel, *arguments, grid, warmup, **options):
            self.seen.append(launch_of(kernel, arguments, options))

        self.context = self.monkeypatch.context()
        self.context.__enter__().setattr(jit.JITFunction, "run", run)
        return self

    def __exit__(self, *error) -> None:
        self.context.__exit__(*error)
