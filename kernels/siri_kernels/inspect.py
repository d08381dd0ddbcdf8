"""`python -m siri_kernels.inspect [--arch 90 ...] [--only TEXT] [--skip TEXT] [--jobs N] [--ones]`: compiles every
Triton kernel ahead of time, without a GPU, and prints what the compiler says.

Registers and stack come from `cuobjdump -res-usage`; spills (LDL / STL), barriers, 16-byte global loads and stores,
tensor-core instructions (HGMMA on sm_90) and TMA transfers are counted in the SASS, or in the PTX of kernels without a
GEMM and without a stack.
"""

# Triton's compiler comes without types.
# pyright: basic, reportArgumentType=false, reportOptionalSubscript=false

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from siri_kernels.loss.triton import BLOCK, METRIC_BLOCKS, finish_kernel, metrics_kernel, token_kernel
from siri_kernels.rows import scaling
from siri_kernels.rows.anchored.gemm import descriptor_kernel, pointer_kernel
from siri_kernels.rows.anchored.kernels import (
    DEPTH,
    GRADIENT_BLOCK,
    ROWS,
    SUM_ROWS,
    SUM_TILES,
    gradient_kernel,
    offsets_kernel,
    online_sums_kernel,
    sums_kernel,
)
from siri_kernels.rows.anchored.tiles import BUSY_TILES, PLANS, POINTERS, SINGLE_ROWS, Tile
from siri_kernels.rows.kernels import DLOGITS_BLOCK, STATS_BLOCK, WARPS, dlogits_kernel, row_stats_kernel

ARCHS = (80, 90, 100)
ALIGNED = ("stride", "out_stride", "size", "d_stride", "x_stride", "w_stride", "e_stride", "V", "D")
"""What is a multiple of 16 in a launch on rows that start at multiples of 16 bytes."""
TOOLS = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")


@dataclass(frozen=True)
class Variant:
    """One specialisation of a kernel, as a launch on contiguous tensors makes it."""

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int
    stages: int = 3
    archs: tuple[int, ...] = ARCHS
    aligned: bool = True
    """rows start at multiples of 16 bytes"""
    fusion: bool = False
    """the compiler may fuse multiply-adds on its own account"""


def variants() -> Iterator[Variant]:
    yield from row_variants()
    yield from token_variants()
    yield from scaling_variants()
    yield from anchored_variants()


def row_variants() -> Iterator[Variant]:
    """Logits as the fallback stores them (fp32, bf16 when rounded) or as they are given, and where their gradient goes;
    only an LM head has a softcap. "odd V": rows that start anywhere, target ids of 32 bits."""
    pointers = dict.fromkeys(("SCALE", "OUT", "MAXIMUM", "LOG_SUM", "LOGP", "ENTROPY", "G", "H"), "*fp32")
    sizes = {"out_stride": "i32", "stride": "i32", "d_stride": "i32", "V": "i32", "vocab_start": "i32"}
    common = {**pointers, **sizes, "TARGET": "*i64", "scale": "fp32", "softcap": "fp32"}
    for dtype, out in (("fp32", "fp32"), ("fp32", "bf16"), ("bf16", "bf16"), ("fp16", "fp16")):
        for per_row, softcap, odd in product((False, True), (False, True), (False, True)):
            if (dtype == "fp16" and softcap) or (odd and (per_row or softcap)):
                continue
            flags = {"PER_ROW": per_row, "SOFTCAP": softcap}
            suffix = " softcap" * softcap + " T[N]" * per_row + " odd V" * odd
            types = {**common, "Z": f"*{dtype}", "DZ": f"*{out}"} | ({"TARGET": "*i32"} if odd else {})
            if out == dtype:
                constants = {**flags, "BLOCK": STATS_BLOCK}
                yield Variant(f"row_stats {dtype}{suffix}", row_stats_kernel, types, constants, WARPS, aligned=not odd)
            for entropy in (False, True):
                constants = {**flags, "WITH_H": entropy, "BLOCK": DLOGITS_BLOCK}
                name = f"dlogits {dtype}->{out}{suffix}{' entropy' * entropy}"
                yield Variant(name, dlogits_kernel, types, constants, WARPS, aligned=not odd)


def token_variants() -> Iterator[Variant]:
    tensors = ("STATS", "ADV", "WEIGHT", "OLD", "ROLLOUT", "LOGP", "ENTROPY", "OUT", "PARTIALS")
    numbers = [name for name in token_kernel.arg_names if name.islower()]  # the options of the loss, and sizes
    types = {
        **dict.fromkeys(tensors, "*fp32"),
        **dict.fromkeys(numbers, "fp32"),
        **dict.fromkeys(("stats_stride", "out_stride", "n", "first_row", "first_block"), "i32"),
        "ROWS": "*i64",
        "COUNTED": "*u8",
    }
    switches = ("INDEXED", "HAS_OLD", "HAS_ROLLOUT", "DUAL")
    for loss, importance, *on in product((0, 1), (0, 1, 2), *[(False, True)] * len(switches)):
        flags = dict(zip(switches, on, strict=True))
        if (importance and not flags["HAS_ROLLOUT"]) or (loss and flags["DUAL"]):  # refused before they get here
            continue
        words = (("grpo", "cispo")[loss], ("none", "tis", "icepop")[importance])
        words += tuple(name.removeprefix("HAS_").lower() for name, flag in flags.items() if flag)
        constants = {**flags, "LOSS": loss, "IMPORTANCE": importance, "BLOCK": BLOCK}
        yield Variant(f"tokens {' '.join(words)}", token_kernel, types, constants, 4)
    yield Variant("tokens finish", finish_kernel, types, {"BLOCK": BLOCK}, 4)
    types = {**dict.fromkeys(("PARTIALS", "LOSS", "METRICS"), "*fp32"), "blocks": "i32"}
    yield Variant("tokens metrics", metrics_kernel, types, {"BLOCKS": METRIC_BLOCKS}, 4)


def scaling_variants() -> Iterator[Variant]:
    """dX on its way out, x on its way into dW (of a single chunk with the upstream gradient), dW and dX narrowed."""
    types = {"FACTOR": "*fp32", "UPSTREAM": "*fp32", "ROWS": "*i64", "OUT": "*bf16"}
    types |= dict.fromkeys(("n", "D", "x_stride", "out_stride", "first_row", "size"), "i32")
    for name, x, indexed, upstream in (
        ("dX", "fp32", False, False),
        ("dX indexed", "fp32", True, False),
        ("x", "bf16", False, False),
        ("x upstream", "bf16", False, True),
    ):
        constants = {
            "INDEXED": indexed,
            "HAS_UPSTREAM": upstream,
            "CLEAR": x == "bf16",
            "BM": scaling.ROWS,
            "BD": scaling.COLUMNS,
        }
        yield Variant(f"rows scaled {name}", scaling.scale_rows_kernel, types | {"X": f"*{x}"}, constants, 4)
    yield Variant("scaled", scaling.scale_kernel, types | {"X": "*fp32"}, {"BLOCK": scaling.BLOCK}, 8)


# what the anchored GEMM is asked to do: options of its epilogue that make a variant of its own
EVERYTHING = dict.fromkeys(("ROUND", "HAS_BIAS", "SOFTCAP", "MASK", "PER_ROW"), True)
GEMM_MODES = {
    "": {},
    "no store": {"STORE": False},
    "slice": {"SUMS": False, "ENTROPY": False},
    "no entropy": {"ENTROPY": False},
    "T[N] ragged": {"PER_ROW": True, "MASK": True},
    "softcap": {"SOFTCAP": True, "MASK": True},
    "bias": {"HAS_BIAS": True, "MASK": True, "PER_ROW": True},
    "rounded": {"ROUND": True, "MASK": True},
    "everything": EVERYTHING,
    "everything no store": {**EVERYTHING, "STORE": False},
    "everything slice": {**EVERYTHING, "SUMS": False, "ENTROPY": False},
}
GEMM_DEFAULTS = {
    **dict.fromkeys(("PER_ROW", "HAS_BIAS", "ROUND", "SOFTCAP", "MASK"), False),
    **dict.fromkeys(("SLOPE", "STORE", "SUMS", "ENTROPY"), True),
}


def gemm_variant(name: str, tile: Tile, mode: dict, archs: tuple[int, ...], **pointers) -> Variant:
    """One GEMM; `pointers`: the flags of the kernel on plain pointers."""
    types = {
        **dict.fromkeys(("SCALE", "B2", "PARTIALS", "TARGET"), "*fp32"),
        **dict.fromkeys(("ROWS", "COUNT"), "*i32"),
        "TARGET_IDS": "*i64",
        **dict.fromkeys(("n", "V", "D", "stride", "x_stride", "w_stride", "e_stride", "vocab_start"), "i32"),
        **dict.fromkeys(("programs",), "i32"),
        **dict.fromkeys(("scale", "softcap"), "fp32"),
        **dict.fromkeys(("X", "W", "E", "BIAS"), "*bf16"),
    }
    constants = {**GEMM_DEFAULTS, **mode, "BM": tile.rows, "BN": tile.columns, "BK": tile.depth, "GROUP": tile.group}
    if tile.descriptors:
        constants |= {"SUBTILES": tile.subtiles, "SPECIALIZED": tile.specialized}
        blocks = {"X": (tile.rows, tile.depth), "W": (tile.columns, tile.depth)}
        blocks["E"] = (tile.rows, tile.columns // tile.subtiles)
        if not tile.specialized:
            types |= {key: f"tensordesc<bf16[{rows}, {columns}]>" for key, (rows, columns) in blocks.items()}
        return Variant(name, descriptor_kernel, types, constants, tile.warps, tile.stages, archs, fusion=True)
    constants |= {"ONLINE": False, "SELECTED": False, "EVEN_D": True, **pointers}
    return Variant(name, pointer_kernel, types, constants, tile.warps, tile.stages, archs, fusion=True)


def anchored_variants() -> Iterator[Variant]:
    for plan, tiles in PLANS.items():
        for (arch, d_model), tile in tiles.items():
            archs = tuple(a for a in ARCHS if a == arch)
            for mode, options in GEMM_MODES.items():
                busy = any(options.get(key) for key in ("SOFTCAP", "HAS_BIAS", "ROUND"))
                words = ("anchored gemm", "" if plan == "flat" else plan, f"D={d_model}" if d_model else "", mode)
                if plan == "flat" or not busy:  # heads with more to do have one tile in every plan
                    tile_or_busy = BUSY_TILES.get(arch, tile) if busy else tile
                    yield gemm_variant(" ".join(filter(None, words)), tile_or_busy, options, archs)
    plain, odd = {"MASK": True}, {"MASK": True, "PER_ROW": True}
    yield gemm_variant("anchored gemm odd D", POINTERS, odd, ARCHS, EVEN_D=False)
    for name, mode in (("", plain), (" everything", EVERYTHING)):
        yield gemm_variant(
            f"anchored redo online{name}", SINGLE_ROWS, {**mode, "STORE": False}, ARCHS, ONLINE=True, SELECTED=True
        )
        yield gemm_variant(
            f"anchored redo store{name}", SINGLE_ROWS, {**mode, "SUMS": False, "ENTROPY": False}, ARCHS, SELECTED=True
        )
    numbers = dict.fromkeys(("n", "V", "D", "tiles", "x_stride", "w_stride", "e_stride", "vocab_start"), "i32")
    floats = ("PARTIALS", "B2", "TARGET", "STATS", "GAP", "SCALE", "OUT", "ANCHOR", "MAXIMUM", "LOG_SUM", "LOGP")
    floats += ("ENTROPY", "G", "H", "FACTOR")
    types = {**numbers, **dict.fromkeys(floats, "*fp32"), **dict.fromkeys(("scale", "softcap"), "fp32")}
    types |= {"TARGET_IDS": "*i64", "ROWS": "*i32", "COUNT": "*i32"}
    types |= dict.fromkeys(("X", "W", "E", "BIAS"), "*bf16")
    for full in (False, True):
        suffix = " softcap T[N]" if full else ""
        flags = {"PER_ROW": full, "SOFTCAP": full}
        constants = {**flags, "HAS_BIAS": full, "HAS_ANCHOR": full, "BM": ROWS, "BK": DEPTH}
        yield Variant(f"anchored offsets{suffix}", offsets_kernel, types, constants, 4)
        for entropy in (False, True):
            constants = {**flags, "WITH_H": entropy, "BLOCK": GRADIENT_BLOCK}
            yield Variant(f"anchored gradient{suffix}{' entropy' * entropy}", gradient_kernel, types, constants, 8)
    constants = {"BM": SUM_ROWS, "BT": SUM_TILES}
    yield Variant("anchored sums", sums_kernel, types, constants, 4)
    yield Variant("anchored redo sums", online_sums_kernel, types, constants, 4)


@dataclass(frozen=True)
class Report:
    """What the compiler says."""

    registers: int
    stack: int
    spills: int
    shared: int
    wide_loads: int
    wide_stores: int
    barriers: int
    tensor_cores: int
    tma_loads: int
    tma_stores: int
    register_moves: int
    """between groups of warps (USETMAXREG): 0 where warp specialisation was ignored"""


SASS = {
    "spills": r"\b(?:LDL|STL)\b",
    "wide_loads": r"\bLDG\.E[.\w]*\.128|\bLDGSTS[.\w]*\.128",
    "wide_stores": r"\bSTG\.E[.\w]*\.128",
    "barriers": r"\bBAR\.SYNC",
    "tensor_cores": r"\b(?:HGMMA|HMMA|UTCHMMA)\b",
    "tma_loads": r"\bUTMALDG\b",
    "tma_stores": r"\bUTMASTG\b",
    "register_moves": r"\bUSETMAXREG\b",
}
# the same in PTX, for kernels without a GEMM: disassembling takes longer than compiling, and the counts are the same
PTX = dict.fromkeys(SASS, r"(?!)") | {
    "wide_loads": r"\bld\.global[.\w:]*\.v4\.b32",
    "wide_stores": r"\bst\.global[.\w:]*\.v4\.b32",
    "barriers": r"\bbar\.sync",
}


def sizes_of_one(variant: Variant) -> list[str]:
    """The integers that a launch turns into constants when they are 1."""
    free = [p.name for p in variant.kernel.params if not p.do_not_specialize and p.name not in variant.constants]
    return [name for name in free if variant.types[name] == "i32"]


def build(variant: Variant, target: GPUTarget, ones: bool = False) -> Any:
    """Compile with the 16-byte alignment that a launch on torch tensors has. ones: as a launch whose every size is
    1."""
    names = variant.kernel.arg_names
    constants = variant.constants | (dict.fromkeys(sizes_of_one(variant), 1) if ones else {})
    signature = {n: "constexpr" if n in constants else variant.types[n] for n in names}
    specialised = [p.name for p in variant.kernel.params if not p.do_not_specialize]
    aligned = [n for n in specialised if signature[n].startswith("*") or (variant.aligned and n in ALIGNED)]
    source = ASTSource(
        fn=variant.kernel,
        signature=signature,
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned if n not in constants},
    )
    options = {"num_warps": variant.warps, "num_stages": variant.stages, "enable_fp_fusion": variant.fusion}
    return triton.compile(source, target=target, options=options)


def compile_variant(variant: Variant, arch: int, ones: bool = False) -> Report:
    """Compile for sm_`arch` and read the result."""
    compiled = build(variant, GPUTarget("cuda", arch, 32), ones)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = run_tool("cuobjdump", "-res-usage", file.name)
        stack = int(re.search(r"STACK:(\d+)", usage)[1])  # 0: nowhere to spill to
        from_ptx = variant.kernel not in (descriptor_kernel, pointer_kernel) and not stack
        text, patterns = (compiled.asm["ptx"], PTX) if from_ptx else (run_tool("nvdisasm", "-c", file.name), SASS)
    registers = int(re.search(r"REG:(\d+)", usage)[1])
    counts = {name: len(re.findall(pattern, text)) for name, pattern in patterns.items()}
    return Report(registers=registers, stack=stack, shared=compiled.metadata.shared, **counts)


def run_tool(tool: str, *arguments: str) -> str:
    done = subprocess.run([os.path.join(TOOLS, tool), *arguments], capture_output=True, text=True)
    return done.stdout + done.stderr


def compile_named(name: str, arch: int, ones: bool) -> Report:
    # tiles differ between architectures under one name
    matching = (variant for variant in variants() if variant.name == name and arch in variant.archs)
    return compile_variant(next(matching), arch, ones)


def main() -> None:
    parser = argparse.ArgumentParser(description="What the compiler makes of every Triton kernel; no GPU needed.")
    parser.add_argument("--arch", type=int, nargs="+", default=list(ARCHS), help="compute capabilities, e.g. 80 90 100")
    parser.add_argument("--only", default="", help="variants whose name contains this")
    parser.add_argument("--skip", help="no variants whose name contains this")
    parser.add_argument("--match", default="", help="variants in whose name this regular expression is found")
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile")
    parser.add_argument("--ones", action="store_true", help="as launches compile them whose every size is 1")
    options = parser.parse_args()
    try:
        pattern = re.compile(options.match)
    except re.error as error:
        parser.error(f"--match is no regular expression: {error}")
    columns = list(Report.__dataclass_fields__)
    chosen = [
        (variant.name, arch)
        for variant in variants()
        if options.only in variant.name and not (options.skip and options.skip in variant.name)
        if pattern.search(variant.name)
        for arch in sorted(set(options.arch) & set(variant.archs))
    ]
    if not chosen:
        parser.error("no kernel has such a name for these architectures (80, 90, 100); without options all are shown")
    print(f"{'kernel':48}{'arch':>7}" + "".join(f"{name:>15}" for name in columns))
    names, archs = [name for name, _ in chosen], [arch for _, arch in chosen]
    ones = [options.ones] * len(chosen)
    with ExitStack() as stack:
        each = map
        if options.jobs > 1:
            each = stack.enter_context(ProcessPoolExecutor(options.jobs, get_context("spawn"))).map
        for name, arch, report in zip(names, archs, each(compile_named, names, archs, ones), strict=True):
            numbers = "".join(f"{getattr(report, column):>15}" for column in columns)
            print(f"{name:48}{f'sm_{arch}':>7}{numbers}", flush=True)


if __name__ == "__main__":
    main()
