"""Skipping work changes nothing: the update of the short way (kept rows only, no forward for old log-probs, importance
weights formed inside) is that of the plain way."""

import pytest
import torch
from siri_kernels import grpo_loss, linear_grpo_loss, linear_logprob

from tests.support.kernel_cases import make_case

OPTIONS = {
    "grpo": {},
    "tis": {"importance": "tis", "importance_cap": 1.1},
    "icepop": {"importance": "icepop", "importance_low": 0.8, "importance_cap": 1.2, "aggregation": "seq_mean"},
    "gspo": {"loss": "gspo"},
    "cispo": {"loss": "cispo", "importance": "tis"},
    "entropy": {"entropy_coef": 0.02, "aggregation": "seq_sum"},
}
SHORT = {
    "skip": {"forward_all": False},
    "gradients only": {"forward_all": True},
    "small chunks": {"forward_all": False, "memory": 9000},
    "lean": {"forward_all": False, "memory": "lean"},
}


def sgd_step(case, loss_of) -> list[torch.Tensor]:
    """The parameters after one step."""
    leaves = [case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_()]
    optimizer = torch.optim.SGD(leaves, lr=0.5)
    loss_of(*leaves).backward()
    optimizer.step()
    return [x.detach() for x in leaves]


def plain_way(case, options):
    """What a trainer without fused kernels does: a forward for the old log-probs, logits of every row, a loss."""
    with torch.no_grad():
        old_logp = linear_logprob(case.hidden, case.weight, case.target_ids, impl="reference")

    def loss_of(hidden, weight):
        logp, entropy = linear_logprob(hidden, weight, case.target_ids, impl="reference", return_entropy=True)
        per_token = {name: getattr(case, name) for name in ("rollout_logp", "mask", "cu_seqlens")}
        return grpo_loss(logp, old_logp, case.advantages, entropy=entropy, **per_token, **options).loss

    return sgd_step(case, loss_of)


def in_fp64(seed):
    case = make_case(seed)
    for name, value in vars(case).items():
        if value.is_floating_point():
            setattr(case, name, value.double())
    return case


@pytest.mark.parametrize("short", SHORT)
@pytest.mark.parametrize("name", OPTIONS)
def test_the_first_update_needs_no_forward_of_its_own(name, short):
    case, options = in_fp64(300 + list(OPTIONS).index(name)), OPTIONS[name]
    zero_advantage = (case.advantages == 0)[torch.bucketize(torch.arange(65), case.cu_seqlens[1:], right=True)]
    useful = case.mask if options.get("entropy_coef") else case.mask & ~zero_advantage
    keep = useful.nonzero().squeeze(1)
    assert keep.numel() < 65 * 0.8

    def loss_of(hidden, weight):
        per_token = {name: getattr(case, name) for name in ("rollout_logp", "mask", "cu_seqlens")}
        return linear_grpo_loss(
            hidden, weight, case.target_ids, case.advantages, keep=keep, **per_token, **options, **SHORT[short]
        ).loss

    for before, mine, expected in zip(
        (case.hidden, case.weight), sgd_step(case, loss_of), plain_way(case, options), strict=True
    ):
        assert float((expected - before).abs().max()) > 1e-4, "an update happens"
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-13)


def test_later_updates_take_the_log_probs_of_before_the_first():
    """Two mini-batches of one rollout: both old log-probs under the weights that sampled."""
    first, second = in_fp64(310), in_fp64(311)
    second.weight = first.weight
    names = ("mask", "cu_seqlens")
    with torch.no_grad():
        old = [linear_logprob(c.hidden, first.weight, c.target_ids) for c in (first, second)]

    def two_steps(old_logps, **options):
        weight = first.weight.clone().requires_grad_()
        optimizer = torch.optim.SGD([weight], lr=0.5)
        for case, old_logp in zip((first, second), old_logps, strict=True):
            per_token = {name: getattr(case, name) for name in names}
            result = linear_grpo_loss(
                case.hidden, weight, case.target_ids, case.advantages, old_logp=old_logp, **per_token, **options
            )
            optimizer.zero_grad()
            result.loss.backward()
            optimizer.step()
        return weight.detach(), result

    plain, _ = two_steps(old, impl="reference")
    short, result = two_steps((None, old[1]), forward_all=False)
    assert float(result.metrics["ratio_max"]) > 1.0001, "the second mini-batch is off-policy"
    torch.testing.assert_close(short, plain, rtol=0, atol=1e-13)
