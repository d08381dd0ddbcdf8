"""Lengths choose no binary and no order of sums: what every launch would compile, for batches of any number of rows,
cut anywhere. Triton's own binder says it (`support.launches`); nothing is run."""

import itertools
import re
from functools import partial

import pytest
import torch
from siri_kernels import self_check
from siri_kernels.chunked import Needs
from siri_kernels.loss.spec import LossSettings
from siri_kernels.ops.grpo import linear_grpo
from siri_kernels.ops.logprob import linear_logprob, logits_logprob
from siri_kernels.ops.settings import GrpoSettings, HeadSettings, LogitsSettings, LogprobSettings, Placement
from siri_kernels.rows.anchored import kernels as anchored_kernels
from siri_kernels.rows.anchored import tiles
from triton.runtime.jit import JITFunction

from tests.support.launches import Launches

CHUNK = 37
"""rows of a chunk: its ends, and with them what starts at a chunk's first row, are aligned to nothing"""
D, V = 64, 2 * 256 + 80
LENGTHS = (1, 2, 8, 15, 16, 17, 32, 37, 38, 64, 100, 128, 160)
HEADS = {"plain": (False,) * 4, "all": (True,) * 4, "temperature and bias": (True, True, False, False)}


@pytest.fixture(autouse=True)
def as_on_hopper(monkeypatch):
    monkeypatch.setattr(tiles, "capability", lambda device: 90)


def head_of(head, n, start=0):
    """Settings and tensors of a kind of head for n rows that start anywhere in their storage."""
    per_row, biased, capped, rounded = head
    tensors = {
        "target_ids": torch.zeros(n + 3, dtype=torch.int64)[start : start + n],
        "temperature_N": torch.ones(n + 3)[start : start + n] if per_row else None,
        "bias": torch.zeros(V, dtype=torch.bfloat16) if biased else None,
        "main_grad": None,
    }
    return HeadSettings(1.0, 20.0 if capped else None, "bf16" if rounded else "fp32"), tensors


def step(impl, n, *, head=(False,) * 4, keep=None, start=0, entropy_coef=0.0, lean=False, d=D, dtype=torch.bfloat16):
    """One step: the loss, or with lean the log-probs, and their backward."""
    settings, tensors = head_of(head, n, start)
    hidden = torch.zeros(n + 3, d, dtype=dtype)[start : start + n].requires_grad_()
    weight = torch.zeros(V, d, dtype=dtype, requires_grad=True)
    matrices = {"hidden": hidden, "weight": weight, "keep": keep, **tensors}
    per_token = torch.ones(4, n + 3)[:, start : start + n]
    if lean:
        placement = Placement(impl, 2 * n * 300, columns=V)
        options = LogprobSettings(settings, placement)
        linear_logprob(**matrices, anchor=per_token[0], offset=None, settings=options).logp.sum().backward()
        return
    loss = LossSettings(entropy_coef=entropy_coef, importance="tis")
    needs = Needs(hidden=True, weight=True, bias=False)
    placement = Placement(impl, CHUNK * V * (2 if impl == "anchored" else 4), columns=V)
    tokens = {"advantages": per_token[1], "old_logp": per_token[2], "rollout_logp": per_token[3], "mask": None}
    tokens |= dict.fromkeys(("cu_seqlens", "denominator", "keep_lengths", "offset"))
    late = impl == "anchored" and (n if keep is None else len(keep)) <= CHUNK
    linear_grpo(**matrices, **tokens, settings=GrpoSettings(settings, loss, placement, needs, late)).loss.backward()


def binaries(monkeypatch, calls) -> dict:
    """(kernel, constants and types of tensors) -> the ways in which it would be compiled."""
    ways: dict = {}
    with Launches(monkeypatch) as launches:
        for call in calls:
            call()
    assert launches.seen
    for launch in launches.seen:
        pointers = tuple(kind for _, (kind, _) in launch.specialization if kind.startswith("*"))
        ways.setdefault((launch.kernel, (launch.constants, pointers)), set()).add(launch.specialization)
    return ways


def assert_one_way(ways):
    for _, (constants, _) in ways:
        assert "enable_fp_fusion" in dict(constants), "the compiler's default, which changes with its version"
    several = {key: way for key, way in ways.items() if len(way) > 1}
    for (kernel, _), way in several.items():
        names = {a[0] for pair in itertools.combinations(way, 2) for a, b in zip(*pair, strict=True) if a != b}
        pytest.fail(f"{kernel} is compiled in {len(way)} ways, by {', '.join(sorted(names))}")


KERNELS = {
    "anchored": {
        *("offsets_kernel", "descriptor_kernel", "pointer_kernel", "sums_kernel", "online_sums_kernel"),
        *("token_kernel", "gradient_kernel", "scale_rows_kernel", "metrics_kernel"),
    },
    "fallback": {"row_stats_kernel", "token_kernel", "dlogits_kernel", "metrics_kernel"},
}
NARROWING = {"scale_rows_kernel"}
"""A single chunk needs it in another form than several; both are warmed."""


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("impl", KERNELS)
def test_lengths_choose_no_binary(monkeypatch, impl, head):
    def call(n, start, indexed, entropy_coef):
        keep = torch.arange(n + 2)[1 : n + 1] if indexed else None
        return partial(step, impl, n + 2 * indexed, head=head, start=start, entropy_coef=entropy_coef, keep=keep)

    for options in itertools.product((False, True), (0.0, 0.1)):
        calls = [call(n, start, *options) for n, start in itertools.product(LENGTHS, (0, 1, 3))]
        ways = binaries(monkeypatch, calls)
        assert {kernel for kernel, _ in ways} == KERNELS[impl]
        assert_one_way(ways)
        alone, together = (
            {key for key in chosen if key[0] not in NARROWING} for chosen in (binaries(monkeypatch, calls[:1]), ways)
        )
        assert alone == together, "a single row takes other constants"


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("impl", KERNELS)
def test_nor_do_they_in_a_backward_that_recomputes(monkeypatch, impl, head):
    """Slices of the vocabulary are multiples of 16 as V is."""
    calls = [
        lambda n=n, start=start: step(impl, n, head=head, start=start, lean=True)
        for n, start in itertools.product(LENGTHS, (0, 1, 3))
    ]
    ways = binaries(monkeypatch, calls)
    assert {kernel for kernel, _ in ways} >= KERNELS[impl] - {"token_kernel", "metrics_kernel"} | {"finish_kernel"}
    assert_one_way(ways)
    assert ways.keys() == binaries(monkeypatch, calls[6:9]).keys()


def test_nor_for_hidden_sizes_without_descriptors(monkeypatch):
    assert_one_way(binaries(monkeypatch, [lambda n=n: step("anchored", n, start=n % 4, d=70) for n in LENGTHS]))


def test_nor_for_given_logits(monkeypatch):
    def given(n):
        logits = torch.zeros(n, V, requires_grad=True)
        target_ids = torch.zeros(n + 1, dtype=torch.int64)[1:]
        settings = LogitsSettings("fallback")
        out = logits_logprob(logits=logits, target_ids=target_ids, temperature_N=None, settings=settings)
        (out.logp.sum() + out.entropy.sum()).backward()

    ways = binaries(monkeypatch, [lambda n=n: given(n) for n in LENGTHS])
    assert {kernel for kernel, _ in ways} == {"row_stats_kernel", "dlogits_kernel"}
    assert_one_way(ways)


@pytest.mark.parametrize("layout", ["rows apart", "transposed", "one row of a transposed matrix"])
def test_a_tile_follows_from_the_hidden_size_alone(monkeypatch, layout):
    """However hidden lies in memory, gathered rows take the same kernel as those in place."""
    n = 1 if layout.startswith("one") else 20
    hidden = (
        torch.zeros(n, D + 3, dtype=torch.bfloat16)[:, 1 : D + 1]
        if layout == "rows apart"
        else torch.zeros(D, n).bfloat16().T
    )
    weight, target_ids = torch.zeros(V, D, dtype=torch.bfloat16), torch.zeros(n, dtype=torch.int64)
    placement, rest = (
        Placement("anchored", 1 << 20, columns=V),
        dict.fromkeys(("bias", "anchor", "offset", "temperature_N", "main_grad")),
    )
    settings = LogprobSettings(HeadSettings(), placement)
    calls = [
        lambda keep=keep, x=x: linear_logprob(
            hidden=x, weight=weight, target_ids=target_ids, keep=keep, **rest, settings=settings
        )
        for keep in (None, torch.arange(n - 1))[: 2 if n > 1 else 1]
        for x in (hidden, hidden.clone(memory_format=torch.contiguous_format))
    ]
    ways = binaries(monkeypatch, calls)
    assert_one_way(ways)
    assert len([kernel for kernel, _ in ways if kernel == "descriptor_kernel"]) == 1


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_the_self_check_warms_what_will_run(monkeypatch, head):
    """Every kernel around the GEMM that a step launches; the loss's own depends on its options."""
    tile = tiles.planned_tile(90, D, any(head[1:]))
    leaves, tensors, settings = self_check.problem(torch.device("cpu"), tile, 5 * tile.depth, head, V % tile.columns)
    tensors["rollout_logp"] = torch.zeros(len(tensors["target_ids"]))
    with Launches(monkeypatch) as checked:
        for entropy_coef, lean in itertools.product((0.0, 0.1), (False, True)):
            loss = LossSettings(entropy_coef=entropy_coef)
            options = {"lean": lean, "late": not entropy_coef}
            self_check.outcome(torch.bfloat16, "anchored", loss, leaves, tensors, settings, **options)
    with Launches(monkeypatch) as launched:
        for n, lean in itertools.product((1, 16, 100), (False, True)):
            step("anchored", n, head=head, lean=lean)
            step("anchored", n, head=head, entropy_coef=0.1)
    cold = {launch for launch in launched.seen if launch.kernel != "token_kernel"} - set(checked.seen)
    assert cold == set(), cold


def anchored_launches(monkeypatch, n, start):
    """What a step on n rows launches: stored, recomputed, with and without an entropy bonus."""
    with Launches(monkeypatch) as launches:
        for entropy_coef in (0.0, 0.1):
            step("anchored", n, start=start, entropy_coef=entropy_coef)
            step("fallback", n, start=start, entropy_coef=entropy_coef)
        step("anchored", n, start=start, lean=True)
    return set(launches.seen)


def test_every_kernel_is_compiled_once(monkeypatch):
    """For n % 16 of 0, 1 and 8: one variant, compiled as the launch would, and so one layout of its sums."""
    of_each = [anchored_launches(monkeypatch, n, start) for n, start in ((160, 0), (161, 1), (168, 3))]
    assert of_each[0] == of_each[1] == of_each[2]
    every = KERNELS["anchored"] | KERNELS["fallback"] | {"finish_kernel"}
    assert {launch.kernel for launch in of_each[0]} == every
    smallest = {kernel: next(launch for launch in of_each[0] if launch.kernel == kernel) for kernel in every}
    for kernel, launch in smallest.items():
        compiled = launch.compile()
        assert compiled.asm["cubin"], kernel


def specialised(kernel):
    """The kernel as Triton would have it without being told otherwise."""
    return JITFunction(kernel.fn)


def test_this_would_be_seen(monkeypatch):
    """Left to itself, Triton compiles the same kernel in several ways: for n = 1, for multiples of 16 and for others,
    and for target ids that start at an odd address."""
    monkeypatch.setattr(anchored_kernels, "sums_kernel", specialised(anchored_kernels.sums_kernel))
    ways = binaries(monkeypatch, [lambda n=n: launch_sums(n, n % 3) for n in (1, 8, 15, 16, 32)])
    (way,) = ways.values()
    assert len(way) == 4


def launch_sums(n, start):
    """n rows of a batch from its row `start` on; what the numbers are does not matter."""
    per_row = torch.zeros(n)
    target_ids = torch.zeros(n + 3, dtype=torch.int64)[start % 2 : start % 2 + n]
    anchored_kernels.sums(per_row, 594, per_row, per_row, target_ids, V, 0)


# --- the order of sums, as compiled


def reduction_layout(compiled) -> dict[str, list[int]]:
    """Of the tile [tiles, rows] whose columns `sums_kernel` adds up: how it is spread over registers, lanes, warps."""
    text = compiled.asm["ttgir"]
    (name,) = set(re.findall(r"\(tensor<32x32xf32, (#\w+)>\) -> tensor<32xf32", text))
    body = re.search(rf"^{name} = #ttg\.blocked<{{(.*)}}>", text, re.MULTILINE)[1]
    return {key: [int(x) for x in numbers.split(",")] for key, numbers in re.findall(r"(\w+) = \[([\d, ]+)\]", body)}


def pairwise(x):
    """Along the first axis, as lanes exchange: halves are added until nothing is left."""
    while len(x) > 1:
        x = x[: len(x) // 2] + x[len(x) // 2 :]
    return x[0]


def emulated_sums(partials, layout):
    """[rows] fp32 of partials [tiles, rows] in the order of the compiled kernel: registers one after the other, then
    lanes, then warps, then the next 32 tiles."""
    per_thread, lanes, warps = (layout[key][0] for key in ("sizePerThread", "threadsPerWarp", "warpsPerCTA"))
    tiles_, rows = partials.shape
    padded = torch.zeros(-(-tiles_ // 32) * 32, rows)
    padded[:tiles_] = partials
    total = torch.zeros(rows)
    for block in padded.split(32):
        spread = block.reshape(-1, warps, lanes, per_thread, rows)  # repetitions of what all threads cover together
        registers = spread.permute(0, 3, 1, 2, 4).flatten(0, 1)
        of_thread = registers[0]
        for register in registers[1:]:
            of_thread = of_thread + register
        total = total + pairwise(pairwise(of_thread.transpose(0, 1)))
    return total


def sums_of_batches(monkeypatch, lengths):
    """The sums of the same rows in batches of several lengths, whole and in chunks of 8448: the set of their bits."""
    rows = torch.Generator().manual_seed(0)
    partials = torch.rand(594, 64, generator=rows) ** 4
    compiled, bits = {}, set()
    for n in lengths:
        for size in (n, 8448):
            for start in range(0, n, size):
                with Launches(monkeypatch) as launches:
                    launch_sums(min(size, n - start), start)
                (launch,) = launches.seen
                if launch not in compiled:
                    compiled[launch] = emulated_sums(partials, reduction_layout(launch.compile()))
                bits.add(tuple(compiled[launch].tolist()))
    return bits


LENGTHS_TO_20_000 = (*range(1, 70), 255, 256, 257, 1000, 4097, 8447, 8448, 8449, 12_345, 16_896, 19_999, 20_000)


def test_a_row_has_the_same_bits_in_every_batch(monkeypatch):
    """An emulation of the compiled order of sums, for N from 1 to 20,000, in chunks and whole."""
    assert len(sums_of_batches(monkeypatch, LENGTHS_TO_20_000)) == 1


def test_other_bits_would_be_seen(monkeypatch):
    """Left to itself, the kernel gives a row other bits where the batch is a multiple of 16."""
    monkeypatch.setattr(anchored_kernels, "sums_kernel", specialised(anchored_kernels.sums_kernel))
    assert len(sums_of_batches(monkeypatch, (8447, 8448))) > 1
