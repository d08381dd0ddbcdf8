"""By how much a matrix product of bf16 operands comes out too small, as a multiple of its exact value: tensor cores
drop what does not fit their accumulator at every step, always towards 0.

`python bench/truncation.py [--widths 256 512 ...] [--rows 256]` prints, for each width D, the mean of
product / exact - 1 over logits that share an offset of 30 nats and over the larger half of random ones, of Triton's
`tl.dot` (as K1 makes its logits) and of torch.mm with an fp32 result, beside what the model of a Hopper tensor core
makes of such operands. Sums that are rounded to the nearest come out near 0. Needs a GPU; on a CPU it runs small, so
that it cannot rot, and torch.mm alone.

The model: 16 products and what has been summed so far are aligned to the largest of them, each is cut off two bits
below fp32's last, and the sum of them is cut off to fp32 (Khattak and Mikaitis, arXiv 2512.07004, who compare bit by
bit). It has no free parameter; bench/NOTES.md has how near it came to an H100 and an H200.

`--model` measures nothing: it prints the model's shifts, and works out the largest errors of log-probs and entropies
on the problems of `kernel_problems`, as the sums come and with the factor that K1 has on sm_90 (`tiles.CUT_OFF`), or
with `--factors 0.8 1 1.2` others, in 1e-9 of each of D. 512 columns stand for the vocabulary's other tokens.
"""

from __future__ import annotations

import argparse
import math

import torch
import triton
import triton.language as tl
from siri_kernels.rows.anchored.tiles import CUT_OFF
from torch import Tensor

COLUMNS = 512
KINDS = ("common offset", "random")
OFFSET = 30.0
STEP = 16
"""Products of one instruction along D"""
GUARD_BITS = 2
"""Bits below fp32's last that a product keeps when it is aligned"""
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
    """x w^T, or with `pairs` each row of x times its row of w, as the model of a tensor core sums it, in fp64."""
    x, w = x.cpu().double(), w.cpu().double()
    total = torch.zeros(len(x) if pairs else (len(x), len(w)), dtype=torch.float64)
    for start in range(0, x.shape[1], STEP):
        left, right = x[:, start : start + STEP], w[:, start : start + STEP]
        products = left * right if pairs else left[:, None] * right[None]
        unit = last_bit(torch.maximum(products.abs().amax(-1), total.abs())) * 2.0**-GUARD_BITS
        aligned = (products / unit[..., None]).trunc_().sum(-1) + (total / unit).trunc_()
        total = towards_zero(aligned * unit)
    return total


def last_bit(x: Tensor) -> Tensor:
    """What the last bit of fp32 is worth at x."""
    return torch.exp2(torch.frexp(x).exponent.double() - 24)


def towards_zero(x: Tensor) -> Tensor:
    """fp64 as fp32, cut off."""
    unit = last_bit(x)
    return (x / unit).trunc_() * unit


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


def modelled_errors(
    kind: str, width: int, rows: int, factors: list[float], vocab: int = 151_936
) -> dict[float, tuple[float, float]]:
    """By factor, as a share of a logit for each of D: the largest error of a log-prob and of an entropy."""
    x, targets, others, shares = hard_problem(kind, width, rows, vocab)
    exact_target, exact = (x.double() * targets.double()).sum(1), x.double() @ others.double().T
    target, z = cut_off(x, targets, pairs=True), cut_off(x, others)

    def results(target: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        log_sum = torch.logaddexp(z.logsumexp(1) + shares, target)
        logp, others = target - log_sum, z - log_sum[:, None]
        return logp, -logp.exp() * logp - ((others + shares).exp() * others).sum(1)

    expected = results(exact_target, exact)

    def worst(factor: float) -> tuple[float, float]:
        scale = 1 + factor * width
        logp, entropy = (
            float((a - b).abs().max()) for a, b in zip(results(target * scale, z * scale), expected, strict=True)
        )
        return logp, entropy

    return {factor: worst(factor) for factor in factors}


def print_model(widths: list[int], rows: int, factors: list[float]) -> None:
    print(f"products cut off {GUARD_BITS} bits below the last of fp32, {STEP} at a time (a model, no measurement)")
    for width in widths:
        for kind in KINDS:
            x, w = operands(64, width, "cpu", shared=kind == "common offset")
            shift = relative_shift(cut_off(x, w), x.double() @ w.double().T)
            print(f"{width:6}  {kind:16}{shift:12.2e}  {shift / width:.2e} for each of D")
    print("largest errors of log-probs, and of entropies, with a factor of 1 + so much for each of D")
    print(f"{'D':>6}  {'':12}" + "".join(f"{factor:>18.2e}" for factor in factors))
    for width in widths:
        for kind in ("peaked", "offset", "dominated"):
            errors = modelled_errors(kind, width, rows, factors).values()
            print(f"{width:6}  {kind:12}" + "".join(f"  {p:.1e} {h:.1e}" for p, h in errors))


def main() -> None:
    parser = argparse.ArgumentParser(description="What a matrix product loses to truncation.")
    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    parser.add_argument("--widths", type=int, nargs="+", help="multiples of 64")
    parser.add_argument("--rows", type=int, default=4096 if on_gpu else 64, help="a multiple of 64; 512 with --model")
    parser.add_argument("--model", action="store_true", help="the errors that follow from the model; no GPU is asked")
    parser.add_argument("--factors", type=float, nargs="+", metavar="F", help="with --model: others, 1e-9 each")
    options = parser.parse_args()
    if options.model:
        factors = [0.0, CUT_OFF[90]] if options.factors is None else [factor * 1e-9 for factor in options.factors]
        print_model(options.widths or [1536, 3584], 512, factors)
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
            few = cut_off(x[:64], w)
            print(f"{width:6}  {kind:16}{shifts}{relative_shift(few, exact[:64].cpu()):12.2e}")


if __name__ == "__main__":
    main()
