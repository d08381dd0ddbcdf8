"""`siri_kernels.integrations.liger` is Liger's LigerFusedLinearGRPOLoss by another import."""

import inspect

import pytest
import torch
from siri_kernels import chunked
from siri_kernels.integrations import liger

from tests.support.integration_cases import leaves, padded_batch, peak_bytes
from tests.support.kernel_cases import relative

oracle = pytest.importorskip("liger_kernel.chunked_loss.grpo_loss", reason="liger-kernel is not installed")
Theirs, Ours = oracle.LigerFusedLinearGRPOLoss, liger.LigerFusedLinearGRPOLoss

SETTINGS = {
    **{kind: {"loss_type": kind} for kind in liger.LOSS_TYPES},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.2},
    "tight cispo": {"loss_type": "cispo", "epsilon_high": 0.9},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.03, "epsilon_high": 0.04},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "two-sided": {"loss_type": "dapo", "delta": 1.3},
    "tight two-sided": {"loss_type": "bnpo", "delta": 0.9},
    "temperature": {"loss_type": "dapo", "temperature": 0.7},
}


def run(cls, batch, options, call):
    hidden, weight = leaves(batch)
    bias = torch.linspace(-1, 1, weight.shape[0], requires_grad=True)
    loss = cls(**{"beta": 0.0, "compiled": False, "use_ref_model": False, "max_completion_length": 100, **options})
    value, metrics = loss(hidden, weight, batch.ids, batch.mask.float(), batch.advantages, bias=bias, **call)
    (2 * value).backward()
    return value.detach(), [float(m) for m in metrics], [hidden.grad, weight.grad, bias.grad]


def assert_same(batch, options, call):
    value, metrics, gradients = run(Theirs, batch, options, call)
    mine, my_metrics, my_gradients = run(Ours, batch, options, call)
    torch.testing.assert_close(mine, value, rtol=1e-5, atol=1e-6)
    assert my_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-6)
    for x, y in zip(my_gradients, gradients, strict=True):
        assert relative(x, y) < 2e-5 and float(y.norm()) > 0


@pytest.mark.parametrize("name", SETTINGS)
def test_every_loss_type(name):
    batch = padded_batch(1)
    assert_same(batch, SETTINGS[name], {"old_per_token_logps": batch.old, "num_items_in_batch": 41.0})


# without luspo's ratio per token, where Liger counts padding (see below)
RATIOS = [
    (name, shape)
    for name in ("dapo", "grpo", "gspo", "sapo", "vespo", "dr_grpo", "cispo")
    for shape in ("B", "B1", "BT")
]
RATIOS += [("luspo", "B"), ("luspo", "B1")]


@pytest.mark.parametrize(("name", "shape"), RATIOS)
def test_importance_ratios_of_the_rollout(name, shape):
    batch = padded_batch(2)
    ratio = (batch.old - batch.reference).exp().clamp(max=1.2)
    ratio = {"B": ratio[:, 0], "B1": ratio[:, :1], "BT": ratio}[shape]
    assert_same(batch, SETTINGS[name], {"old_per_token_logps": batch.old, "vllm_is_ratio": ratio})


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("name", ["dapo", "grpo", "gspo", "cispo", "sapo"])
def test_a_kl_term(name, corrected):
    batch = padded_batch(3)
    options = {**SETTINGS[name], "beta": 0.1, "use_ref_model": True, "use_bias_correction_kl": corrected}
    assert_same(batch, options, {"old_per_token_logps": batch.old, "ref_per_token_logps": batch.reference})
    model = {"ref_input": batch.hidden + 0.1, "ref_weight": batch.weight.flip(0)}
    assert_same(batch, options, {"old_per_token_logps": batch.old, **model})


def test_on_policy_and_flat_hidden_states():
    batch = padded_batch(4)
    assert_same(batch, {}, {})
    flat = [
        Ours(beta=0.0)(x, batch.weight, batch.ids, batch.mask, batch.advantages)[0]
        for x in (batch.hidden, batch.hidden.flatten(0, 1))
    ]
    torch.testing.assert_close(*flat, rtol=0, atol=0)


def test_a_frozen_head_gets_no_gradient():
    batch = padded_batch(5)
    hidden = batch.hidden.clone().requires_grad_()
    Ours(beta=0.0)(hidden, batch.weight, batch.ids, batch.mask, batch.advantages)[0].backward()
    assert hidden.grad.norm() > 0 and batch.weight.grad is None


@pytest.mark.parametrize("method", ["__init__", "forward"])
def test_the_signature_is_theirs(method):
    theirs, ours = (inspect.signature(getattr(cls, method)).parameters for cls in (Theirs, Ours))
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]


WHEN_MADE = [({"sapo_temperature_neg": 0}, "sapo_temperature_neg"), ({"delta": -1}, "delta")]
WHEN_CALLED = [
    ({"loss_type": "ppo"}, "loss_type must be one of"),
    ({"importance_sampling_level": "word"}, "token or sequence"),
    *(
        ({"loss_type": kind, "importance_sampling_level": "sequence"}, "importance_sampling_level='token'")
        for kind in ("cispo", "sapo", "vespo")
    ),
    ({"loss_type": "dr_grpo"}, "max_completion_length"),
]


@pytest.mark.parametrize(("options", "message"), WHEN_MADE)
def test_bad_settings_are_refused_when_the_loss_is_made_as_by_liger(options, message):
    for cls in (Theirs, Ours):
        with pytest.raises(ValueError, match=message) as caught:
            cls(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("options", "message"), WHEN_CALLED)
def test_bad_settings_are_refused_at_the_first_call_as_by_liger(options, message):
    batch = padded_batch(6)
    options = {"beta": 0.0, "use_ref_model": False, "compiled": False, **options}
    arguments = (batch.hidden, batch.weight, batch.ids, batch.mask.float(), batch.advantages)
    for cls in (Theirs, Ours):
        made = cls(**options)
        with pytest.raises((ValueError, AssertionError) if cls is Theirs else ValueError) as caught:
            made(*arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


LUSPO_TOKENS = {
    "ratios per token": ({}, {}),
    "KL": ({"beta": 0.1, "importance_sampling_level": "sequence", "use_ref_model": True}, {"reference"}),
    "KL, ratios per token": ({"beta": 0.1, "use_ref_model": True}, {"reference"}),
    "corrected KL": (
        {"beta": 0.1, "importance_sampling_level": "sequence", "use_ref_model": True, "use_bias_correction_kl": True},
        {"reference"},
    ),
    "weights per token": ({"importance_sampling_level": "sequence"}, {"weights"}),
}


@pytest.mark.parametrize("name", LUSPO_TOKENS)
def test_luspo_of_single_tokens_is_ligers_padding_included(name):
    """Liger's mean runs over padding there: the same loss and gradients, and a line that says so."""
    batch = padded_batch(6)
    options, more = LUSPO_TOKENS[name]
    options = {"loss_type": "luspo", **options}
    call = {"old_per_token_logps": batch.old}
    call |= {"ref_per_token_logps": batch.reference} if "reference" in more else {}
    call |= {"vllm_is_ratio": (batch.old - batch.reference).exp().clamp(max=1.2)} if "weights" in more else {}
    with pytest.warns(UserWarning, match="padding") as told:
        assert_same(batch, options, call)
    assert sum("padding" in str(warning.message) for warning in told) == 1


def test_luspo_of_sequences_does_not_depend_on_padding():
    batch, longer = padded_batch(6), padded_batch(6)
    for name in ("hidden", "ids", "mask", "old"):
        x = getattr(batch, name)
        setattr(longer, name, torch.cat([x, torch.zeros_like(x[:, :1])], 1))
    short, long = (run(Ours, b, SETTINGS["luspo"], {"old_per_token_logps": b.old})[0] for b in (batch, longer))
    torch.testing.assert_close(short, long)
    single = {"loss_type": "luspo"}
    short, long = (run(Ours, b, single, {"old_per_token_logps": b.old})[0] for b in (batch, longer))
    assert float((short - long).abs()) > 1e-3  # what the warning is about


def test_a_missing_reference_model():
    batch = padded_batch(6)
    with pytest.raises(ValueError, match="ref_per_token_logps"):
        Ours()(batch.hidden, batch.weight, batch.ids, batch.mask, batch.advantages)


def test_logits_are_never_whole(monkeypatch):
    monkeypatch.setitem(chunked.BUDGET["cpu"], "fast", 32 << 20)  # its default holds a problem of this size whole
    batch = padded_batch(7, (700, 800), d=8, vocab=32768)
    hidden, weight = leaves(batch)

    def step():
        Ours(beta=0.0)(hidden, weight, batch.ids, batch.mask, batch.advantages)[0].backward()

    assert peak_bytes(step) < 0.3 * 1500 * 32768 * 4
