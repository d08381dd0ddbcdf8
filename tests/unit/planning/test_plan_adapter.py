"""The plan of a run with an adapter: frozen weights in 16 bits, gradients and moments of the adapter alone."""

from math import prod

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from siri.config import Config
from siri.config.learning import TARGETS
from siri.errors import InputError
from siri.model.adapters import Adapter, adapter_size, add_adapter, initialise, trained_parameters
from siri.packing.flops import training_flops
from siri.planning.formulas import adapter_shapes
from siri.planning.hours import Rates, run_hours
from siri.planning.memory_plan import Machine, memory_plan
from tests.support.tiny import tiny_model
from tests.unit.planning.test_memory import R1_7B, qwen2

H100 = Machine(1, 80 * 10**9)
"""The 80 GB of an H100."""


def config(**settings):
    return Config(**{"checkpointing": "full", "token_budget": 36864, "rollout": "vllm", **settings})


def test_7b_fits_on_one_gpu_of_80_gb_with_vllm_beside_it():
    seven = qwen2(**R1_7B)
    plan = memory_plan(seven, config(lora_rank=32), H100, rollout="colocated")
    assert plan.fits and plan.adapter == sum(prod(s) for s in adapter_shapes(seven, 32, TARGETS).values())
    assert plan.weights == 2 * plan.parameters + 4 * plan.adapter
    assert plan.gradients == 4 * plan.adapter and plan.optimizer == 8 * plan.adapter
    whole = memory_plan(seven, config(), H100, rollout="colocated")
    assert not whole.fits and whole.adapter == 0
    assert any(line.startswith("--lora-rank 32, which trains an adapter") for line in whole.advice)
    rates = Rates(4e14, 3.35e12)
    less, more = (run_hours(seven, each, rates).training for each in (plan, whole))
    assert 0.6 * more < less < 0.8 * more, "a third less: the weights have no gradient"


@pytest.mark.parametrize("kind", ["qwen2", "llama", "qwen3"])
def test_the_adapters_shapes_are_those_of_the_model(kind):
    model = tiny_model(kind)
    add_adapter(model, Adapter("tiny", 3, 6.0, (*TARGETS, "lm_head")))
    held = {name.removeprefix("base_model.model."): tuple(p.shape) for name, p in trained_parameters(model)}
    assert held == adapter_shapes(model.config, 3, (*TARGETS, "lm_head"))
    head = 3 * (model.config.hidden_size + model.config.vocab_size)
    assert adapter_size(model) == (sum(map(prod, held.values())) - head, head) and adapter_size(tiny_model()) is None


def test_flops_are_those_that_torch_counts():
    """Of a sequence whose every token enters the head. Attention, which torch counts in full squares, is left out."""
    tokens, counted, said = 40, [], []
    for targets in ((), (*TARGETS, "lm_head")):
        model = tiny_model(num_hidden_layers=3)
        if targets:
            add_adapter(model, Adapter("tiny", 4, 8.0, targets))
            initialise(model, 0)
        model.get_input_embeddings().weight.requires_grad_(True)  # so that the first layer hands a gradient on
        with FlopCounterMode(display=False) as counter:
            model(torch.arange(tokens)[None], use_cache=False).logits.sum().backward()
        flops = counter.get_flop_counts()["Global"]
        counted.append(sum(value for operator, value in flops.items() if "attention" not in str(operator)))
        # a n + b n^2, of which the part that is linear is asked for
        flops_of_n, flops_of_2n = (
            training_flops(model.config, [n], [n], [True], adapter=adapter_size(model)) for n in (tokens, 2 * tokens)
        )
        said.append(2 * flops_of_n - flops_of_2n / 2)
    assert said == pytest.approx(counted, rel=0.02)


def test_targets_that_a_plan_cannot_have_are_named():
    with pytest.raises(InputError, match="no linear layer 'gate' of its own to adapt"):
        memory_plan(qwen2(**R1_7B), config(lora_rank=4, lora_targets=("gate",)), H100, rollout="served")
    tied = qwen2(**R1_7B)
    tied.tie_word_embeddings = True
    with pytest.raises(InputError, match="no linear layer 'lm_head' of its own"):
        memory_plan(tied, config(lora_rank=4, lora_targets=("lm_head",)), H100, rollout="served")
