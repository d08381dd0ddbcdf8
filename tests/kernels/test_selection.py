"""Which implementation runs where, and what becomes of one that does not work there. No GPU: devices are named, not
there."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from siri_kernels import selection, self_check
from siri_kernels.rows.anchored import tiles
from siri_kernels.selection import select

BF16 = torch.bfloat16


def named(*shape, dtype=BF16, device="cuda:0"):
    """A tensor as far as the choice looks at it."""
    return SimpleNamespace(shape=torch.Size(shape), dtype=dtype, device=torch.device(device))


@pytest.fixture
def gpu(monkeypatch):
    """A mocked GPU: its compute capability, and what the self-check finds and how often it is asked."""
    state = SimpleNamespace(arch=90, fault=None, asked=[], capturing=False)

    def verify(device, tile, d_model, head, vocab_tail):
        state.asked.append((device.index, head, d_model % 64, vocab_tail))
        assert select("anchored", named(9, d_model), named(7, d_model)) == "anchored", "the check needs what it checks"
        return state.fault

    for module in (tiles, self_check):
        monkeypatch.setattr(module, "capability", lambda _: state.arch)
    monkeypatch.setattr(self_check, "verify", verify)
    monkeypatch.setattr(self_check, "_faults", {})
    monkeypatch.setattr(self_check, "_agreed", {})
    monkeypatch.setattr(selection, "_warned", set())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state.capturing)
    return state


@pytest.mark.parametrize(
    ("expected", "arch", "dtype", "d", "vocab"),
    [
        ("anchored", 90, BF16, 1536, 151_936),
        ("anchored", 90, BF16, 3584, 152_064),
        ("anchored", 90, BF16, 1544, 1024),
        ("fallback", 90, BF16, 1540, 151_936),  # rows of 3080 bytes: no TMA
        ("fallback", 90, BF16, 1536, 1023),
        ("fallback", 90, torch.float16, 1536, 151_936),
        ("fallback", 90, torch.float32, 1536, 151_936),
        ("torch", 90, torch.float64, 1536, 151_936),
        ("fallback", 80, BF16, 1536, 151_936),
        ("fallback", 89, BF16, 1536, 151_936),
        ("fallback", 100, BF16, 1536, 151_936),
        ("fallback", 120, BF16, 1536, 151_936),
    ],
)
def test_auto_on_a_gpu(gpu, expected, arch, dtype, d, vocab):
    gpu.arch = arch
    for n in (0, 1, 100_000):  # passes over other rows must agree
        assert select("auto", named(n, d, dtype=dtype), named(vocab, d, dtype=dtype)) == expected
    assert len(gpu.asked) == (expected == "anchored")


@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32, torch.float64])
def test_auto_elsewhere(gpu, dtype):
    sliced = "sliced" if dtype in (BF16, torch.float32) else "torch"
    assert select("auto", named(5, 1536, dtype=dtype, device="cpu"), named(5000, 1536)) == sliced
    assert select("auto", named(5, 1536, dtype=dtype, device="cpu"), named(4000, 1536)) == "torch"
    assert select("auto", named(5, 1536, dtype=dtype)) == ("torch" if dtype == torch.float64 else "fallback"), "logits"
    assert gpu.asked == []


@pytest.mark.parametrize("impl", ["reference", "torch", "fallback", "triton", "anchored"])
def test_what_is_asked_for(gpu, impl):
    gpu.arch = 80
    assert select(impl, named(5, 66), named(9, 66)) == ("fallback" if impl == "triton" else impl)
    if impl == "anchored":
        assert select(impl, named(5, 66, dtype=torch.float16), named(9, 66)) == "fallback"
        assert select(impl, named(5, 66)) == "fallback", "given logits"
    if impl in ("anchored", "triton", "fallback"):
        for like, words in ((named(5, 66, dtype=torch.float64), "fp64"), (named(5, 66, device="cpu"), "needs CUDA")):
            with pytest.raises(ValueError, match=words):
                select(impl, like, named(9, 66))
    with pytest.raises(ValueError, match="did you mean"):
        select("anchor", named(5, 66))


def test_triton_is_the_best_there_is(gpu):
    like, weight = named(5, 1536), named(151_936, 1536)
    assert select("triton", like, weight) == select("auto", like, weight) == "anchored"
    gpu.arch = 80
    assert select("triton", like, weight) == "fallback"


def test_every_kind_of_head_is_tried_once_per_device(gpu):
    like, weight, vector = named(5, 1536), named(151_936, 1536), torch.ones(5)
    for _ in range(3):
        select("auto", like, weight)
        select("auto", like, weight, temperature=0.7)  # a number is no other kernel
        select("anchored", named(7, 1536), weight)
    assert gpu.asked == [(0, (False,) * 4, 0, 128)]
    kinds = [{"temperature": vector}, {"bias": vector}, {"softcap": 3.0}, {"logit_dtype": "bf16"}]
    for kind in kinds * 2:
        select("auto", like, weight, **kind)
    assert [asked[1].index(True) for asked in gpu.asked[1:]] == [0, 1, 2, 3]
    select("auto", like, named(152_064, 1536))  # whole tiles
    select("auto", named(5, 1544), named(151_936, 1544))  # a part of a step of depth
    select("auto", named(5, 1536, device="cuda:1"), weight)
    select("auto", like, weight)
    assert [(a[0], *a[2:]) for a in gpu.asked[5:]] == [(0, 0, 0), (0, 8, 128), (1, 0, 128)]


def test_another_plan_is_tried_again(gpu):
    like, weight = named(5, 1536), named(151_936, 1536)
    before = tiles.plan_name()
    try:
        for name in tiles.PLANS:
            assert tiles.use_plan(name) in tiles.PLANS
            select("auto", like, weight)
            assert tiles.planned_tile(90, 1536, busy=True) == tiles.BUSY_TILES[90]
    finally:
        tiles.use_plan(before)
    assert len(gpu.asked) == len(tiles.PLANS) == 3
    with pytest.raises(ValueError, match="flat, specialized, two-blocks"):
        tiles.use_plan("fast")


def test_a_fault_is_told_once_and_avoided(gpu):
    gpu.fault = "log-prob off by 3.0e-01, more than 1e-04"
    like, weight = named(5, 1536), named(151_936, 1536)
    with pytest.warns(RuntimeWarning, match=r"takes the fallback: log-prob off by 3.0e-01") as seen:
        assert select("auto", like, weight) == "fallback"
    assert len(seen) == 1 and "\n" not in str(seen[0].message) and "cuda:0 (a GPU)" in str(seen[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert select("auto", like, weight) == "fallback"
    with pytest.raises(ValueError, match=r"does not work on cuda:0 .* use impl='auto' or 'fallback'"):
        select("anchored", like, weight)
    assert len(gpu.asked) == 1


def test_a_kernel_that_does_not_compile_is_a_fault(monkeypatch):
    def fails(*_):
        raise RuntimeError("PassManager::run failed\nand a page of IR")

    monkeypatch.setattr(self_check, "difference", fails)
    tile = tiles.INTERPRETER[True]
    fault = self_check.verify(torch.device("cpu"), tile, 64, (False,) * 4, vocab_tail=0)
    assert fault == "RuntimeError: PassManager::run failed"


def test_an_interrupt_leaves_no_verdict(gpu, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    like, weight, verify = named(5, 1536), named(151_936, 1536), self_check.verify
    monkeypatch.setattr(self_check, "verify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        select("auto", like, weight)
    monkeypatch.setattr(self_check, "verify", verify)
    assert select("auto", like, weight) == "anchored" and len(gpu.asked) == 1


def test_nothing_is_tried_inside_a_capture(gpu):
    like, weight = named(5, 1536), named(151_936, 1536)
    gpu.capturing = True
    with pytest.warns(RuntimeWarning, match="call it once before"):
        assert select("auto", like, weight) == "fallback"
    with pytest.raises(ValueError, match="call it once before"):
        select("anchored", like, weight)
    assert gpu.asked == []
    gpu.capturing = False
    assert select("auto", like, weight) == "anchored"
    gpu.capturing = True
    assert select("auto", like, weight) == "anchored"


def test_torch_compile_asks_while_it_traces(gpu):
    def step(x):
        chosen = selection.on_gpu_of("auto", 0, 1536, 151_936, (False,) * 4, None)
        return x + (1 if chosen == "anchored" else 2)

    compiled = torch.compile(step, fullgraph=True, backend="eager")
    assert float(compiled(torch.zeros(()))) == 1 and len(gpu.asked) == 1


def test_ranks_agree(gpu, monkeypatch):
    """A fault of one rank is everybody's: the implementations meet in different collectives."""
    others = [1]
    monkeypatch.setattr("siri_kernels.sharding.resolve_group", lambda name: name)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x, group: x.add_(others[0]))
    tensor = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *args, device=None, **options: tensor(*args, **options))
    group = SimpleNamespace(group_name="tp")
    like, weight = named(5, 1536), named(100, 1536)  # a shard may be small
    with pytest.warns(RuntimeWarning, match="failed on another rank"):
        assert select("auto", like, weight, group=group) == "fallback"
    others[0] = 0
    assert select("auto", like, weight, group=SimpleNamespace(group_name="pp")) == "anchored"
    gpu.fault = "late"
    with pytest.raises(ValueError, match="on this rank alone"):  # the same group, a shard with another last tile
        select("auto", like, named(256, 1536), group=SimpleNamespace(group_name="pp"))
