"""The anchored-exp GEMM and what surrounds it, interpreted on CPU tensors, against the fp64 reference."""

import math
import subprocess
import sys

import pytest
import torch
from siri_kernels import linear_grpo_loss, linear_logprob, reference
from siri_kernels.rows.anchored import rows as rows_anchored
from siri_kernels.rows.anchored import tiles as plans
from siri_kernels.rows.anchored.rows import AnchoredRows
from siri_kernels.rows.protocol import Head
from siri_kernels.rows.torch import finish
from siri_kernels.sharding import Shard

from tests.support import kernel_cases
from tests.support.kernel_cases import GRADIENT, KERNEL_OPTIONS, assert_same, exact_problem, make_case, relative, run

BF16 = torch.bfloat16
HALF = 4e-3


@pytest.fixture(autouse=True)
def half_precision_gradients(monkeypatch):
    monkeypatch.setattr(kernel_cases, "GRADIENT", {**GRADIENT, BF16: HALF})


def reference_loss(*args, **options):
    return reference.linear_grpo_loss(*args, **{k: v for k, v in options.items() if k not in ("memory", "impl")})


def small_case(seed, lengths=(5, 0, 19, 1, 15), d=72, vocab=333, **options):
    """More than one tile of rows, of columns and of depth, none of them full."""
    case = make_case(seed, lengths=lengths, d=d, vocab=vocab, dtype=BF16, **options)
    case.bias = case.bias.float()  # its gradient is often a single number, which bf16 would round twice
    return case


def by_pointers(monkeypatch):
    """As on GPUs without tensor descriptors."""
    monkeypatch.setattr(plans, "INTERPRETER", dict.fromkeys((True, False), plans.INTERPRETER[False]))


def check(case, **options):
    result, gradients = run(linear_grpo_loss, case, impl="anchored", upstream=3.0, **options)
    expected, expected_gradients = run(reference_loss, case, upcast=True, upstream=3.0, **options)
    assert_same(result, gradients, expected, expected_gradients, BF16)
    assert all(float(x.abs().max()) > 0 for x in gradients if x is not None), "nothing was compared"
    return result, gradients


@pytest.mark.parametrize("name", KERNEL_OPTIONS)
def test_matches_the_reference(name):
    options = dict(KERNEL_OPTIONS[name])
    if options.get("memory") == 3904:
        options["memory"] = 12_000  # two chunks
    elif options.get("memory") == 300:
        options["memory"] = 20_000  # several slices of the vocabulary
    check(small_case(list(KERNEL_OPTIONS).index(name) + 152), **options)


def test_without_tensor_descriptors(monkeypatch):
    by_pointers(monkeypatch)
    check(small_case(170), temperature=0.7)
    check(small_case(171, d=70), softcap=2.5, entropy_coef=0.05)


def test_a_hidden_size_without_descriptors():
    case = small_case(172, d=70)
    assert not plans.pick_tile(case.hidden, case.weight, busy=False).descriptors
    check(case)


def test_one_epilogue_part_is_as_good_as_two(monkeypatch):
    monkeypatch.setattr(plans, "INTERPRETER", {**plans.INTERPRETER, True: plans.Tile(32, 128, 64, 4, 1)})
    check(small_case(173), importance="tis")


def test_descriptors_made_by_the_kernel(monkeypatch):
    """The plan with specialised warps; the roles of warps are the compiler's and no interpreter shows them."""
    tile = plans.Tile(32, 128, 64, 4, 1, subtiles=2, specialized=True)
    monkeypatch.setattr(plans, "INTERPRETER", {**plans.INTERPRETER, True: tile})
    check(small_case(174), temperature=0.7)
    check(small_case(175), softcap=2.5, entropy_coef=0.05, memory="lean")


@pytest.mark.parametrize("options", [{}, {"logit_dtype": "bf16"}, {"softcap": 3.0}, {"entropy_coef": 0.1}], ids=str)
@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_a_temperature_per_row(options, memory):
    case = small_case(174, lengths=(20, 15))
    case.bias = None
    temperature = torch.linspace(0.5, 2.0, 35)
    if "logit_dtype" not in options:
        check(case, temperature=temperature, memory=memory, **options)
        return
    # a logit on a rounding boundary may fall to either side: compare with logits rounded from fp32, not from fp64
    tensors = {k: v for k, v in case.loss_tensors().items() if k != "bias"}
    result, gradients = run(
        linear_grpo_loss, case, tensors=tensors, temperature=temperature, memory=memory, impl="anchored", **options
    )
    expected, expected_gradients = run(
        linear_grpo_loss, case, tensors=tensors, temperature=temperature, impl="torch", **options
    )
    torch.testing.assert_close(result.logp, expected.logp, rtol=1e-5, atol=1e-5)
    assert all(relative(x, y) < 2 * HALF for x, y in zip(gradients[:2], expected_gradients[:2], strict=True))


def exact_logp(hidden, weight, target_ids):
    """In fp64, the log-prob with its relative accuracy near 0, which log_softmax does not have."""
    z = hidden.double() @ weight.double().T
    target = target_ids[:, None]
    others = (z - z.gather(1, target)).exp().scatter(1, target, 0.0).sum(1)
    return -torch.log1p(others), reference.logprob_and_entropy(z, target_ids)[1]


@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_the_entropy_pass_is_made_only_for_a_bonus(monkeypatch, memory):
    """The pass over E that an entropy gradient needs; without it only the target's column is written."""
    passes, gradient = [], rows_anchored.gradient
    monkeypatch.setattr(rows_anchored, "gradient", lambda *args: passes.append(args[-1] is not None) or gradient(*args))
    for entropy_coef in (0.0, 0.01):
        run(
            linear_grpo_loss, small_case(178, lengths=(6, 5)), impl="anchored", memory=memory, entropy_coef=entropy_coef
        )
    assert passes == [False, True]


def engine(hidden, weight, target_ids, anchor=None, **head):
    options = {"anchor": anchor, "entropy_gradient": False}
    size = (hidden.shape[0], weight.shape[0], torch.float32)
    return AnchoredRows(hidden, Head(weight, **head), target_ids, Shard(), *size, **options)


@pytest.mark.parametrize("off", [-30.0, 0.0, 30.0, "zero", "nan"])
@pytest.mark.parametrize("kind", ["usual", "likely", "impossible", "uniform", "one-hot"])
def test_any_anchor(kind, off):
    """p from 1 - 1e-13 to 1e-25, all equal, all in one token; anchors wrong by 30 nats: the same log-prob, entropy and
    gradient, to fp32's last digits, and nothing needs to be redone."""
    hidden, weight, target_ids = exact_problem(seed=1)
    n = hidden.shape[0]
    if kind in ("likely", "impossible", "one-hot"):
        # a token of their own makes the targets likely, or unlikely, without touching the other logits
        hidden = torch.cat([hidden / 4, torch.zeros(n, 64, dtype=BF16)], 1)
        hidden[:, 64] = torch.linspace(24, 30, n).to(BF16) if kind == "likely" else 56.0
        weight = torch.cat([weight, torch.zeros(300, 64, dtype=BF16)], 1)
        weight[7, 64] = 1.0
        target_ids = torch.full((n,), 8 if kind == "impossible" else 7)
        if kind == "one-hot":
            hidden[:, 64] = 512.0
    elif kind == "uniform":
        hidden = torch.zeros_like(hidden)
    exact, exact_entropy = exact_logp(hidden, weight, target_ids)
    anchor = {"zero": torch.zeros(n), "nan": torch.full((n,), torch.nan)}.get(off)
    anchor = (exact + off).float() if anchor is None else anchor
    rows_of = engine(hidden, weight, target_ids, anchor)
    redone = []
    rows_of._redo = lambda *args: redone.append(int(args[-1].sum()))
    stats = rows_of.forward(slice(0, n))
    assert redone == [0]
    logp, entropy, log_sum = finish(*stats)
    torch.testing.assert_close(logp.double(), exact, rtol=1e-5, atol=1e-30 if kind in ("likely", "one-hot") else 4e-6)
    torch.testing.assert_close(entropy.double(), exact_entropy, rtol=2e-5, atol=2e-5)
    g = torch.linspace(-1, 1, n)
    e, v = rows_of.gradient(slice(0, n), stats, log_sum, logp, entropy, g, None)
    z = (hidden.double() @ weight.double().T).requires_grad_()
    (g.double() * z.log_softmax(1).gather(1, target_ids[:, None]).squeeze(1)).sum().backward()
    dz = v.double()[:, None] * e.double()
    target = target_ids[:, None]
    torch.testing.assert_close(dz.gather(1, target), z.grad.gather(1, target), rtol=5e-3, atol=1e-37)
    assert all(relative(x, y) < 5e-3 for x, y in zip(dz, z.grad, strict=True))


def far_case():
    """Targets 60 to 300 nats below the top: some within range, some beyond."""
    hidden, weight, _ = exact_problem(n=40, seed=2)
    hidden = torch.cat([hidden / 4, torch.zeros(40, 64, dtype=BF16)], 1)
    weight = torch.cat([weight, torch.zeros(300, 64, dtype=BF16)], 1)
    hidden[:, 64] = torch.linspace(40, 300, 40).to(BF16)
    weight[9, 64] = 1.0
    target_ids = torch.randint(10, 300, (40,), generator=torch.Generator().manual_seed(2))
    return hidden, weight, target_ids


@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_rows_out_of_range_are_redone(memory):
    hidden, weight, target_ids = far_case()
    rows_of = engine(hidden, weight, target_ids)
    counts, redo = [], rows_of._redo
    rows_of._redo = lambda *args: (counts.append(int(args[-1].sum())), redo(*args))
    rows_of.forward(slice(0, 40))
    beyond = -exact_logp(hidden, weight, target_ids)[0] > 100 * math.log(2)  # sums above 2^100, long before infinity
    assert counts[0] == int(beyond.sum()) and 20 < counts[0] < 40
    advantages = torch.linspace(-1, 1, 40)
    results = []
    for x, w, impl in ((hidden, weight, "anchored"), (hidden.double(), weight.double(), "torch")):
        leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
        options = {"memory": memory, "entropy_coef": 0.01, "impl": impl}
        result = linear_grpo_loss(*leaves, target_ids, advantages.to(w.dtype), **options)
        result.loss.backward()
        results.append((result, [leaf.grad for leaf in leaves]))
    (mine, my_gradients), (exact, exact_gradients) = results
    torch.testing.assert_close(mine.logp.double(), exact.logp, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(mine.entropy.double(), exact.entropy, rtol=1e-5, atol=1e-5)
    assert all(relative(x, y) < HALF for x, y in zip(my_gradients, exact_gradients, strict=True))
    assert mine.metrics["nonfinite_tokens"] == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_a_nan_is_seen_or_harmless(bad, memory):
    case = small_case(175, lengths=(20, 16))
    row = int(case.mask.nonzero()[0])
    case.hidden[row, 0] = bad
    tensors = {"mask": case.mask, "cu_seqlens": case.cu_seqlens}
    options = {"tensors": tensors, "impl": "anchored", "memory": memory, "keep": torch.arange(36)}
    result, gradients = run(linear_grpo_loss, case, **options)
    assert result.loss.isnan() and result.logp[row].isnan() and gradients[1].isnan().any()
    assert float(result.metrics["nonfinite_tokens"]) == 1 and result.metrics["ratio_max"].isnan()
    case.mask[row] = False
    result, gradients = run(linear_grpo_loss, case, **options)
    assert result.loss.isfinite()


def test_a_row_that_nobody_counts_is_cleared():
    hidden, weight, target_ids = exact_problem()
    hidden[3] = torch.nan
    n = hidden.shape[0]
    rows_of = engine(hidden, weight, target_ids)
    stats = rows_of.forward(slice(0, n))
    logp, entropy, log_sum = finish(*stats)
    g = torch.ones(n)
    g[3] = g[4] = 0
    e, v = rows_of.gradient(slice(0, n), stats, log_sum, logp, entropy, g, None)
    assert float(e[3].abs().sum()) == 0 and v[3] == 0 and v[4] == 0 and e[2:5].isfinite().all()


def test_banned_tokens():
    case = small_case(176, vocab=200)
    case.target_ids = case.target_ids.clamp(max=139)
    case.bias[140:] = -torch.inf
    result, gradients = run(linear_grpo_loss, case, impl="anchored", entropy_coef=0.1)
    case.weight, case.bias = case.weight[:140], case.bias[:140]
    expected, expected_gradients = run(reference_loss, case, upcast=True, entropy_coef=0.1)
    torch.testing.assert_close(result.logp.double(), expected.logp, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.entropy.double(), expected.entropy, rtol=1e-5, atol=1e-5)
    assert relative(gradients[0], expected_gradients[0]) < HALF and float(gradients[1][140:].abs().sum()) == 0


@pytest.mark.parametrize("vocab", [1, 2, 128, 129])
def test_small_vocabularies(vocab):
    case = make_case(vocab, lengths=(3, 4), d=8, vocab=vocab, dtype=BF16)
    result, _ = run(linear_grpo_loss, case, impl="anchored")
    expected, _ = run(reference_loss, case, upcast=True)
    torch.testing.assert_close(result.logp.double(), expected.logp, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("leaf", ["hidden", "weight", "bias"])
@pytest.mark.parametrize("impl", ["anchored", "fallback"])
def test_a_gradient_of_a_single_leaf(impl, leaf):
    """A frozen trunk or a frozen head: what is not asked for is not made, and nothing stumbles over its absence."""
    case = small_case(8)
    leaves = {name: getattr(case, name).detach().clone() for name in ("hidden", "weight", "bias")}
    exact = {name: value.double() for name, value in leaves.items()}
    for tensors in (leaves, exact):
        tensors[leaf].requires_grad_()
    linear_logprob(leaves["hidden"], leaves["weight"], case.target_ids, bias=leaves["bias"], impl=impl).sum().backward()
    z_NV = reference.logits(exact["hidden"], exact["weight"], bias=exact["bias"])
    reference.logprob_and_entropy(z_NV, case.target_ids)[0].sum().backward()
    assert relative(leaves[leaf].grad, exact[leaf].grad) < HALF
    assert all(value.grad is None for name, value in leaves.items() if name != leaf)


@pytest.mark.parametrize("lengths", [(), (0,), (1,)], ids=str)
def test_ragged_lengths(lengths):
    case = small_case(177, lengths=lengths, per_token=True)
    case.mask[:] = True
    result, gradients = run(linear_grpo_loss, case, impl="anchored")
    expected, expected_gradients = run(reference_loss, case, upcast=True)
    assert_same(result, gradients, expected, expected_gradients, BF16)


def test_other_dtypes_take_the_fallback():
    for dtype in (torch.float16, torch.float32):
        case = make_case(5, lengths=(6,), d=16, dtype=dtype)
        mine, _ = run(linear_grpo_loss, case, impl="anchored")
        fallback, _ = run(linear_grpo_loss, case, impl="fallback")
        assert torch.equal(mine.logp, fallback.logp)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}, {"softcap": 2.0}], ids=str)
def test_log_probs_do_not_depend_on_the_packing(options):
    """Bit for bit: other rows around it, another place in the tile, another chunk."""
    hidden, weight, target_ids = exact_problem(n=75)
    anchor = -6 * torch.rand(75)
    packings = [torch.randperm(75), torch.arange(30, 75), torch.tensor([50]), torch.arange(75).flip(0)]
    whole = linear_logprob(hidden, weight, target_ids, anchor=anchor, impl="anchored", return_entropy=True, **options)
    for order in packings:
        part = linear_logprob(
            hidden[order], weight, target_ids[order], anchor=anchor[order], impl="anchored", return_entropy=True,
            **options,
        )  # fmt: skip
        assert all(torch.equal(x[order], y) for x, y in zip(whole, part, strict=True))


@pytest.mark.parametrize("memory", ["fast", "lean", 10_000])
def test_the_ratio_of_an_unchanged_policy_is_exactly_one(memory):
    hidden, weight, target_ids = exact_problem(n=50)
    rollout_logp = exact_logp(hidden, weight, target_ids)[0].float() + 0.3 * torch.randn(50)
    with torch.no_grad():
        old_logp = linear_logprob(hidden, weight, target_ids, anchor=rollout_logp, impl="anchored")
    hidden.requires_grad_()
    advantages = torch.randn(50)
    options = {"old_logp": old_logp, "rollout_logp": rollout_logp, "memory": memory, "impl": "anchored"}
    result = linear_grpo_loss(hidden, weight, target_ids, advantages, **options)
    assert result.metrics["ratio_max"] == 1 and result.metrics["approx_kl"] == 0
    assert torch.equal(result.logp, old_logp)


def test_a_chunk_holds_whole_waves_of_the_next_gemm():
    """E takes two bytes: 'fast' has room for three waves of 2816 rows at D = 1536, 'small' for one."""
    from siri_kernels.chunked import BUDGET, bytes_per_logit, whole_waves

    rows = {
        (d, memory): whole_waves(BUDGET["cuda"][memory] // (vocab * bytes_per_logit("anchored", BF16)), d, 132)
        for d, vocab in ((1536, 151_936), (3584, 152_064))
        for memory in ("fast", "small")
    }
    assert rows[1536, "fast"] == 8448 and rows[1536, "small"] == 2816 and rows[3584, "fast"] == 8448
    assert rows[3584, "small"] <= 3008 and rows[3584, "small"] % 128 == 0


def test_vocabulary_shards(tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.anchored_shards_worker", str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=900)[0].decode() for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(o[-3000:] for o in outputs)


@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_kept_rows_give_the_update_of_all_rows(memory):
    """Bit for bit where the kernels decide (loss, log-probs of kept rows); the host's matrix product, which is not
    independent of the rows around, to fp32's last digits."""
    hidden, weight, target_ids = exact_problem(n=60)
    g = torch.Generator().manual_seed(1)  # the loss must not happen to cancel: its error is that of its terms
    advantages = torch.randn(60, generator=g) * (torch.arange(60) % 3 > 0)
    rollout_logp = exact_logp(hidden, weight, target_ids)[0].float() + 0.2 * torch.randn(60, generator=g)
    keep = advantages.nonzero().squeeze(1)
    outcomes = []
    for options in ({"keep": torch.arange(60)}, {"keep": keep, "forward_all": False}):
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        result = linear_grpo_loss(
            *leaves, target_ids, advantages, rollout_logp=rollout_logp, importance="tis", memory=memory,
            denominator=60, impl="anchored", **options,
        )  # fmt: skip
        result.loss.backward()
        outcomes.append((result, [leaf.grad for leaf in leaves]))
    (whole, gradients), (short, short_gradients) = outcomes
    assert torch.equal(whole.logp[keep], short.logp[keep]) and short.logp[::3].isnan().all()
    torch.testing.assert_close(short.loss, whole.loss, rtol=1e-6, atol=0)
    for x, y in zip(short_gradients, gradients, strict=True):
        assert relative(x, y) < 2e-3 and relative(x, y) < 0.5 * 2**-8
    assert float(gradients[0][::3].abs().max()) == 0
