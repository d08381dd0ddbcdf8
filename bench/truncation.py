"""By how much a matrix product of bf16 operands comes out too small, as a multiple of its exact value: tensor cores
drop what does not fit their accumulator at every step, always towards 0.

`python bench/truncation.py [--widths 256 512 ...] [--rows 256]` prints, for each width D, the mean of
product / exact - 1 over logits that share an offset of 30 nats and over the larger half of random ones, of Triton's
`tl.dot` (as K1 makes its logits) and of torch.mm with an fp32 result, beside the model of bench/NOTES.md, -1.29e-9 D.
Sums that are rounded to the nearest come out near 0. Needs a GPU; on a CPU it runs small, so that it cannot rot, and
torch.mm alone.

`--model` measures nothing: with sums that numpy cuts off after every 16 products it prints the same share, and works
out the largest errors of log-probs and entropies on the problems of `kernel_problems`, with the target's logit exact or
of the product, as it comes and with the factor that K1 has on sm_90. 3,000 columns stand for the vocabulary's other
tokens.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
import triton
import triton.language as tl
from siri_kernels.rows.anchored.tiles import CUT_OFF
from torch import Tensor

MODEL = -CUT_OFF[90]
"""a unit of D"""
COLUMNS = 3000
KINDS = ("common offset", "random")
OFFSET = 30.0
STEP = 16
"""Products that are added before a sum is cut off"""
TILE = 64
"""Rows and depth of a program of `product_kernel`, which has no masks"""


@triton.jit
def product_kernel(x_ptr, w_ptr, z_ptr, width, V: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr):
    """z [rows, V] = x w^T in fp32, one tile of BLOCK rows and all V a program."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, V)
    z = tl.zeros((BLOCK, V), tl.float32)
    for start in range(0, width, DEPTH):
        d = start + tl.arange(0, DEPTH)
        x = tl.load(x_ptr + rows[:, None] * width + d[None, :])
        w = tl.load(w_ptr + columns[None, :] * width + d[:, None])
        z = tl.dot(x, w, z)
    tl.store(z_ptr + rows[:, None] * V + columns[None, :], z)


def by_triton(x: Tensor, w: Tensor) -> Tensor:
    z = torch.empty(x.shape[0], w.shape[0], device=x.device)
    product_kernel[(x.shape[0] // TILE,)](x, w, z, x.shape[1], V=w.shape[0], BLOCK=TILE, DEPTH=TILE)
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


def cut_off(x: Tensor, w: Tensor, *, pairs: bool = False) -> Tensor:
    """x w^T, or with `pairs` each row of x times its row of w, whose sum is fp32 and cut off towards 0 after every
    STEP products, in fp64."""
    a, b = x.double().numpy(), w.double().numpy()
    total = np.zeros(len(a) if pairs else (len(a), len(b)), np.float32)
    for start in range(0, a.shape[1], STEP):
        left, right = a[:, start : start + STEP], b[:, start : start + STEP]
        part = total + ((left * right).sum(1) if pairs else left @ right.T)
        near = part.astype(np.float32)
        total = np.where(np.abs(near) > np.abs(part), np.nextafter(near, np.float32(0)), near)
    return torch.from_numpy(total).double()


def hard_problem(kind: str, width: int, rows: int, vocab: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """x [rows, D], each row's target [rows, D] and other columns [COLUMNS, D], bf16; the log of how many each of these
    stands for. Where another token dominates, it is the row's of COLUMNS."""
    g = torch.Generator().manual_seed(width)
    targets = torch.randn(rows, width, generator=g) * width**-0.5
    others = torch.randn(COLUMNS, width, generator=g) * width**-0.5
    x = torch.randn(rows, width, generator=g)
    if kind == "peaked":
        x += 16 * torch.rand(rows, 1, generator=g) * targets
    elif kind == "dominated":
        x += OFFSET * others[torch.arange(rows) % COLUMNS]
    else:
        direction = torch.nn.functional.normalize(torch.randn(width, generator=g), dim=0)
        targets += direction
        others += direction
        x += (OFFSET - x @ direction)[:, None] * direction
    shares = 0.0 if kind == "dominated" else math.log(vocab / COLUMNS)
    return x.bfloat16(), targets.bfloat16(), others.bfloat16(), shares


def modelled_errors(kind: str, width: int, rows: int, vocab: int = 151_936) -> dict[str, tuple[float, float]]:
    """The largest error of a log-prob and of an entropy, by way of making them."""
    x, targets, others, shares = hard_problem(kind, width, rows, vocab)
    exact_target, exact = (x.double() * targets.double()).sum(1), x.double() @ others.double().T
    target, z = cut_off(x, targets, pairs=True), cut_off(x, others)
    factor = 1 - MODEL * width

    def results(target: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        log_sum = torch.logaddexp(z.logsumexp(1) + shares, target)
        logp, others = target - log_sum, z - log_sum[:, None]
        return logp, -logp.exp() * logp - ((others + shares).exp() * others).sum(1)

    expected = results(exact_target, exact)
    ways = {"exact target": (exact_target, z), "of the product": (target, z)}
    ways |= {"with the factor": (target * factor, z * factor)}
    errors = {}
    for name, way in ways.items():
        logp, entropy = (float((x - y).abs().max()) for x, y in zip(results(*way), expected, strict=True))
        errors[name] = (logp, entropy)
    return errors


def print_model(widths: list[int], rows: int) -> None:
    print(f"sums that are cut off after every {STEP} products (a model, no measurement)")
    for width in widths:
        for kind in KINDS:
            x, w = operands(64, width, "cpu", shared=kind == "common offset")
            share = relative_shift(cut_off(x, w), x.double() @ w.double().T) / (MODEL * width)
            print(f"{width:6}  {kind:16}too small by {share:.2f} of {-MODEL * width:.2e}")
    print("largest errors of log-probs, and of entropies")
    for width in widths:
        for kind in ("peaked", "offset", "dominated"):
            errors = modelled_errors(kind, width, rows).items()
            print(f"{width:6}  {kind:12}" + "".join(f"{name:>18} {p:.1e} {h:.1e}" for name, (p, h) in errors))


def main() -> None:
    parser = argparse.ArgumentParser(description="What a matrix product loses to truncation.")
    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    parser.add_argument("--widths", type=int, nargs="+", help="multiples of 64")
    parser.add_argument("--rows", type=int, default=4096 if on_gpu else 64, help="a multiple of 64; 512 with --model")
    parser.add_argument("--model", action="store_true", help="the errors that follow from the model; no GPU is asked")
    options = parser.parse_args()
    if options.model:
        print_model(options.widths or [1536, 3584], 512)
        return
    widths = options.widths or ([256, 896, 1536, 3584, 8192] if on_gpu else [256, 512])
    if any(size % TILE for size in (options.rows, *widths)):
        parser.error(f"--widths and --rows are multiples of {TILE}")
    ways = {"tl.dot": by_triton, "torch.mm": by_torch} if on_gpu else {"torch.mm": by_torch}
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    print(f"{name}, torch {torch.__version__}, triton {triton.__version__}: mean of product / exact - 1")
    print(f"{'D':>6}  {'logits':16}{''.join(f'{way:>12}' for way in ways)}{'model':>12}")
    for width in widths:
        for kind in KINDS:
            x, w = operands(options.rows, width, device, shared=kind == "common offset")
            exact = x.double() @ w.double().T
            shifts = "".join(f"{relative_shift(way(x, w), exact):12.2e}" for way in ways.values())
            print(f"{width:6}  {kind:16}{shifts}{MODEL * width:12.2e}")


if __name__ == "__main__":
    main()
