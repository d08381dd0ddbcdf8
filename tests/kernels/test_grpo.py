"""linear_grpo_loss on the CPU against the fp64 reference: values, gradients, options, scaling and splitting."""

import pytest
import siri_kernels
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from siri_kernels import linear_grpo_loss, reference
from siri_kernels.chunked import whole_waves

from tests.support.kernel_cases import assert_same, make_case, relative, run

OPTIONS = {
    "grpo": {},
    "no-clip": {"clip_low": None, "clip_high": None},
    "dual-clip": {"dual_clip": 1.2},
    "tis": {"importance": "tis", "importance_cap": 1.1},
    "icepop": {"importance": "icepop", "importance_low": 0.8, "importance_cap": 1.3},
    "entropy": {"entropy_coef": 0.05},
    "gspo": {"loss": "gspo", "clip_low": 0.02, "clip_high": 0.03},
    "gspo-chunked": {"loss": "gspo", "memory": 1000, "entropy_coef": 0.01, "importance": "tis"},
    "cispo": {"loss": "cispo", "clip_low": None},
    "cispo-low": {"loss": "cispo", "importance": "icepop"},
    "seq-mean": {"aggregation": "seq_mean"},
    "seq-sum": {"aggregation": "seq_sum"},
    "dr-grpo": {"aggregation": "seq_mean_fixed", "fixed_length": 100},
    "denominator": {"denominator": 7.5, "aggregation": "seq_mean"},
    "temperature": {"temperature": 0.7},
    "softcap": {"softcap": 2.5, "temperature": 1.3, "entropy_coef": 0.1},
    "small-chunks": {"memory": 1000},
    "lean": {"memory": "lean", "entropy_coef": 0.02},
    "lean-softcap": {"memory": "lean", "softcap": 2.5, "entropy_coef": 0.02, "temperature": 0.9},
}
ONLY_FAST = ("memory",)


def reference_loss(*args, **options):
    return reference.linear_grpo_loss(*args, **{k: v for k, v in options.items() if k not in ONLY_FAST})


def check(case, dtype, **options):
    result, gradients = run(linear_grpo_loss, case, **options)
    expected, expected_gradients = run(reference_loss, case, upcast=True, **options)
    assert_same(result, gradients, expected, expected_gradients, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_matches_the_reference(name, dtype):
    case = make_case(list(OPTIONS).index(name), dtype=dtype)
    check(case, dtype, upstream=3.0, **OPTIONS[name])


def test_bf16_logits_reproduce_the_rollouts_grid():
    # in fp64 only: next to a rounding boundary a logit rounds differently in fp32
    check(make_case(30, dtype=torch.float64), torch.float64, logit_dtype="bf16", entropy_coef=0.1)
    check(make_case(31, dtype=torch.float64), torch.float64, logit_dtype="bf16", memory="lean")


@pytest.mark.parametrize("lengths", [(), (0,), (1,), (0, 0, 5), (700, 1, 333)], ids=str)
@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean"])
def test_ragged_lengths(lengths, aggregation):
    case = make_case(3, lengths=lengths, per_token=True)
    check(case, torch.float32, aggregation=aggregation, memory=50_000)


@pytest.mark.parametrize("vocab", [1, 2, 3, 17, 1000, 4097, 32_003, 128_257])
def test_vocabularies(vocab):
    check(make_case(vocab, vocab=vocab, dtype=torch.float32), torch.float32, entropy_coef=0.03)


def test_a_real_vocabulary():
    check(make_case(5, lengths=(3, 4), d=64, vocab=151_936), torch.float32, entropy_coef=0.01)
    check(make_case(6, lengths=(3, 4), d=64, vocab=151_936), torch.float32, memory="lean")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_combination_of_options(data):
    draw = data.draw
    lengths = tuple(draw(st.lists(st.integers(0, 12), min_size=1, max_size=5)))
    loss = draw(st.sampled_from(["grpo", "gspo", "cispo"]))
    aggregation = draw(st.sampled_from(["token_mean", "seq_mean", "seq_sum", "seq_mean_fixed"]))
    options = {
        "loss": loss,
        "aggregation": aggregation,
        "fixed_length": 16 if aggregation == "seq_mean_fixed" else None,
        "importance": draw(st.sampled_from(["none", "tis", "icepop"])),
        "clip_low": draw(st.sampled_from([None, 0.1, 0.3])),
        "clip_high": draw(st.sampled_from([None, 0.1, 0.4])),
        "dual_clip": None if loss == "cispo" else draw(st.sampled_from([None, 1.1, 3.0])),
        "entropy_coef": draw(st.sampled_from([0.0, 0.1, -0.1])),
        "temperature": draw(st.sampled_from([1.0, 0.6])),
        "softcap": draw(st.sampled_from([None, 4.0])),
        "denominator": draw(st.sampled_from([None, 3.0, torch.tensor(11)])),
        "memory": draw(st.sampled_from(["fast", "lean", 3000])),
    }
    case = make_case(draw(st.integers(0, 10_000)), lengths, vocab=draw(st.integers(1, 40)), dtype=torch.float64)
    if draw(st.booleans()):
        case.old_logp = None
    if draw(st.booleans()):
        case.mask = None
    check(case, torch.float64, **options)


def test_per_token_temperature():
    case = make_case(8)
    temperature = torch.linspace(0.5, 2.0, case.hidden.shape[0])
    check(case, torch.float32, temperature=temperature, entropy_coef=0.1)
    check(case, torch.float32, temperature=temperature, memory="lean", softcap=3.0)


@pytest.mark.parametrize("loss", ["grpo", "gspo", "cispo"])
@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_gradcheck(loss, memory):
    case = make_case(4, lengths=(3, 2), d=3, vocab=4, dtype=torch.float64)
    options = {k: v for k, v in case.loss_tensors().items() if k != "bias"}

    def value(hidden, weight, bias):
        return linear_grpo_loss(
            hidden,
            weight,
            case.target_ids,
            case.advantages,
            bias=bias,
            loss=loss,
            entropy_coef=0.0 if loss == "cispo" else 0.1,
            clip_low=None,
            clip_high=None,
            memory=memory,
            **options,
        ).loss

    inputs = [x.clone().requires_grad_() for x in (case.hidden, case.weight, case.bias)]
    if loss != "cispo":  # its surrogate is not the derivative of its value
        assert torch.autograd.gradcheck(value, inputs)
    expected, gradients = run(reference.linear_grpo_loss, case, loss=loss, clip_low=None, clip_high=None)
    mine, mine_gradients = run(linear_grpo_loss, case, loss=loss, clip_low=None, clip_high=None, memory=memory)
    assert_same(mine, mine_gradients, expected, gradients, torch.float64)


def test_on_policy_ratio_is_exactly_one():
    case = make_case(11)
    for memory in ("fast", 2000, "lean"):
        result, gradients = run(
            linear_grpo_loss, case, tensors={"mask": case.mask, "cu_seqlens": case.cu_seqlens}, memory=memory
        )
        assert float(result.metrics["ratio_max"]) == 1.0
        assert float(result.metrics["approx_kl"]) == 0.0
        assert float(result.metrics["clip_low_fraction"]) == float(result.metrics["clip_high_fraction"]) == 0.0
        assert gradients[1].abs().sum() > 0
        # passing the log-probs it returned is the same step
        again, again_gradients = run(
            linear_grpo_loss,
            case,
            tensors={"mask": case.mask, "cu_seqlens": case.cu_seqlens, "old_logp": result.logp},
            memory=memory,
        )
        assert torch.equal(again.loss, result.loss)
        assert all(relative(x, y) < 1e-6 for x, y in zip(again_gradients, gradients, strict=True))


def test_any_upstream_gradient_and_a_second_backward():
    case = make_case(12, dtype=torch.bfloat16)
    _, once = run(linear_grpo_loss, case)
    _, scaled = run(linear_grpo_loss, case, upstream=1024.0)
    assert all(torch.equal(x * 1024, y) for x, y in zip(once, scaled, strict=True))
    weight = case.weight.clone().requires_grad_()
    loss = linear_grpo_loss(case.hidden, weight, case.target_ids, case.advantages, cu_seqlens=case.cu_seqlens).loss
    loss.backward(retain_graph=True)
    first = weight.grad.clone()
    loss.backward()
    assert torch.equal(weight.grad, first * 2)
    weight.grad = None
    (loss.detach() + 0 * loss.detach()).add(torch.zeros((), requires_grad=True)).backward()
    assert weight.grad is None


@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean", "seq_sum"])
@pytest.mark.parametrize("loss", ["grpo", "gspo"])
def test_micro_batches_add_up_and_order_does_not_matter(aggregation, loss):
    lengths = (9, 4, 31, 1, 24)
    case = make_case(21, lengths=lengths, dtype=torch.float64)
    options = {"aggregation": aggregation, "loss": loss, "entropy_coef": 0.01}
    whole, whole_gradients = run(linear_grpo_loss, case, **options)
    denominator = case.mask.sum() if aggregation == "token_mean" else len(lengths)
    weight = case.weight.clone().requires_grad_()
    total, parts = 0.0, []
    for group in ([3, 1], [4], [0, 2]):
        rows = torch.cat([torch.arange(case.cu_seqlens[s], case.cu_seqlens[s + 1]) for s in group])
        result = linear_grpo_loss(
            case.hidden[rows],
            weight,
            case.target_ids[rows],
            case.advantages[group],
            cu_seqlens=torch.tensor([0, *torch.tensor([lengths[s] for s in group]).cumsum(0).tolist()]),
            mask=case.mask[rows],
            old_logp=case.old_logp[rows],
            bias=case.bias,
            denominator=denominator,
            **options,
        )
        result.loss.backward()
        total += float(result.loss.detach())
        parts.append(result.metrics)
        torch.testing.assert_close(result.logp, whole.logp[rows])
    assert abs(total - float(whole.loss.detach())) < 1e-12
    assert relative(weight.grad, whole_gradients[1]) < 1e-12
    merged = siri_kernels.merge_metrics(parts)
    for name, value in merged.items():
        torch.testing.assert_close(value, whole.metrics[name], msg=name)


@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_all_masked(memory):
    case = make_case(13)
    case.mask[:] = False
    result, gradients = run(linear_grpo_loss, case, entropy_coef=0.1, memory=memory)
    assert float(result.loss.detach()) == 0 and all(float(x.abs().sum()) == 0 for x in gradients)
    assert all(float(v) == 0 for v in result.metrics.values())
    assert result.logp.isfinite().all()


def test_keep_and_forward_all():
    case = make_case(14)
    n = case.hidden.shape[0]
    keep = torch.arange(n)[case.mask][::2].flip(0)
    for options in ({}, {"memory": "lean"}, {"memory": 3000, "entropy_coef": 0.1}, {"loss": "gspo"}):
        for forward_all in (True, False):
            check(case, torch.float32, keep=keep, forward_all=forward_all, **options)


@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_rows_without_a_gradient_are_found_and_skipped(memory):
    case = make_case(14)
    sequence = reference.sequence_ids(case.cu_seqlens, case.hidden.shape[0])
    dead = ~case.mask | (case.advantages[sequence] == 0)
    skipping, gradients = run(linear_grpo_loss, case, forward_all=False, memory=memory)
    assert torch.equal(skipping.logp.isnan(), dead) and torch.equal(skipping.entropy.isnan(), dead)
    assert float(skipping.metrics["tokens"]) == float((~dead).sum())
    dense, dense_gradients = run(linear_grpo_loss, case)
    torch.testing.assert_close(skipping.loss, dense.loss)
    assert all(relative(x, y) < 1e-6 for x, y in zip(gradients, dense_gradients, strict=True))


def test_a_sequence_ratio_needs_every_counted_token_of_a_live_sequence():
    case = make_case(15, per_token=True, dtype=torch.float64)
    case.advantages[::3] = 0
    check(case, torch.float64, loss="gspo", forward_all=True)
    check(case, torch.float64, loss="gspo", memory=500)


def test_frozen_parts_get_no_gradient():
    case = make_case(16)
    options = {"cu_seqlens": case.cu_seqlens}
    for memory in ("fast", "lean"):
        hidden = case.hidden.clone().requires_grad_()
        args = (case.target_ids, case.advantages)
        linear_grpo_loss(hidden, case.weight, *args, memory=memory, **options).loss.backward()
        weight = case.weight.clone().requires_grad_()
        linear_grpo_loss(case.hidden, weight, *args, memory=memory, **options).loss.backward()
        _, both = run(linear_grpo_loss, case, tensors=options)
        assert relative(hidden.grad, both[0]) < 1e-5 and relative(weight.grad, both[1]) < 1e-5
    with torch.no_grad():
        assert not linear_grpo_loss(hidden, weight, *args, **options).loss.requires_grad


@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_main_grad_takes_the_weight_gradient(memory):
    case = make_case(17, dtype=torch.bfloat16)
    _, expected = run(reference.linear_grpo_loss, case, upcast=True)
    main_grad = torch.ones(case.weight.shape)
    _, gradients = run(linear_grpo_loss, case, main_grad=main_grad, upstream=2.0, memory=memory)
    assert gradients[1] is None
    assert relative((main_grad - 1) / 2, expected[1]) < 1e-5, "fp32, not rounded to bf16"


def test_results_are_identical_when_run_again():
    case = make_case(18, lengths=(200, 300))
    first, first_gradients = run(linear_grpo_loss, case, memory=20_000)
    second, second_gradients = run(linear_grpo_loss, case, memory=20_000)
    assert torch.equal(first.loss, second.loss) and torch.equal(first.logp, second.logp)
    assert all(torch.equal(x, y) for x, y in zip(first_gradients, second_gradients, strict=True))


@pytest.mark.parametrize("loss", ["grpo", "gspo"])
def test_int32_indices_are_as_good_as_int64(loss):
    case = make_case(19)
    keep = case.mask.nonzero().squeeze(1)
    expected, expected_gradients = run(linear_grpo_loss, case, keep=keep, loss=loss)
    case.target_ids, case.cu_seqlens = case.target_ids.int(), case.cu_seqlens.int()
    result, gradients = run(linear_grpo_loss, case, keep=keep.int(), loss=loss)
    assert torch.equal(result.loss, expected.loss)
    assert all(torch.equal(x, y) for x, y in zip(gradients, expected_gradients, strict=True))


def test_strided_inputs_are_as_good_as_contiguous_ones():
    case = make_case(20)
    expected, expected_gradients = run(linear_grpo_loss, case)
    case.weight = case.weight.T.contiguous().T
    case.hidden = torch.stack([case.hidden, case.hidden], 1)[:, 1]
    case.old_logp = torch.stack([case.old_logp, case.old_logp], 1)[:, 0]
    result, gradients = run(linear_grpo_loss, case)
    torch.testing.assert_close(result.loss, expected.loss)
    assert all(relative(x, y) < 1e-5 for x, y in zip(gradients, expected_gradients, strict=True))


def test_chunks_on_a_gpu_are_whole_waves():
    """132 multiprocessors, tiles of 128 x 256: the rows that fill the dX GEMM's last wave."""
    assert [whole_waves(rows, 1536, 132) for rows in (4224, 5700, 8448)] == [2816, 5632, 8448]
    assert [whole_waves(rows, 3584, 132) for rows in (4000, 6100, 8448)] == [3584, 6016, 8448]
    assert whole_waves(100, 1536, 132) == 100
