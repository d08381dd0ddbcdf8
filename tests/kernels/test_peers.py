"""The same loss and gradient as other trainers on the same tokens.

TRL and verl are written down as formulas of their padded batches (trl/trainer/grpo_trainer.py,
verl/trainer/ppo/core_algos.py); TRL's own loss and Liger's fused one run where they are installed.
"""

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from siri_kernels import grpo_loss, linear_grpo_loss, logprob_from_logits

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


MODES = {"token_mean": "token-mean", "seq_mean": "seq-mean-token-mean", "seq_sum": "seq-mean-token-sum"}
CORRECTIONS = {
    "tis": {"importance": "tis", "importance_cap": 1.1},
    "icepop": {"importance": "icepop", "importance_low": 0.8, "importance_cap": 1.2},
}


def verl_weights(batch, importance, importance_cap, importance_low=None):
    """verl's rollout_is_weights on the level of tokens: cut at the threshold, or 0 outside "lower_upper"."""
    raw = (batch.old - batch.rollout).clamp(-20, 20).exp() * batch.mask
    if importance == "tis":
        return raw.clamp(max=importance_cap)
    return torch.where((raw >= importance_low) & (raw <= importance_cap), raw, 0.0)


def verl_gspo(batch, logp, *, low, high, mode, weights):
    """verl's compute_policy_loss_gspo and agg_loss: the sequence's ratio is a constant, and each token has the slope of
    its own log-prob times its own weight."""
    mask, advantages = batch.mask, batch.advantages[:, None].expand_as(logp)
    log_ratio = ((logp - batch.old) * mask).sum(-1) / mask.sum(-1).clamp(min=1)
    ratio = (logp - logp.detach() + log_ratio.detach()[:, None]).clamp(max=10).exp()
    losses = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high)) * weights
    if mode == "token-mean":
        return (losses * mask).sum() / mask.sum()
    sums = (losses * mask).sum(-1)
    return (sums if mode == "seq-mean-token-sum" else sums / mask.sum(-1)).mean()


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("memory", ["fast", 4 * 12 * VOCAB * 8, "lean"], ids=["fast", "chunked", "lean"])
@pytest.mark.parametrize("aggregation", MODES)
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_token_weights_under_sequence_ratios(correction, aggregation, memory, impl):
    batch, options = Padded(6), CORRECTIONS[correction]
    weights = verl_weights(batch, **options)
    assert len(weights[batch.mask].unique()) > 5, "no weights to tell apart"
    theirs = {"low": 0.01, "high": 0.02, "mode": MODES[aggregation], "weights": weights}
    loss, gradient = batch.theirs(lambda logp: verl_gspo(batch, logp, **theirs))
    clips = {"clip_low": 0.01, "clip_high": 0.02, "aggregation": aggregation}
    mine, my_gradient = batch.ours(rollout=True, loss="gspo", impl=impl, memory=memory, **clips, **options)
    assert 0 < batch.metrics["clip_low_fraction"] + batch.metrics["clip_high_fraction"] < 1
    torch.testing.assert_close(mine, loss)
    assert relative(my_gradient, gradient) < 1e-11
    assert float(batch.metrics["importance_mean"]) == pytest.approx(float(weights[batch.mask].mean()))


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize(
    ("name", "clips", "options"),
    [
        ("vanilla", {"clip_low": 0.1, "clip_high": 0.2}, {"dual_clip": 3.0}),
        ("gspo", {"clip_low": 0.01, "clip_high": 0.02}, {"loss": "gspo"}),
        ("cispo", {"clip_low": 10.0, "clip_high": 0.2}, {"loss": "cispo"}),
    ],
)
def test_verl_itself(name, clips, options, correction):
    core = pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl is not installed")
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights

    batch, importance = Padded(7), CORRECTIONS[correction]
    band = (importance.get("importance_low"), importance["importance_cap"])
    threshold = band[1] if band[0] is None else "_".join(map(str, band))
    weights, _ = compute_rollout_correction_weights(batch.old - batch.rollout, batch.mask, "token", threshold)
    bounds = {f"clip_ratio_{end}": clips[f"clip_{end}"] for end in ("low", "high")}
    config = core.ActorConfig(strategy="fsdp2", rollout_n=1, use_dynamic_bsz=True, clip_ratio=0.2, **bounds)

    def theirs(logp):
        advantages = batch.advantages[:, None].expand_as(logp)
        settings = {"loss_agg_mode": "seq-mean-token-mean", "config": config, "rollout_is_weights": weights}
        return core.get_policy_loss_fn(name)(batch.old, logp, advantages, batch.mask, **settings)[0]

    loss, gradient = batch.theirs(theirs)
    mine, my_gradient = batch.ours(rollout=True, aggregation="seq_mean", **clips, **options, **importance)
    torch.testing.assert_close(mine, loss)
    assert relative(my_gradient, gradient) < 1e-7  # verl divides by sequences + 1e-8


def test_trl_itself_on_token_weights_under_sequence_ratios():
    """TRL differentiates the sequence's ratio: the weights' mean for every token, which weighed advantages give."""
    batch, clips = Padded(8), {"low": 0.01, "high": 0.02}
    theirs = {"loss_type": "grpo", "level": "sequence", "is_cap": 1.1, **clips}
    loss, gradient = batch.theirs(lambda logp: trl_itself(batch, logp, **theirs)[0])
    weights = verl_weights(batch, "tis", 1.1)
    batch.advantages = (batch.advantages[:, None] * weights)[batch.mask]
    mine, my_gradient = batch.ours(loss="gspo", clip_low=0.01, clip_high=0.02, aggregation="seq_mean")
    torch.testing.assert_close(mine, loss)
    assert relative(my_gradient, gradient) < 1e-11


def test_a_token_outside_the_band_is_not_trained():
    """Directly: of four tokens in a sequence the weight of the second is outside; its log-prob moves the ratio of the
    others and has no gradient."""
    logp = torch.tensor([-1.0, -2.0, -0.5, -1.5], dtype=torch.float64, requires_grad=True)
    old, rollout = logp.detach() - 0.001, logp.detach() - torch.tensor([0.101, 3.0, -0.099, 0.001])
    options = {"loss": "gspo", "clip_low": 0.1, "clip_high": 0.1, "importance": "icepop", "aggregation": "seq_mean"}
    loss = grpo_loss(
        logp, old, torch.ones(1, dtype=torch.float64), rollout_logp=rollout, cu_seqlens=torch.tensor([0, 4]), **options
    )
    loss.loss.backward()
    weights = torch.tensor([0.1, 0.0, -0.1, 0.0], dtype=torch.float64).exp() * torch.tensor([1.0, 0.0, 1.0, 1.0])
    torch.testing.assert_close(logp.grad, -math.exp(0.001) * weights / 4)
    assert float(loss.metrics["importance_clipped_fraction"]) == 0.25


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
