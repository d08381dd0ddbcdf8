"""The same loss and gradient as other trainers on the same tokens.

TRL and verl are written down as formulas of their padded batches (trl/trainer/grpo_trainer.py,
verl/trainer/ppo/core_algos.py); TRL's own loss and Liger's fused one run where they are installed.
"""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from siri_kernels import linear_grpo_loss, logprob_from_logits

from tests.support.kernel_cases import relative

LENGTHS = (7, 3, 12, 9)
D, VOCAB = 16, 53


class Padded:
    """The same four responses as a padded batch [B, T] and as packed tokens."""

    def __init__(self, seed=0):
        g = torch.Generator().manual_seed(seed)
        longest = max(LENGTHS)
        self.mask = torch.arange(longest)[None] < torch.tensor(LENGTHS)[:, None]
        self.hidden = torch.randn(4, longest, D, generator=g, dtype=torch.float64)
        self.weight = torch.randn(VOCAB, D, generator=g, dtype=torch.float64)
        self.ids = torch.randint(VOCAB, (4, longest), generator=g)
        self.advantages = torch.randn(4, generator=g, dtype=torch.float64)
        logp = self.logp(self.hidden, self.weight)
        self.old = logp + 0.3 * torch.randn(logp.shape, generator=g, dtype=torch.float64)
        self.rollout = logp + 0.3 * torch.randn(logp.shape, generator=g, dtype=torch.float64)
        self.cu_seqlens = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()])

    def logp(self, hidden, weight):
        return (hidden @ weight.T).log_softmax(-1).gather(-1, self.ids[..., None]).squeeze(-1)

    def theirs(self, loss_of_logp):
        """(loss, dW) of a function of the padded log-probs."""
        weight = self.weight.clone().requires_grad_()
        loss = loss_of_logp(self.logp(self.hidden, weight))
        loss.backward()
        return loss.detach(), weight.grad

    def ours(self, *, rollout=False, **options):
        weight = self.weight.clone().requires_grad_()
        extra = {"rollout_logp": self.rollout[self.mask]} if rollout else {}
        result = linear_grpo_loss(
            self.hidden[self.mask],
            weight,
            self.ids[self.mask],
            self.advantages,
            old_logp=self.old[self.mask],
            cu_seqlens=self.cu_seqlens,
            **extra,
            **options,
        )
        result.loss.backward()
        self.metrics = result.metrics
        return result.loss.detach(), weight.grad


def trl(batch, logp, *, loss_type, level="token", low=0.2, high=0.2, delta=None, items=None, length=None, is_cap=None):
    """TRL's per-token loss and its normalisations."""
    log_ratio = logp - batch.old
    if level == "sequence":
        log_ratio = ((log_ratio * batch.mask).sum(-1) / batch.mask.sum(-1).clamp(min=1))[:, None]
    coef_1 = log_ratio.exp()
    advantages = batch.advantages[:, None]
    if loss_type == "cispo":
        per_token = -coef_1.clamp(max=high).detach() * advantages * logp
    else:
        coef_2 = coef_1.clamp(1 - low, 1 + high)
        if delta is not None:
            coef_1 = coef_1.clamp(max=delta)
        per_token = -torch.min(coef_1 * advantages, coef_2 * advantages)
    if is_cap is not None:
        per_token = per_token * (batch.old - batch.rollout).exp().clamp(max=is_cap)
    mask = batch.mask
    if loss_type == "grpo":
        return ((per_token * mask).sum(-1) / mask.sum(-1).clamp(min=1)).mean()
    if loss_type == "bnpo":
        return (per_token * mask).sum() / mask.sum().clamp(min=1)
    if loss_type == "dr_grpo":
        return (per_token * mask).sum() / (per_token.size(0) * length)
    return (per_token * mask).sum() / items


TRL_SETTINGS = {
    "grpo": ({"loss_type": "grpo"}, {"aggregation": "seq_mean", "clip_high": 0.2}),
    "bnpo": ({"loss_type": "bnpo"}, {"clip_high": 0.2}),
    "dapo": ({"loss_type": "dapo", "high": 0.28, "items": 77}, {"denominator": 77}),
    "dr_grpo": (
        {"loss_type": "dr_grpo", "length": 100},
        {"aggregation": "seq_mean_fixed", "fixed_length": 100, "clip_high": 0.2},
    ),
    "gspo": (
        {"loss_type": "grpo", "level": "sequence", "low": 3e-2, "high": 4e-2},
        {"loss": "gspo", "aggregation": "seq_mean", "clip_low": 3e-2, "clip_high": 4e-2},
    ),
    "cispo": (
        {"loss_type": "cispo", "high": 1.2, "items": 31},
        {"loss": "cispo", "clip_low": None, "clip_high": 0.2, "denominator": 31},
    ),
    "vllm importance sampling": (
        {"loss_type": "bnpo", "is_cap": 1.1},
        {"rollout": True, "importance": "tis", "importance_cap": 1.1, "clip_high": 0.2},
    ),
}


@pytest.mark.parametrize("name", TRL_SETTINGS)
def test_trl(name):
    their_options, our_options = TRL_SETTINGS[name]
    batch = Padded(1)
    loss, gradient = batch.theirs(lambda logp: trl(batch, logp, **their_options))
    mine, my_gradient = batch.ours(**our_options)
    torch.testing.assert_close(mine, loss)
    assert relative(my_gradient, gradient) < 1e-11


def trl_itself(
    batch, logp, *, loss_type, level="token", low=0.2, high=0.2, delta=None, length=None, items=0, is_cap=None
):
    """GRPOTrainer._compute_loss on given log-probs, and what it logs: the trainer around it stands still."""
    trainer = pytest.importorskip("trl.trainer.grpo_trainer", reason="trl is not installed").GRPOTrainer
    itself = SimpleNamespace(
        args=SimpleNamespace(delta=delta, steps_per_generation=1, use_bias_correction_kl=False),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x),
        model=SimpleNamespace(training=True),
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp, torch.zeros_like(logp), None),
        _metrics=defaultdict(lambda: defaultdict(list)),
        current_gradient_accumulation_steps=1,
        epsilon_low=low,
        epsilon_high=high,
        importance_sampling_level=level,
        loss_type=loss_type,
        max_completion_length=length,
        use_vllm=is_cap is not None,
        vllm_importance_sampling_correction=True,
        top_entropy_quantile=1.0,
        beta=0.0,
        **dict.fromkeys(("aux_loss_enabled", "_entropy_bonus_enabled", "use_adaptive_entropy")),
        off_policy_mask_threshold=None,
    )
    prompt = torch.zeros(len(LENGTHS), 1, dtype=torch.int64)
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": prompt,
        "completion_ids": batch.ids,
        "completion_mask": batch.mask.long(),
        "advantages": batch.advantages,
        "old_per_token_logps": batch.old,
        "num_items_in_batch": torch.tensor(items),
        "importance_sampling_ratio": None if is_cap is None else (batch.old - batch.rollout).exp().clamp(max=is_cap),
    }
    loss = trainer._compute_loss(itself, None, inputs)
    return loss, {name: values[0] for name, values in itself._metrics["train"].items()}


@pytest.mark.parametrize("name", TRL_SETTINGS)
def test_trl_itself(name):
    their_options, our_options = TRL_SETTINGS[name]
    batch = Padded(5)
    logged = {}

    def theirs(logp):
        loss, metrics = trl_itself(batch, logp, **their_options)
        logged.update(metrics)
        return loss

    loss, gradient = batch.theirs(theirs)
    mine, my_gradient = batch.ours(**our_options)
    torch.testing.assert_close(mine, loss)
    assert relative(my_gradient, gradient) < 1e-11
    if our_options.get("loss", "grpo") == "grpo":  # elsewhere theirs are means over sequences, or ours are two
        assert logged["clip_ratio/low_mean"] > 0 and logged["clip_ratio/high_mean"] > 0
        assert float(batch.metrics["clip_low_fraction"]) == pytest.approx(logged["clip_ratio/low_mean"])
        assert float(batch.metrics["clip_high_fraction"]) == pytest.approx(logged["clip_ratio/high_mean"])


def verl(batch, logp, *, low=0.2, high=0.28, c=3.0, mode="token-mean", weights=None):
    """verl's compute_policy_loss_vanilla and agg_loss."""
    ratio = (logp - batch.old).clamp(-20, 20).exp()
    advantages = batch.advantages[:, None].expand_as(logp)
    losses_1, losses_2 = -advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high)
    clipped_1 = torch.maximum(losses_1, losses_2)
    clipped_2 = torch.min(-advantages * c, clipped_1)
    losses = torch.where(advantages < 0, clipped_2, clipped_1)
    if weights is not None:
        losses = losses * weights
    mask = batch.mask
    if mode == "token-mean":
        return (losses * mask).sum() / mask.sum()
    if mode == "seq-mean-token-sum":
        return (losses * mask).sum(-1).mean()
    return ((losses * mask).sum(-1) / mask.sum(-1)).mean()


@pytest.mark.parametrize(
    ("mode", "aggregation"),
    [("token-mean", "token_mean"), ("seq-mean-token-sum", "seq_sum"), ("seq-mean-token-mean", "seq_mean")],
)
def test_verl(mode, aggregation):
    batch = Padded(2)
    weights = (batch.old - batch.rollout).exp().clamp(max=2.0)
    loss, gradient = batch.theirs(lambda logp: verl(batch, logp, mode=mode, c=1.3, weights=weights))
    mine, my_gradient = batch.ours(rollout=True, importance="tis", dual_clip=1.3, aggregation=aggregation)
    torch.testing.assert_close(mine, loss)
    assert relative(my_gradient, gradient) < 1e-11


def test_padding_and_packing_agree():
    """The padded batch itself, flattened, with a mask: what a trainer without packing passes."""
    batch = Padded(3)
    packed, gradient = batch.ours()
    weight = batch.weight.clone().requires_grad_()
    flat = linear_grpo_loss(
        batch.hidden.flatten(0, 1),
        weight,
        batch.ids.flatten(),
        batch.advantages.repeat_interleave(max(LENGTHS)),
        old_logp=batch.old.flatten(),
        mask=batch.mask.flatten(),
    )
    flat.loss.backward()
    torch.testing.assert_close(flat.loss.detach(), packed)
    assert relative(weight.grad, gradient) < 1e-11


LIGER_SETTINGS = {
    "grpo": ({"loss_type": "grpo"}, {"aggregation": "seq_mean"}),
    "bnpo": ({"loss_type": "bnpo"}, {}),
    "dapo": ({"loss_type": "dapo"}, {}),
    "dr_grpo": ({"loss_type": "dr_grpo"}, {"aggregation": "seq_mean_fixed", "fixed_length": 100}),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.03, "epsilon_high": 0.04},
        {"loss": "gspo", "aggregation": "seq_mean", "clip_low": 0.03, "clip_high": 0.04},
    ),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.2}, {"loss": "cispo", "clip_low": None, "clip_high": 0.2}),
    "temperature": ({"loss_type": "dapo", "temperature": 0.7}, {"temperature": 0.7}),
}


@pytest.mark.parametrize("name", LIGER_SETTINGS)
def test_liger(name):
    their_options, options = LIGER_SETTINGS[name]
    liger = pytest.importorskip("liger_kernel.chunked_loss.grpo_loss", reason="liger-kernel is not installed")
    batch = Padded(4)
    theirs = liger.LigerFusedLinearGRPOLoss(
        beta=0.0,
        compiled=False,
        use_ref_model=False,
        max_completion_length=100,
        **{"epsilon_high": 0.28, **their_options},
    )
    weight = batch.weight.float().requires_grad_()
    loss, _ = theirs(
        batch.hidden.float(),
        weight,
        batch.ids,
        batch.mask.float(),
        batch.advantages.float(),
        old_per_token_logps=batch.old.float(),
    )
    loss.backward()
    mine, my_gradient = batch.ours(**options)
    torch.testing.assert_close(mine.float(), loss.detach(), rtol=1e-5, atol=1e-6)
    assert relative(my_gradient, weight.grad.double()) < 1e-5


def test_trl_selective_log_softmax():
    utils = pytest.importorskip("trl.trainer.utils", reason="trl is not installed")
    logits, ids = torch.randn(3, 5, 31), torch.randint(31, (3, 5))
    torch.testing.assert_close(logprob_from_logits(logits, ids), utils.selective_log_softmax(logits, ids))
