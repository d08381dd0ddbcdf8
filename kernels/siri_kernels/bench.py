"""python -m siri_kernels.bench --tokens N --hidden D --vocab V: this package on your shapes and your machine.

Times log-prob with entropy (forward) and the clipped loss (forward and backward) beside the matrix products that they
cannot do without (one, and three) and beside full fp32 logits in plain torch, in one process, every round each of
them once; and holds a sample of the rows to fp64 first. Nothing but this package and torch is needed; installed peers
are compared by `bench/gpu.sh kernels` in the repository. Exit codes: 0 measured, 1 a result is off fp64, 2 bad input.
"""

# torch.Tensor.backward and a step's results are not typed.
# pyright: basic

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

import siri_kernels
from siri_kernels import linear_grpo_loss, linear_logprob

GPU_SHAPE, CPU_SHAPE = (8192, 1536, 151_936), (512, 256, 8192)
"""tokens, hidden, vocab where none are given: 8K tokens of Qwen2-1.5B's head; on a CPU what takes seconds"""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ROWS = 64
"""compared with fp64"""
TOLERANCE = 2e-4
"""largest error of a log-prob or an entropy, in nats, with which a measurement is shown"""

Step = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    op: str
    impl: str
    ms: float
    """median over the rounds"""
    ratio_to_gemm: float
    """time over that of the op's matrix products, one or three, in this process"""
    extra_bytes: int | None
    """peak device memory beyond the inputs, results included; None on a CPU"""
    max_error: float | None
    """of log-prob and entropy against fp64 on the same inputs; None where there is nothing to compare"""


@dataclass(frozen=True)
class Problem:
    """hidden [N, D], weight [V, D], target_ids [N], advantages [N], old_logp [N] around the true log-probs."""

    hidden: Tensor
    weight: Tensor
    target_ids: Tensor
    advantages: Tensor
    old_logp: Tensor

    def clear(self) -> None:
        self.hidden.grad = self.weight.grad = None


def problem(tokens: int, hidden: int, vocab: int, dtype: torch.dtype, device: torch.device, impl: str) -> Problem:
    """Targets are likely, as in text sampled from a trained model."""
    g = torch.Generator(device).manual_seed(0)
    weight_VD = torch.randn(vocab, hidden, device=device, generator=g).mul_(hidden**-0.5).to(dtype)
    target_ids = torch.randint(vocab, (tokens,), device=device, generator=g)
    confidence = 16 * torch.rand(tokens, 1, device=device, generator=g)
    hidden_ND = torch.randn(tokens, hidden, device=device, generator=g) + confidence * weight_VD[target_ids].float()
    hidden_ND = hidden_ND.to(dtype)
    with torch.no_grad():
        logp = linear_logprob(hidden_ND, weight_VD, target_ids, impl=impl)
        assert isinstance(logp, Tensor)
        old_logp = logp + 0.05 * torch.randn(tokens, device=device, generator=g)
    advantages = torch.randn(tokens, device=device, generator=g)
    return Problem(hidden_ND.requires_grad_(), weight_VD.requires_grad_(), target_ids, advantages, old_logp)


def floors(p: Problem) -> dict[str, Step]:
    """One matrix product of the head, and the three of a training step, by chunks whose logits fit."""
    x, w = p.hidden.detach(), p.weight.detach()
    rows = min(x.shape[0], 5632)
    z = torch.empty(rows, w.shape[0], device=x.device, dtype=x.dtype)

    def products(backward: bool) -> None:
        for start in range(0, x.shape[0], rows):
            part = x[start : start + rows]
            dz = torch.mm(part, w.T, out=z[: part.shape[0]])
            if backward:
                torch.mm(dz, w)
                torch.mm(dz.T, part)

    return {"forward": lambda: products(False), "forward_backward": lambda: products(True)}


def ours(p: Problem, impl: str) -> dict[str, Step]:
    def forward() -> object:
        with torch.no_grad():
            return linear_logprob(p.hidden, p.weight, p.target_ids, return_entropy=True, impl=impl)

    def step() -> object:
        p.clear()
        result = linear_grpo_loss(p.hidden, p.weight, p.target_ids, p.advantages, old_logp=p.old_logp, impl=impl)
        result.loss.backward()
        return result.logp, result.entropy

    return {"forward": forward, "forward_backward": step}


def plain(p: Problem) -> dict[str, Step]:
    """Full logits in fp32, as a trainer without a fused head computes them."""

    def scores() -> tuple[Tensor, Tensor]:
        log_p = torch.log_softmax((p.hidden @ p.weight.T).float(), -1)
        return log_p.gather(1, p.target_ids[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)

    def forward() -> object:
        with torch.no_grad():
            return scores()

    def step() -> object:
        p.clear()
        logp, entropy = scores()
        ratio = (logp - p.old_logp).exp()
        clipped = ratio.clamp(0.8, 1.28)
        (-torch.min(ratio * p.advantages, clipped * p.advantages).mean()).backward()
        return logp.detach(), entropy.detach()

    return {"forward": forward, "forward_backward": step}


def error(scores: object, p: Problem) -> float:
    """The largest error of a log-prob or an entropy over a sample of the rows, against fp64."""
    assert isinstance(scores, tuple)
    logp, entropy = scores
    rows = torch.linspace(0, p.target_ids.numel() - 1, min(ROWS, p.target_ids.numel())).long()
    x, w = p.hidden.detach()[rows].double(), p.weight.detach().double()
    log_p = torch.log_softmax(x @ w.T, -1)
    exact = log_p.gather(1, p.target_ids[rows, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)
    pairs = zip((logp, entropy), exact, strict=True)
    return max(float((mine.detach()[rows] - true).abs().max()) for mine, true in pairs)


def milliseconds(step: Step, device: torch.device) -> float:
    if device.type != "cuda":
        begin = time.perf_counter()
        step()
        return 1e3 * (time.perf_counter() - begin)
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    step()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def peak_bytes(step: Step, p: Problem) -> int | None:
    if not p.hidden.is_cuda:
        return None
    p.clear()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(p: Problem, *, rounds: int, impl: str = "auto") -> tuple[list[Row], str]:
    """The rows, and a line on what was left out ("" when nothing was). RuntimeError where ours is off fp64."""
    device, rows, left_out = p.hidden.device, list[Row](), ""
    for op, floor in floors(p).items():
        steps = {"matrix products": floor, "siri-kernels": ours(p, impl)[op], "full fp32 logits": plain(p)[op]}
        memory, errors = dict[str, int | None](), dict[str, float | None]()
        for name, step in list(steps.items()):
            try:
                memory[name] = peak_bytes(step, p)
                scores = step()
                errors[name] = None if name == "matrix products" else error(scores, p)
            except torch.cuda.OutOfMemoryError:
                if name != "full fp32 logits":
                    raise
                del steps[name]
                p.clear()
                left_out = f"{name}: left out, they do not fit into this GPU's memory"
        mine = errors["siri-kernels"]
        if mine is None or not mine <= TOLERANCE:
            raise RuntimeError(f"{op}: siri-kernels is {mine} nats off fp64 on these shapes; please report it")
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(rounds):
            for name, step in steps.items():
                times[name].append(milliseconds(step, device))
        medians = {name: statistics.median(samples) for name, samples in times.items()}
        base = medians["matrix products"]
        rows += [Row(op, name, ms, ms / base, memory[name], errors[name]) for name, ms in medians.items()]
    p.clear()
    return rows, left_out


def table(rows: Sequence[Row]) -> str:
    lines = [f"{'op':<17} {'what':<17} {'ms':>10} {'x products':>11} {'extra GB':>9} {'max error':>10}"]
    for row in rows:
        memory = "-" if row.extra_bytes is None else f"{row.extra_bytes / 1e9:.2f}"
        off = "-" if row.max_error is None else f"{row.max_error:.1e}"
        lines.append(f"{row.op:<17} {row.impl:<17} {row.ms:>10.2f} {row.ratio_to_gemm:>11.2f} {memory:>9} {off:>10}")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    at_least_one = whole_number
    p = argparse.ArgumentParser("python -m siri_kernels.bench", description=(__doc__ or "").split("\n\n")[1])
    p.add_argument("--tokens", type=at_least_one, help=f"packed tokens N ({GPU_SHAPE[0]}; on a CPU {CPU_SHAPE[0]})")
    p.add_argument("--hidden", type=at_least_one, help=f"hidden size D ({GPU_SHAPE[1]}; on a CPU {CPU_SHAPE[1]})")
    p.add_argument("--vocab", type=at_least_one, help=f"vocabulary V ({GPU_SHAPE[2]}; on a CPU {CPU_SHAPE[2]})")
    p.add_argument("--dtype", choices=DTYPES, help="of hidden states and weight (bf16; on a CPU fp32)")
    p.add_argument("--impl", default="auto", help="auto, or one implementation (see linear_logprob)")
    p.add_argument("--rounds", type=at_least_one, default=20, help="the time is the median over them (20)")
    p.add_argument("--device", choices=("cuda", "cpu"), help="default: a GPU if there is one")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    return p


def whole_number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on, got {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        print("--device cuda: this machine has no GPU that torch can use", file=sys.stderr)
        return 2
    defaults = GPU_SHAPE if device.type == "cuda" else CPU_SHAPE
    asked = (options.tokens, options.hidden, options.vocab)
    n, d, vocab = (given or default for given, default in zip(asked, defaults, strict=True))
    dtype = DTYPES[options.dtype or ("bf16" if device.type == "cuda" else "fp32")]
    if options.json and not options.json.parent.is_dir():
        print(f"--json {options.json}: there is no folder {options.json.parent}", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    about = {"device": name, "siri_kernels": siri_kernels.__version__, "torch": torch.__version__}
    about |= {"size": f"{n} x {d} x {vocab}", "dtype": str(dtype).removeprefix("torch."), "impl": options.impl}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    try:
        p = problem(n, d, vocab, dtype, device, options.impl)
        rows, left_out = measure(p, rounds=options.rounds, impl=options.impl)
    except ValueError as wrong:  # impl, or a shape that the implementation refuses
        print(wrong, file=sys.stderr)
        return 2
    except torch.cuda.OutOfMemoryError:
        print(f"{about['size']} does not fit into this GPU's memory: fewer --tokens", file=sys.stderr)
        return 2
    except RuntimeError as wrong:
        print(wrong, file=sys.stderr)
        return 1
    print(table(rows), flush=True)
    if left_out:
        print(left_out)
    if options.json:
        options.json.write_text(json.dumps(about | {"rows": [asdict(row) for row in rows]}, indent=1) + "\n")
        print(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
