"""`python -m siri_kernels.inspect [--arch 90 ...] [--only TEXT]`: compiles every Triton kernel ahead of time, without a
GPU, and prints what the compiler says.

Registers and stack come from `cuobjdump -res-usage`, spills (LDL / STL), barriers and the number of 16-byte global
loads and stores from the SASS.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from siri_kernels.triton_rows import DLOGITS_BLOCK, STATS_BLOCK, WARPS, dlogits_kernel, row_stats_kernel
from siri_kernels.triton_tokens import token_kernel

ARCHS = (80, 90, 100)
TOOLS = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")


@dataclass(frozen=True)
class Variant:
    """One specialisation of a kernel, as a launch on contiguous tensors makes it."""

    name: str
    kernel: object
    types: dict[str, str]
    constants: dict[str, object]
    warps: int
    streams: bool
    """moves whole rows of logits: its loads and stores have to be 16 bytes wide"""


def variants() -> Iterator[Variant]:
    pointers = dict.fromkeys(("SCALE", "OUT", "MAXIMUM", "LOG_SUM", "LOGP", "ENTROPY", "G", "H"), "*fp32")
    sizes = {"out_stride": "i32", "stride": "i32", "d_stride": "i32", "V": "i32", "vocab_start": "i32"}
    common = {**pointers, **sizes, "TARGET": "*i64", "scale": "fp32", "softcap": "fp32"}
    for dtype, out in (("fp32", "fp32"), ("fp32", "bf16"), ("bf16", "bf16"), ("fp16", "fp16")):
        for per_row, softcap in ((False, False), (True, True)):
            flags = {"PER_ROW": per_row, "SOFTCAP": softcap}
            suffix = " softcap T[N]" if softcap else ""
            types = {**common, "Z": f"*{dtype}", "DZ": f"*{out}"}
            if out == dtype:
                yield Variant(
                    f"row_stats {dtype}{suffix}", row_stats_kernel, types, {**flags, "BLOCK": STATS_BLOCK}, WARPS, True
                )
            for entropy in (False, True):
                name = f"dlogits {dtype}->{out}{suffix}{' entropy' if entropy else ''}"
                yield Variant(
                    name, dlogits_kernel, types, {**flags, "WITH_H": entropy, "BLOCK": DLOGITS_BLOCK}, WARPS, True
                )
    tensors = ("STATS", "ADV", "WEIGHT", "OLD", "ROLLOUT", "LOGP", "ENTROPY", "OUT", "PARTIALS")
    numbers = ("low", "high", "dual", "importance_low", "importance_cap", "entropy_coef")
    types = {
        **dict.fromkeys(tensors, "*fp32"),
        **dict.fromkeys(numbers, "fp32"),
        **dict.fromkeys(("stats_stride", "out_stride", "n", "first_row", "first_block"), "i32"),
        "ROWS": "*i64",
        "COUNTED": "*u8",
    }
    for loss, importance, everything in ((0, 0, False), (0, 1, True), (0, 2, True), (1, 0, False), (1, 2, True)):
        flags = {
            "INDEXED": everything,
            "HAS_OLD": everything,
            "HAS_ROLLOUT": everything,
            "DUAL": everything and not loss,
        }
        constants = {**flags, "LOSS": loss, "IMPORTANCE": importance, "BLOCK": 128}
        name = f"tokens {('grpo', 'cispo')[loss]} {('none', 'tis', 'icepop')[importance]}"
        yield Variant(name, token_kernel, types, constants, 4, False)


@dataclass(frozen=True)
class Report:
    registers: int
    stack: int
    spills: int
    shared: int
    wide_loads: int
    wide_stores: int
    barriers: int


def compile_variant(variant: Variant, arch: int) -> Report:
    """Compile for sm_`arch` with the 16-byte alignment that a launch on torch tensors has, and read the result."""
    names = variant.kernel.arg_names
    signature = {n: "constexpr" if n in variant.constants else variant.types[n] for n in names}
    aligned = [n for n in names if signature[n].startswith("*") or n in ("stride", "d_stride", "V")]
    source = ASTSource(
        fn=variant.kernel,
        signature=signature,
        constexprs={(names.index(n),): value for n, value in variant.constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": variant.warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = run_tool("cuobjdump", "-res-usage", file.name)
        sass = run_tool("nvdisasm", "-c", file.name)
    return Report(
        registers=int(re.search(r"REG:(\d+)", usage)[1]),
        stack=int(re.search(r"STACK:(\d+)", usage)[1]),
        spills=len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        shared=compiled.metadata.shared,
        wide_loads=len(re.findall(r"\bLDG\.E[.\w]*\.128", sass)) + len(re.findall(r"\bLDGSTS[.\w]*\.128", sass)),
        wide_stores=len(re.findall(r"\bSTG\.E[.\w]*\.128", sass)),
        barriers=len(re.findall(r"\bBAR\.SYNC", sass)),
    )


def run_tool(tool: str, *arguments: str) -> str:
    done = subprocess.run([os.path.join(TOOLS, tool), *arguments], capture_output=True, text=True)
    return done.stdout + done.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description="What the compiler makes of every Triton kernel; no GPU needed.")
    parser.add_argument("--arch", type=int, nargs="+", default=list(ARCHS), help="compute capabilities, e.g. 80 90 100")
    parser.add_argument("--only", default="", help="variants whose name contains this")
    options = parser.parse_args()
    columns = list(Report.__dataclass_fields__)
    print(f"{'kernel':44}{'arch':>7}" + "".join(f"{name:>13}" for name in columns))
    for variant in variants():
        if options.only in variant.name:
            for arch in options.arch:
                report = compile_variant(variant, arch)
                numbers = "".join(f"{getattr(report, name):>13}" for name in columns)
                print(f"{variant.name:44}{f'sm_{arch}':>7}{numbers}")


if __name__ == "__main__":
    main()
