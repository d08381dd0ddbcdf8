"""Padded batches through the adapters' two functions, and the loop of one's own that uses them."""

import pytest
import torch
from siri_kernels import chunked, linear_grpo_loss
from siri_kernels.integrations.padded import padded_grpo_loss, padded_logprob, rows_with_gradient
from torch import nn

from tests.support.integration_cases import leaves, logprob_and_entropy, padded_batch, peak_bytes
from tests.support.kernel_cases import relative

tests_tiny = pytest.importorskip("tests.support.tiny", reason="transformers is not installed")


@pytest.mark.parametrize("masked", [False, True])
def test_rows_that_a_gpu_leaves_out_have_no_gradient(masked):
    """What padded_grpo_loss passes as `keep` on CUDA tensors changes neither loss nor gradients."""
    batch = padded_batch(8)
    batch.advantages[1] = 0
    counted = (torch.arange(12) % 3 > 0).expand(batch.mask.shape) if masked else None
    options = {"old_logp": batch.old, "clip_high": 0.2}
    hidden, weight = leaves(batch)
    result = padded_grpo_loss(hidden, weight, batch.ids, batch.mask, batch.advantages, loss_mask=counted, **options)
    result.loss.backward()
    packed, head = leaves(batch)
    advantages = batch.advantages[:, None].expand(batch.mask.shape)[batch.mask]
    counted_N = None if counted is None else counted[batch.mask]
    keep = rows_with_gradient(advantages, counted_N)
    useful = (advantages != 0) & (counted_N if masked else torch.ones_like(advantages, dtype=torch.bool))
    assert 0 < keep.numel() == int(useful.sum()) < advantages.numel()
    rows = (packed[batch.mask], head, batch.ids[batch.mask], advantages)
    options["old_logp"] = batch.old[batch.mask]
    expected = linear_grpo_loss(*rows, mask=counted_N, keep=keep, **options)
    expected.loss.backward()
    torch.testing.assert_close(result.loss, expected.loss)
    assert relative(hidden.grad, packed.grad) < 1e-6 and relative(weight.grad, head.grad) < 1e-6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_padded_batches_on_a_device():
    """The adapters' two functions, on a GPU as on a CPU."""
    batch = padded_batch(9, (70, 200, 0, 90), d=64, vocab=1031)
    batch.advantages[1] = 0
    results = []
    for device in ("cpu", "cuda"):
        hidden, weight = (x.detach().to(device).requires_grad_() for x in leaves(batch))
        ids, mask, advantages, old = (x.to(device) for x in (batch.ids, batch.mask, batch.advantages, batch.old))
        loss = padded_grpo_loss(hidden, weight, ids, mask, advantages, old_logp=old, aggregation="seq_mean").loss
        logp, entropy = padded_logprob(hidden, weight, ids, mask, temperature=0.7)
        (loss + logp.mean() + entropy.mean()).backward()
        results.append([x.detach().cpu() for x in (loss, logp, entropy, hidden.grad, weight.grad)])
    for x, y in zip(*results, strict=True):
        assert relative(y, x) < 1e-4


@pytest.mark.parametrize("head", ["linear", "fused"])
def test_a_plain_loop(head):
    from siri_kernels import FusedLMHead
    from siri_kernels.integrations.transformers import policy_loss, token_logprobs

    model = tests_tiny.tiny_model()
    ids = torch.randint(3, 90, (3, 10))
    attention = torch.ones_like(ids)
    attention[0, :3] = 0
    completion = (torch.arange(10) > 4).long().expand(3, 10) * (torch.arange(10) < torch.tensor([10, 7, 9])[:, None])
    advantages = torch.tensor([1.0, -1.0, 0.5])
    z = model(input_ids=ids, attention_mask=attention).logits[:, :-1].float() / 0.8
    logp, entropy = logprob_and_entropy(z, torch.eye(96), ids[:, 1:])
    old = logp.detach() + 0.1
    mask = completion[:, 1:].bool()
    ratio = (logp - old).exp()
    term = -torch.min(ratio * advantages[:, None], ratio.clamp(0.8, 1.28) * advantages[:, None])
    loss = (term * mask).sum() / mask.sum()
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    if head == "fused":
        model.lm_head = FusedLMHead.of(model.lm_head)
    result = policy_loss(model, ids, attention, completion, advantages, old_logp=old, temperature=0.8)
    result.loss.backward()
    torch.testing.assert_close(result.loss.detach(), loss.detach(), rtol=1e-5, atol=1e-6)
    for gradient, expected in zip((p.grad for p in model.parameters()), gradients, strict=True):
        assert relative(gradient, expected) < 1e-5
    torch.testing.assert_close(result.logp, (logp * mask).detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.entropy, (entropy * mask).detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        token_logprobs(model, ids, attention, completion, temperature=0.8)[0], logp * mask, rtol=1e-5, atol=1e-5
    )


def test_heads_that_a_loop_must_not_get_wrong():
    from siri_kernels import FusedLMHead
    from siri_kernels.integrations.transformers import token_logprobs

    ids = torch.ones(1, 4, dtype=torch.long)
    model = tests_tiny.tiny_model()
    model.lm_head.lora_A = nn.Identity()
    with pytest.raises(ValueError, match=r"FusedLMHead\.of"):
        token_logprobs(model, ids, ids)
    model = tests_tiny.tiny_model()
    model.lm_head, model.config.final_logit_softcapping = FusedLMHead.of(model.lm_head), 30.0
    with pytest.raises(ValueError, match="softcap=30"):
        token_logprobs(model, ids, ids)
    model.config.logit_scale = 0.5
    with pytest.raises(ValueError, match="scales its logits"):
        token_logprobs(model, ids, ids)


def test_logits_of_a_plain_loop_are_never_whole(monkeypatch):
    from siri_kernels.integrations.transformers import policy_loss

    monkeypatch.setitem(chunked.BUDGET["cpu"], "fast", 32 << 20)  # its default holds a problem of this size whole
    model = tests_tiny.tiny_model(vocab_size=32768, max_position_embeddings=1024)
    ids = torch.randint(3, 90, (2, 800))
    ones = torch.ones_like(ids)

    def step():
        policy_loss(model, ids, ones, ones, torch.tensor([1.0, -1.0])).loss.backward()

    assert peak_bytes(step) < 0.6 * 1600 * 32768 * 4
