"""How the goals are measured: times, memory, accuracy, synchronisations and odd shapes of one problem."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from kernel_problems import Problem, clear, clipped, exact
from siri_kernels import linear_grpo_loss, linear_logprob, logprob_from_logits
from siri_kernels.reference import logits, logprob_and_entropy

ON_GPU = torch.cuda.is_available()
SLOW = 4.0
"""Contestants this many times slower than the fastest are timed in a third of the rounds."""


def elapsed_ms(function: Callable) -> float:
    if not ON_GPU:
        begin = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - begin)
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    function()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def median_ms(functions: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Interleaved: every round runs each function once, so that clocks and heat meet all of them alike. Two rounds are
    for warming up."""
    warm: dict[str, float] = {}
    for name, function in functions.items():
        function()
        warm[name] = elapsed_ms(function)
    fastest = min(warm.values())
    samples: dict[str, list[float]] = {name: [] for name in warm}
    for round_ in range(rounds):
        for name in samples:
            if warm[name] < SLOW * fastest or round_ % 3 == 0:
                samples[name].append(elapsed_ms(functions[name]))
    return {name: statistics.median(times) for name, times in samples.items()}


def extra_bytes(function: Callable, p: Problem) -> int | None:
    """Peak device memory beyond the inputs, results included."""
    if not ON_GPU:
        return None
    clear(p)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def gemms(p: Problem) -> dict[str, Callable]:
    """One forward GEMM, and the three of a step, through torch.mm in the input dtype, by chunks like ours."""
    x, w = p.hidden.detach(), p.weight.detach()
    rows = min(x.shape[0], 5632)
    z = torch.zeros(rows, w.shape[0], device=x.device, dtype=x.dtype)

    def one():
        for start in range(0, x.shape[0], rows):
            part = x[start : start + rows]
            torch.mm(part, w.T, out=z[: part.shape[0]])

    def three():
        for start in range(0, x.shape[0], rows):
            part = x[start : start + rows]
            dz = torch.mm(part, w.T, out=z[: part.shape[0]])
            dz @ w
            dz.T @ part

    return {"gemm": one, "gemms": three}


def relative(x: torch.Tensor, expected: torch.Tensor) -> float:
    return float((x.double() - expected).norm() / expected.norm())


def accuracy(p: Problem, **options) -> dict[str, float]:
    """Errors against fp64, a rerun, another packing and the on-policy ratio, of one implementation."""

    def step():
        clear(p)
        result = linear_grpo_loss(p.hidden, p.weight, p.target_ids, p.advantages, cu_seqlens=p.cu_seqlens, **options)
        result.loss.backward()
        return result, p.hidden.grad, p.weight.grad

    result, my_dx, my_dw = step()
    again, again_dx, again_dw = step()
    same = [(result.logp, again.logp), (my_dx, again_dx), (my_dw, again_dw)]
    reruns = max(float((a.double() - b.double()).abs().max()) for a, b in same)
    del again, again_dx, again_dw, same
    middle = slice(p.hidden.shape[0] // 3, 2 * p.hidden.shape[0] // 3)
    part = linear_logprob(p.hidden.detach()[middle], p.weight.detach(), p.target_ids[middle], **options)
    answer = exact(p, clipped(p, on_policy=True))
    clear(p)
    return {
        "G8.logp": float((result.logp - answer.logp).abs().max()),
        "G8.entropy": float((result.entropy - answer.entropy).abs().max()),
        "G9.dX": relative(my_dx, answer.d_hidden),
        "G9.dW": relative(my_dw, answer.d_weight),
        "G10.rerun": reruns,
        "G10.packing": float((part - result.logp[middle]).abs().max()),
        "G10.ratio": abs(float(result.metrics["ratio_max"]) - 1),
    }


def synchronisations(function: Callable) -> int:
    """1 if a step synchronises the host with the device, else 0."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        function()
    except RuntimeError as error:
        if "synchroniz" not in str(error):  # out of memory, say, is no synchronisation
            raise
        print(f"a step synchronises: {error}")
        return 1
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return 0


VOCABULARIES = (151_936, 152_064, 128_256, 248_320)


def shapes(d: int) -> dict[str, float]:
    """G13: the largest error of a log-prob for each vocabulary, ragged N and more rows than a grid dimension takes;
    what is left of loss and gradient when every row is masked; offsets past 32 bits. On a CPU at a hundredth."""
    device, dtype = ("cuda", torch.bfloat16) if ON_GPU else ("cpu", torch.float32)
    small = 1 if ON_GPU else 100
    g = torch.Generator(device).manual_seed(1)

    def case(n: int, vocab: int, d: int):
        x = torch.randn(n, d, device=device, generator=g).to(dtype).requires_grad_()
        w = (torch.randn(vocab, d, device=device, generator=g) * d**-0.5).to(dtype).requires_grad_()
        y = torch.randint(vocab, (n,), device=device, generator=g)
        return x, w, y, torch.randn(n, device=device, generator=g)

    def error(n: int, vocab: int, d: int, sampled: slice = slice(None), **options) -> float:
        x, w, y, a = case(n, vocab, d)
        result = linear_grpo_loss(x, w, y, a, **options)
        result.loss.backward()
        with torch.no_grad():
            logp, _ = logprob_and_entropy(logits(x[sampled].double(), w.double()), y[sampled])
        finite = bool(x.grad.isfinite().all() and w.grad.isfinite().all() and result.loss.isfinite())
        return float((result.logp[sampled] - logp).abs().max()) if finite else float("nan")

    found = {f"G13.vocab-{vocab}": error(259, vocab // small, d) for vocab in VOCABULARIES}
    found["G13.ragged"] = max(error(n, 32_003 // small, d) for n in (1, 127, 2817, 4099))
    found["G13.rows-70001"] = error(70_001 // small, 1031, 64)
    # one chunk of rows * V > 2^31 logits, and given logits of that many
    rows = -(-(2**31) // VOCABULARIES[0]) + 300 if ON_GPU else 150
    last = slice(rows - 64, rows)
    vocab = VOCABULARIES[0] // small
    found["G13.offsets"] = error(rows, vocab, 128, last, memory=4 * rows * vocab)
    given = torch.randn(rows, vocab, device=device, generator=g, dtype=dtype)
    y = torch.randint(vocab, (rows,), device=device, generator=g)
    logp, _ = logprob_and_entropy(given[last].double(), y[last])
    found["G13.logit-offsets"] = float((logprob_from_logits(given, y)[last] - logp).abs().max())
    del given
    x, w, y, a = case(300, 32_003 // small, d)
    result = linear_grpo_loss(x, w, y, a, mask=torch.zeros(300, dtype=torch.bool, device=device))
    result.loss.backward()
    found["G13.all-masked"] = float(result.loss.detach().abs() + x.grad.abs().max() + w.grad.abs().max())
    return found
