"""How the goals are measured: times, memory, accuracy, synchronisations and odd shapes of one problem."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from kernel_peers import first_line
from kernel_problems import Problem, clear, clipped, exact, exact_rows, problem
from siri_kernels import linear_grpo_loss, linear_logprob, logprob_from_logits
from siri_kernels.reference import logits, logprob_and_entropy
from torch import Tensor

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


def warm_up(functions: dict[str, Callable], p: Problem, *, calls: int = 2) -> dict[str, float]:
    """Milliseconds of the last of `calls` calls. Who fails is dropped with one line: what is measured afterwards has
    been compiled, tuned and given its buffers."""
    times: dict[str, float] = {}
    for name, function in functions.items():
        clear(p)
        with guarded(name):
            for _ in range(calls - 1):
                function()
            times[name] = elapsed_ms(function)
    return times


@contextmanager
def guarded(name: str) -> Iterator[None]:
    """A failure inside becomes one line."""
    try:
        yield
    except Exception as error:  # peers fail with whatever they like
        print(f"{name} does not run at this size: {first_line(error)}", flush=True)
        if ON_GPU:
            with suppress(Exception):  # where the context is lost this fails too
                torch.cuda.empty_cache()


def median_ms(
    functions: dict[str, Callable], warm: dict[str, float], rounds: int, deadline: float = math.inf
) -> dict[str, float]:
    """Interleaved: every round runs each function once, so that clocks and heat meet all of them alike. `warm`: their
    times in the rounds before. After the deadline there is one round, and no more. Who fails is dropped."""
    fastest = min(warm.values(), default=0.0)
    samples: dict[str, list[float]] = {name: [] for name in warm}
    for round_ in range(rounds):
        if round_ and time.monotonic() > deadline:
            break
        for name in list(samples):
            if warm[name] < SLOW * fastest or round_ % 3 == 0:
                times = samples.pop(name)
                with guarded(name):
                    samples[name] = [*times, elapsed_ms(functions[name])]
    return {name: statistics.median(samples[name]) for name in warm if name in samples}


QUEUED = 8
"""Steps that `queued_ms` hands over before it waits"""


def queued_ms(functions: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Milliseconds a call where the host does not wait for each: medians of interleaved rounds of QUEUED calls. So a
    trainer meets them, whose queue is never empty; `median_ms` has the host's way to the first launch in every call."""

    def calls(function: Callable) -> None:
        for _ in range(QUEUED):
            function()

    samples = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            samples[name].append(elapsed_ms(lambda function=function: calls(function)) / QUEUED)
    return {name: statistics.median(times) for name, times in samples.items()}


def extra_bytes(function: Callable, p: Problem) -> int | None:
    """Peak device memory beyond the inputs, results included, of a function that has run before."""
    if not ON_GPU:
        return None
    clear(p)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


FLOOR_ROWS = 8448
"""Rows of one GEMM of the floor: whole waves of its tiles, and room for the logits of a large vocabulary"""


def gemms(p: Problem) -> dict[str, Callable]:
    """One forward GEMM, and the three of a step, through torch.mm in the input dtype; whole up to FLOOR_ROWS rows, by
    chunks of that many beyond. They write into buffers that are there."""
    x, w = p.hidden.detach(), p.weight.detach()
    rows = min(x.shape[0], FLOOR_ROWS)
    z = torch.zeros(rows, w.shape[0], device=x.device, dtype=x.dtype)
    dx, dw = torch.empty_like(x), torch.empty_like(w)

    def forward():
        for start in range(0, x.shape[0], rows):
            part = x[start : start + rows]
            torch.mm(part, w.T, out=z[: part.shape[0]])

    def three():
        for start in range(0, x.shape[0], rows):
            part = x[start : start + rows]
            dz = torch.mm(part, w.T, out=z[: part.shape[0]])
            torch.mm(dz, w, out=dx[start : start + rows])
            torch.mm(dz.T, part, out=dw)

    return {"gemm": forward, "gemms": three}


def relative(x: Tensor, expected: Tensor) -> float:
    return float((x.double() - expected).norm() / expected.norm())


SEVERAL = {} if ON_GPU else {"memory": 4 << 20}
"""Options with which a ragged problem takes several chunks; on a GPU those of the default do"""


def accuracy(p: Problem, **options) -> dict[str, float]:
    """Errors against fp64 and of a rerun, of one implementation; p is ragged and takes several chunks."""
    result, my_dx, my_dw = step(p, **options)
    again, again_dx, again_dw = step(p, **options)
    same = [(result.logp, again.logp), (my_dx, again_dx), (my_dw, again_dw)]
    reruns = max(float((a.double() - b.double()).abs().max()) for a, b in same)
    del again, again_dx, again_dw, same
    answer = exact(p, clipped(p, on_policy=True))
    clear(p)
    return {
        "G8.logp": float((result.logp - answer.logp).abs().max()),
        "G8.entropy": float((result.entropy - answer.entropy).abs().max()),
        "G9.dX": relative(my_dx, answer.d_hidden),
        "G9.dW": relative(my_dw, answer.d_weight),
        "G10.rerun": reruns,
    }


def step(p: Problem, **options):
    """The result of a step and its gradients."""
    clear(p)
    tensors = (p.hidden, p.weight, p.target_ids, p.advantages)
    result = linear_grpo_loss(*tensors, cu_seqlens=p.cu_seqlens, **SEVERAL, **options)
    result.loss.backward()
    return result, p.hidden.grad, p.weight.grad


def invariance(p: Problem, **options) -> dict[str, float]:
    """How far log-probs depend on the packing, and the ratio to old log-probs of the same weights from 1."""
    with torch.no_grad():
        old_logp = linear_logprob(p.hidden, p.weight, p.target_ids, **options)
    result, *_ = step(p, old_logp=old_logp, **options)
    off = max(abs(float(result.metrics["ratio_max"]) - 1), float((result.logp - old_logp).abs().max()))
    return {"packing": packing(p, result.logp, **options), "ratio": off}


def packing(p: Problem, logp: Tensor, **options) -> float:
    """The largest difference between log-probs of the whole batch and of its pieces: of one row, of sizes that 16
    divides and that it does not, in another order, and with gradients beside."""
    x, w, n = p.hidden.detach(), p.weight.detach(), logp.numel()
    small = min(777, n // 3)
    pieces = [slice(0, 1), slice(1, 1 + small), slice(small, small + small // 16 * 16), slice(n // 3, n - 5)]
    differences = [linear_logprob(x[rows], w, p.target_ids[rows], **options) - logp[rows] for rows in pieces]
    order = torch.randperm(n, device=x.device, generator=torch.Generator(x.device).manual_seed(2))
    differences.append(linear_logprob(x[order], w, p.target_ids[order], **options) - logp[order])
    rows = slice(small, n - small // 2)
    advantages = torch.ones(rows.stop - rows.start, device=x.device)
    part = linear_grpo_loss(x[rows].requires_grad_(), w, p.target_ids[rows], advantages, **SEVERAL, **options)
    return max(float(difference.abs().max()) for difference in (*differences, part.logp.detach() - logp[rows]))


def hard_logits(d: int, vocab: int, **options) -> dict[str, float]:
    """G17: the largest error of a log-prob where all logits share an offset, and where another token dominates."""
    errors = {}
    for kind in ("offset", "dominated"):
        p = problem((4099 if ON_GPU else 99, d, vocab), kind)
        with torch.no_grad():
            logp = linear_logprob(p.hidden, p.weight, p.target_ids, **options)
        expected, _ = exact_rows(p.hidden.detach().double(), p.weight.detach().double(), p.target_ids)
        errors[kind] = float((logp - expected).abs().max())
    return errors


def synchronisations(function: Callable) -> int:
    """1 if a step synchronises the host with the device, else 0."""
    function()  # compiles, and tries the anchored GEMM
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

    errors = {f"G13.vocab-{vocab}": error(259, vocab // small, d) for vocab in VOCABULARIES}
    errors["G13.ragged"] = max(error(n, 32_003 // small, d) for n in (1, 127, 2817, 4099))
    errors["G13.rows-70001"] = error(70_001 // small, 1031, 64)
    # one chunk of rows * V > 2^31 logits, and given logits of that many
    rows = -(-(2**31) // VOCABULARIES[0]) + 300 if ON_GPU else 150
    last = slice(rows - 64, rows)
    vocab = VOCABULARIES[0] // small
    errors["G13.offsets"] = error(rows, vocab, 128, last, memory=4 * rows * vocab)
    given = torch.randn(rows, vocab, device=device, generator=g, dtype=dtype)
    y = torch.randint(vocab, (rows,), device=device, generator=g)
    logp, _ = logprob_and_entropy(given[last].double(), y[last])
    errors["G13.logit-offsets"] = float((logprob_from_logits(given, y)[last] - logp).abs().max())
    del given
    x, w, y, a = case(300, 32_003 // small, d)
    result = linear_grpo_loss(x, w, y, a, mask=torch.zeros(300, dtype=torch.bool, device=device))
    result.loss.backward()
    errors["G13.all-masked"] = float(result.loss.detach().abs() + x.grad.abs().max() + w.grad.abs().max())
    return errors
