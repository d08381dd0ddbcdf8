"""By how much a matrix product of bf16 operands comes out too small, as a multiple of its exact value: tensor cores
may drop what does not fit their accumulator at every step, always towards 0.

`python bench/truncation.py [--widths 256 512 ...] [--rows 256]` prints, for each width D, the mean of
product / exact - 1 over logits that share an offset of 30 nats and over the larger half of random ones, of Triton's
`tl.dot` (as K1 makes its logits) and of torch.mm with an fp32 result, beside the model of bench/NOTES.md, -1.29e-9 D.
Sums that are rounded to the nearest come out near 0. Needs a GPU; on a CPU it runs small, so that it cannot rot, and
torch.mm alone.
"""

from __future__ import annotations

import argparse

import torch
import triton
import triton.language as tl
from torch import Tensor

MODEL = -1.29e-9
"""a unit of D"""
OFFSET, STEP = 30.0, 16


@triton.jit
def product_kernel(x_ptr, w_ptr, z_ptr, width, V: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """z [rows, V] = x w^T in fp32, one tile of BLOCK rows and all V a program."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, V)
    z = tl.zeros((BLOCK, V), tl.float32)
    for start in range(0, width, STEP):
        d = start + tl.arange(0, STEP)
        x = tl.load(x_ptr + rows[:, None] * width + d[None, :])
        w = tl.load(w_ptr + columns[None, :] * width + d[:, None])
        z = tl.dot(x, w, z)
    tl.store(z_ptr + rows[:, None] * V + columns[None, :], z)


def by_triton(x: Tensor, w: Tensor) -> Tensor:
    z = torch.empty(x.shape[0], w.shape[0], device=x.device)
    product_kernel[(x.shape[0] // 64,)](x, w, z, x.shape[1], V=w.shape[0], BLOCK=64, STEP=64)
    return z


def by_torch(x: Tensor, w: Tensor) -> Tensor:
    return torch.mm(x, w.T, out_dtype=torch.float32) if x.is_cuda else x.float() @ w.float().T


def operands(rows: int, width: int, device: str, *, shared: bool) -> tuple[Tensor, Tensor]:
    """x [rows, D], w [128, D], bf16; `shared` gives every logit an offset of about OFFSET."""
    g = torch.Generator(device).manual_seed(width)
    x = torch.randn(rows, width, device=device, generator=g)
    w = torch.randn(128, width, device=device, generator=g) * width**-0.5 * (1 if shared else 8)
    if shared:
        common = torch.randn(width, device=device, generator=g)
        x = x * 0.1 + common
        w = w * 0.1 + common * OFFSET / common.square().sum()
    return x.bfloat16(), w.bfloat16()


def relative_shift(z: Tensor, exact: Tensor) -> float:
    """The mean of z / exact - 1 over the larger half of the logits; the small ones are rounding alone."""
    large = exact.abs() >= exact.abs().median()
    return float((z.double()[large] / exact[large] - 1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="What a matrix product loses to truncation.")
    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 896, 1536, 3584, 8192] if on_gpu else [256, 512])
    parser.add_argument("--rows", type=int, default=4096 if on_gpu else 64, help="a multiple of 64")
    options = parser.parse_args()
    ways = {"tl.dot": by_triton, "torch.mm": by_torch} if on_gpu else {"torch.mm": by_torch}
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    print(f"{name}, torch {torch.__version__}, triton {triton.__version__}: mean of product / exact - 1")
    print(f"{'D':>6}  {'logits':16}{''.join(f'{way:>12}' for way in ways)}{'model':>12}")
    for width in options.widths:
        for kind in ("common offset", "random"):
            x, w = operands(options.rows, width, device, shared=kind == "common offset")
            exact = x.double() @ w.double().T
            shifts = "".join(f"{relative_shift(way(x, w), exact):12.2e}" for way in ways.values())
            print(f"{width:6}  {kind:16}{shifts}{MODEL * width:12.2e}")


if __name__ == "__main__":
    main()
