"""LoRA: the same model as with merged weights, in loss, gradients and files; nothing else is trained."""

import json
import random

import pytest
import torch

from siri.config.learning import TARGETS
from siri.errors import InputError
from siri.model.adapters import (
    Adapter,
    MergeCheck,
    adapted_layers,
    add_adapter,
    base_parameters,
    initialise,
    merge_into,
    merged_parameters,
    trained_parameters,
)
from siri.runtime.stopwatch import Stopwatch
from siri.train.learner import policy_loss, score
from siri.train.micro_batch import MicroBatch
from tests.support.tiny import save_tiny, tiny_model, tiny_policy
from tests.unit.train.test_update import config, make_samples

CPU = torch.device("cpu")


def adapted(targets: tuple[str, ...] = (*TARGETS, "lm_head"), *, kind: str = "qwen2", seed: int = 3, **options):
    """A tiny policy whose adapter is not zero."""
    policy = tiny_policy(kind, **options)
    add_adapter(policy.model, Adapter("tiny", 4, 6.0, targets))
    initialise(policy.model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in trained_parameters(policy.model):
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=generator)
    return policy


def losses(policy, settings):
    samples = make_samples(1, count=9)
    micro = MicroBatch.of(samples, entropy_bonus=True, device=CPU)
    with torch.no_grad():
        old = score(policy.model, micro, settings).logp_R + 0.05
    result = policy_loss(policy.model, micro, settings, old, 100.0, Stopwatch(CPU))
    result.loss.backward()
    return result, old


@pytest.mark.parametrize("kind", ["qwen2", "llama", "qwen3"])
@pytest.mark.parametrize("targets", [TARGETS, (*TARGETS, "lm_head"), ("lm_head",), ("q_proj", "down_proj")])
def test_loss_and_gradients_are_those_of_merged_weights(kind, targets):
    settings = config(entropy_coef=0.01, clip_low=0.02, clip_high=0.02)
    policy = adapted(targets, kind=kind)
    merged = tiny_policy(kind)
    merged.model.load_state_dict(dict(merged_parameters(policy.model)))
    result, old = losses(policy, settings)
    merged_result, their_old = losses(merged, settings)
    torch.testing.assert_close(result.loss, merged_result.loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(result.logp, merged_result.logp, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(old, their_old, rtol=1e-6, atol=2e-6)
    whole = {name: parameter.grad for name, parameter in merged.model.named_parameters()}
    layers = adapted_layers(policy.model)
    assert layers.keys() == {name for name in layers if name.rpartition(".")[2] in targets} and layers
    for name, layer in layers.items():
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        grad = whole[f"{name}.weight"] * layer.scaling["default"]
        torch.testing.assert_close(up.grad, grad @ down.detach().T, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(down.grad, up.detach().T @ grad, rtol=1e-6, atol=1e-6)
    assert all(parameter.grad is None for _, parameter in base_parameters(policy.model))


def test_a_new_adapter_changes_nothing_and_is_the_same_for_a_seed():
    policy, plain = tiny_policy(), tiny_policy()
    state = torch.get_rng_state()
    add_adapter(policy.model, Adapter("tiny", 4, 8.0, TARGETS))
    initialise(policy.model, 5)
    assert torch.equal(torch.get_rng_state(), state), "peft's draws must not move the run's"
    settings = config()
    assert torch.equal(losses(policy, settings)[0].logp, losses(plain, settings)[0].logp)
    other = tiny_policy()
    add_adapter(other.model, Adapter("tiny", 4, 8.0, TARGETS))
    initialise(other.model, 5)
    for (name, parameter), (_, parameter_again) in zip(
        trained_parameters(policy.model), trained_parameters(other.model), strict=True
    ):
        assert torch.equal(parameter, parameter_again) and name.startswith("base_model.model.model.layers.")
    downs = [parameter for name, parameter in trained_parameters(policy.model) if "lora_A" in name]
    assert len({parameter.flatten()[0].item() for parameter in downs}) == len(downs), "each layer has values of its own"
    initialise(other.model, 6)
    assert any(
        not torch.equal(parameter, parameter_again)
        for parameter, parameter_again in zip(
            downs, [parameter for name, parameter in trained_parameters(other.model) if "lora_A" in name], strict=True
        )
    )


def test_names_in_files_are_those_of_the_model_and_of_peft():
    policy = adapted()
    plain = dict(tiny_model().named_parameters())
    assert {name: parameter.shape for name, parameter in base_parameters(policy.model)} == {
        n: p.shape for n, p in plain.items()
    }
    factors = {name: parameter.detach() for name, parameter in trained_parameters(policy.model)}
    base = {name: parameter.detach().clone() for name, parameter in base_parameters(policy.model)}
    merge_into(base, factors, 1.5)
    for name, tensor in merged_parameters(policy.model):
        assert torch.equal(tensor, base[name]), name


def through(check, weights):
    return dict(check.passing(iter(weights)))


def test_weights_without_the_adapter_do_not_leave():
    """verl#7495: the frozen base was pushed for two months."""
    policy = adapted()
    good = list(merged_parameters(policy.model))
    assert through(MergeCheck(policy.model), good).keys() == {name for name, _ in good}
    frozen = [(name, parameter.detach()) for name, parameter in base_parameters(policy.model)]
    with pytest.raises(InputError, match=r"was not sent the adapter \(model\.layers\.0\.self_attn\.q_proj\.weight is"):
        through(MergeCheck(policy.model), frozen)
    with pytest.raises(InputError, match=r"lm_head\.weight is not its base with the adapter"):
        through(MergeCheck(policy.model), [*good[:-1], ("lm_head.weight", dict(frozen)["lm_head.weight"])])
    with pytest.raises(InputError, match=r"lm_head\.weight was not sent"):
        through(MergeCheck(policy.model), good[:-1])
    with torch.no_grad():  # an optimizer step later, the old ones
        layer = random.Random(0).choice(list(adapted_layers(policy.model).values()))
        layer.lora_B["default"].weight.mul_(1.01)
    with pytest.raises(InputError, match="is not its base with the adapter"):
        through(MergeCheck(policy.model), good)
    plain = tiny_policy()
    assert through(MergeCheck(plain.model), merged_parameters(plain.model)).keys() == {name for name, _ in good}


@pytest.mark.parametrize(
    ("targets", "line"),
    [
        (("q_pro",), r"'q_pro' is no layer of the model; it has q_proj and [ov]_proj"),
        (("q_proj", "gate_up_proj"), r"'gate_up_proj' is no layer of the model; it has (gate_proj|up_proj) and"),
        (("embed_tokens",), r"'embed_tokens' is no linear layer of the model"),
        (("self_attn",), r"'self_attn' is no linear layer of the model"),
        (("nope",), r"'nope' is no layer of the model; it has q_proj and k_proj and v_proj and o_proj and gate_proj"),
        (("all-linear",), "all linear layers but the head is the default; leave lora_targets out"),
        (("q_proj,v_proj",), "'q_proj,v_proj' is several names; separate them by spaces"),
    ],
)
def test_a_target_that_is_not_there_is_named_with_the_nearest(targets, line):
    with pytest.raises(InputError, match=line):
        add_adapter(tiny_model(), Adapter("tiny", 4, 8.0, targets))


def test_a_tied_head_takes_no_adapter():
    with pytest.raises(InputError, match="lm_head is its embedding"):
        add_adapter(tiny_model(tie_word_embeddings=True), Adapter("tiny", 4, 8.0, ("lm_head",)))
    model = tiny_model(tie_word_embeddings=True)
    add_adapter(model, Adapter("tiny", 4, 8.0, TARGETS))
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_an_adapter_says_what_it_belongs_to(tmp_path):
    base = save_tiny(tmp_path / "base")
    adapter = Adapter(str(base), 4, 8.0, TARGETS)
    (tmp_path / "adapter.json").write_bytes(adapter.written())
    assert Adapter.read(tmp_path) == adapter
    assert Adapter.read(base) is None
    written = adapter.peft_config(str(base))
    assert json.loads(json.dumps(written))["target_modules"] == sorted(TARGETS) and written["r"] == 4
    (base / "generation_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"its base is another now; model: generation_config\.json of .* is not"):
        Adapter.read(tmp_path)
    base.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"holds an adapter of .*base, which is not there; restore"):
        Adapter.read(tmp_path)
    (tmp_path / "adapter.json").write_text("[")
    with pytest.raises(InputError, match=r"adapter\.json: cannot be read"):
        Adapter.read(tmp_path)
