"""Sequence-level ratios (GSPO): three GEMMs while a sequence fits into a chunk, and sums that long sequences do not
wear out."""

import pytest
import torch
from siri_kernels import api, chunked, grpo_loss, kept_rows, linear_grpo_loss, reference
from siri_kernels.loss.tokens import segment_sum

from tests.support.kernel_cases import assert_same, make_case, relative, run

GSPO = {"loss": "gspo", "clip_low": 0.02, "clip_high": 0.03}
LENGTHS = (9, 0, 31, 1, 24, 17, 3)
OTHER = ("memory", "impl", "keep_lengths")


def reference_loss(*args, **options):
    return reference.linear_grpo_loss(*args, **{k: v for k, v in options.items() if k not in OTHER})


def rows(n: int, vocab=61) -> int:
    """Bytes of a chunk of n rows: logits twice, in fp32."""
    return n * vocab * 8


class Products:
    """FLOPs of the matrix products while it is in place."""

    def __init__(self, monkeypatch):
        self.flops = 0
        for owner, name, first in ((torch, "mm", 0), (torch, "addmm", 1), (torch.Tensor, "addmm_", 1)):
            self.count(monkeypatch, owner, name, first)

    def count(self, monkeypatch, owner, name, first):
        function = getattr(owner, name)

        def counted(*args, **options):
            a, b = args[first : first + 2]
            self.flops += 2 * a.shape[0] * a.shape[1] * b.shape[1]
            return function(*args, **options)

        monkeypatch.setattr(owner, name, counted)


@pytest.mark.parametrize(
    ("options", "times"),
    [
        ({"loss": "grpo", "memory": rows(20)}, 6),
        ({"loss": "gspo", "memory": rows(85)}, 6),
        ({"loss": "gspo", "memory": rows(31)}, 6),  # the longest sequence fits exactly
        ({"loss": "gspo", "memory": rows(30)}, 8),
        ({"loss": "gspo", "memory": "lean"}, 8),
    ],
)
def test_how_many_products(monkeypatch, options, times):
    case = make_case(1, lengths=LENGTHS, per_token=False)
    case.advantages = torch.ones(len(LENGTHS))
    n, (vocab, d) = sum(LENGTHS), case.weight.shape
    # without clips, which would spare the backward of four products some rows
    tensors = {"cu_seqlens": case.cu_seqlens, "old_logp": case.old_logp, "clip_low": None, "clip_high": None}
    counter = Products(monkeypatch)
    run(linear_grpo_loss, case, tensors=tensors, **options)
    assert counter.flops == times * n * d * vocab


@pytest.mark.parametrize("entropy_coef", [0.0, 0.02])
@pytest.mark.parametrize("forward_all", [True, False])
@pytest.mark.parametrize("given", ["nothing", "keep", "lengths", "both"])
def test_chunks_that_end_between_sequences(monkeypatch, given, forward_all, entropy_coef):
    case = make_case(2, lengths=LENGTHS)
    sequence = torch.repeat_interleave(torch.arange(7), torch.tensor(LENGTHS))
    # kept as the trainer does it: whole sequences, those of no advantage left out
    alive = (case.advantages != 0) | bool(entropy_coef)
    keep, lengths = alive[sequence].nonzero().squeeze(1), torch.tensor(LENGTHS)
    options = {**GSPO, "forward_all": forward_all, "entropy_coef": entropy_coef, "memory": rows(32)}
    if given in ("keep", "both"):
        options["keep"] = keep
    if given in ("lengths", "both"):
        options["keep_lengths"] = lengths if given == "lengths" else lengths * alive
    if given == "both":  # all that there is on a GPU
        monkeypatch.setattr(kept_rows, "sequence_ids", lambda *_: pytest.fail("looked at tensors of a device"))
    monkeypatch.setattr(api, "logprob_operator", lambda **_: pytest.fail("went the way of four products"))
    pieces, chunks = [], chunked.chunks
    monkeypatch.setattr(chunked, "chunks", lambda *args: pieces.append(chunks(*args)) or pieces[-1])
    result, gradients = run(linear_grpo_loss, case, **options)
    if "keep" not in options and not forward_all:  # found by value
        options["keep"] = keep[case.mask[keep]]
    expected, expected_gradients = run(reference_loss, case, upcast=True, **options)
    assert_same(result, gradients, expected, expected_gradients, torch.float32)
    assert len(pieces[-1]) >= 2, "the point of it"


def test_a_compiled_loss_has_no_graph_break():
    """It cannot look at lengths: the way of four products."""
    case = make_case(3, lengths=LENGTHS)
    tensors = {k: v for k, v in case.loss_tensors().items() if k != "bias"}

    def loss(hidden, keep_lengths):
        options = {**GSPO, "memory": rows(32), "keep_lengths": keep_lengths}
        return linear_grpo_loss(hidden, case.weight, case.target_ids, case.advantages, **tensors, **options).loss

    lengths = torch.tensor(LENGTHS)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(case.hidden, lengths), loss(case.hidden, lengths), rtol=1e-6, atol=1e-6)


def drift(n: int) -> torch.Tensor:
    """Log ratios that grow for half of a sequence and fall for the other half, to a mean of about 5e-4: in fp32, one
    after the other, their small parts are lost beside sums of 8e4."""
    noise = 1e-3 * torch.rand(n, generator=torch.Generator().manual_seed(0))
    return torch.where(torch.arange(n) < n // 2, 10.0, -10.0) + noise


def test_sums_over_16k_tokens():
    delta, offsets = drift(16_384), torch.tensor([0, 16_384])
    exact = delta.double().sum()
    naive = torch.zeros(())
    for x in delta:
        naive = naive + x
    assert abs(naive - exact) > 1e-2 * exact, "nothing is shown by this sequence"
    assert abs(delta.bfloat16().double().sum() - exact) > 1e-2 * exact
    assert float((segment_sum(delta, offsets)[0] - exact).abs()) <= float(exact) * 2**-24


def test_the_ratio_of_16k_tokens():
    n, g = 16_384, torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(n, 8, generator=g), torch.randn(16, 8, generator=g)
    target_ids, offsets, advantages = torch.randint(16, (n,), generator=g), torch.tensor([0, n]), torch.ones(1)
    exact_logp, _ = reference.logprob_and_entropy(hidden.double() @ weight.double().T, target_ids)
    old_logp = (exact_logp - drift(n)).float()
    expected = (exact_logp - old_logp.double()).mean().exp()
    assert 1e-4 < abs(expected - 1) < 1e-3, "GSPO's clip ranges"
    options = {"cu_seqlens": offsets, "old_logp": old_logp, "loss": "gspo", "clip_low": 3e-4, "clip_high": 4e-4}
    fused = linear_grpo_loss(hidden, weight, target_ids, advantages, **options)
    # fp32 log-probs err by 1e-7 each, and the ratio is rounded to fp32
    assert abs(float(fused.metrics["ratio_max"].double() - expected)) < 2e-7
    alone = grpo_loss(exact_logp.float(), advantages=advantages, **options)
    assert abs(float(alone.metrics["ratio_max"].double() - expected)) < 2e-7
    assert relative(fused.logp, exact_logp) < 1e-6


@pytest.mark.parametrize(
    ("keep_lengths", "words"),
    [
        (torch.tensor([9.0]), "ints on the host"),
        ([9, 0, 31, 1, 24], "ints on the host"),
        (torch.tensor([9, 0, 31, 1]), r"shape \[5\]"),
        (torch.tensor([9, 0, 31, 1, 23]), "add up to the 65 rows"),
    ],
)
def test_bad_lengths(keep_lengths, words):
    case = make_case(4)
    with pytest.raises(ValueError, match=words):
        linear_grpo_loss(
            case.hidden, case.weight, case.target_ids, case.advantages, cu_seqlens=case.cu_seqlens, loss="gspo",
            keep_lengths=keep_lengths,
        )  # fmt: skip
