"""Which tile the anchored GEMM uses: fixed tables by compute capability and hidden size, no tuning at run time, because
passes whose ratio must be exactly 1 need the same tile.

Three plans were made from static checks; "flat" runs, which an H100 found the fastest (bench/NOTES.md).
`SIRI_KERNELS_PLAN=specialized` or `use_plan("specialized")` takes another for the whole process.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

import torch
import triton  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from siri_kernels.gemm import multiprocessors
from siri_kernels.rows.kernels import INTERPRETED, row_stride


@dataclass(frozen=True)
class Tile:
    """How one GEMM tile is computed."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    subtiles: int = 1
    """the epilogue takes the tile's columns in that many parts: less shared memory for the store"""
    descriptors: bool = True
    group: int = 16
    """row tiles that share one pass over the weight, for the L2 cache"""
    specialized: bool = False
    """some warps only load (the compiler ignores this unless `warps` is 4, and makes 12); else the loop is flattened"""


POINTERS = Tile(128, 128, 64, warps=8, stages=3, descriptors=False)
SINGLE_ROWS = Tile(64, 256, 64, warps=8, stages=2, descriptors=False)  # columns: no fewer than in PLANS
# triton before 3.7 cannot split a specialized tile's accumulator, and one whole store leaves room for three stages
OLD_TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7)
STAGES, SUBTILES = (3, 1) if OLD_TRITON else (4, 2)

# name -> (compute capability, hidden size) -> tile; hidden size 0 = any other; what a plan lacks is that of "flat"
PLANS = {
    "flat": {
        (80, 0): POINTERS,
        (90, 0): Tile(128, 256, 64, warps=8, stages=4, subtiles=2),
        (100, 0): Tile(128, 128, 64, warps=4, stages=3, subtiles=2),
        (120, 0): POINTERS,  # less shared memory than on sm_100
    },
    "specialized": {(90, 0): Tile(128, 256, 64, warps=4, stages=STAGES, subtiles=SUBTILES, specialized=True)},
    "two-blocks": {(90, 0): Tile(128, 128, 64, warps=4, stages=3, subtiles=2)},
}
# heads with a softcap, a bias or rounded logits: their epilogues need more registers than larger tiles leave
BUSY_TILES = {
    90: Tile(128, 128, 64, warps=8, stages=3, subtiles=2),
    100: Tile(128, 64, 64, warps=8, stages=3),
    120: Tile(128, 64, 64, warps=8, stages=3, descriptors=False),
}
INTERPRETER = {True: Tile(32, 128, 64, 4, 1, subtiles=2), False: Tile(32, 128, 64, 4, 1, descriptors=False)}
_chosen = os.environ.get("SIRI_KERNELS_PLAN", "flat")


def use_plan(name: str) -> str:
    """Take another of PLANS from now on; returns the name of the one before. Log-probs of different plans differ in
    their last bits: change it between steps, not within one."""
    global _chosen
    if name not in PLANS:
        raise ValueError(f"there is no plan {name!r}; SIRI_KERNELS_PLAN and use_plan take {', '.join(PLANS)}")
    before, _chosen = _chosen, name
    return before


def plan_name() -> str:
    """The plan in use; a ValueError when SIRI_KERNELS_PLAN names none."""
    use_plan(_chosen)
    return _chosen


@cache
def capability(device: torch.device) -> int:
    """90 for sm_90; 80 on AMD GPUs, which take the plain pointers of that generation."""
    if torch.version.hip is not None:
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


CUT_OFF = {90: 1.05e-9}
"""Compute capability -> by how much a logit of D products comes out too small, as a share of it for each of D: tensor
cores cut off towards 0, a product two bits below the last of the sum, the sum at every step of 16. The share depends
on the operands; this is the one that leaves the least of the largest errors (`bench/truncation.py --model`).
bench/NOTES.md has what GPUs showed of it. Capabilities that are not here have not been looked at."""


def compensation(device: torch.device, d_model: int) -> float:
    """The factor that gives logits back what was cut off, in the mean. One for all rows, passes and chunks."""
    return 1.0 if INTERPRETED else 1.0 + CUT_OFF.get(capability(device), 0.0) * d_model


def table(plan: str) -> dict[tuple[int, int], Tile]:
    return PLANS["flat"] | PLANS[plan]


def planned_tile(arch: int, d_model: int, busy: bool) -> Tile:
    """The plan's tile for a compute capability and a hidden size."""
    tiles = table(plan_name())
    arch = max((a for a, _ in tiles if a <= arch), default=80)
    if busy and arch in BUSY_TILES:
        return BUSY_TILES[arch]
    return tiles.get((arch, d_model)) or tiles[arch, 0]


def pick_tile(x: Tensor, weight: Tensor, busy: bool) -> Tile:
    """The tile for x [n, D] and weight [V, D]: the plan's, or one on plain pointers where descriptors cannot be used
    (rows that do not start at multiples of 16 bytes). It never depends on n."""
    aligned = all(
        t.stride(1) == 1 and row_stride(t) * t.element_size() % 16 == 0 and t.data_ptr() % 16 == 0 for t in (x, weight)
    )
    if INTERPRETED:
        return INTERPRETER[aligned]
    tile = planned_tile(capability(x.device), x.shape[1], busy)
    return tile if aligned or not tile.descriptors else POINTERS


@cache
def programs_per_device(device: torch.device, tile: Tile) -> int:
    """Persistent programs: one per multiprocessor for tiles of 256 columns, two for smaller ones."""
    if device.type != "cuda":
        return 2
    return multiprocessors(device) * (1 if tile.columns > 128 else 2)
