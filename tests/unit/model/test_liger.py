"""Liger's kernels: on the model they are put into and no other, leaving parameters, head and loss alone."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from siri.errors import InputError
from siri.model import liger
from siri.model.attention import PackedLayout
from siri.model.liger import apply_liger, swap
from siri.model.policy import packed_hidden
from tests.support.tiny import VOCAB, tiny_model

CPU, GPU = torch.device("cpu"), torch.device("cuda")
KINDS = ["qwen2", "qwen3", "llama"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_modules_of_this_model_and_no_other_are_swapped(kind):
    from liger_kernel.transformers.rms_norm import LigerRMSNorm
    from liger_kernel.transformers.rope import liger_rotary_pos_emb
    from liger_kernel.transformers.swiglu import LigerSwiGLUMLP

    modeling = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    model, other = tiny_model(kind), tiny_model(kind)
    before = dict(vars(modeling))
    attention_forward = type(model.model.layers[0].self_attn).forward
    cross_entropy = torch.nn.functional.cross_entropy
    swap(model)

    layer = model.model.layers[1]
    norms = [model.model.norm, layer.input_layernorm, layer.post_attention_layernorm]
    norms += [layer.self_attn.q_norm, layer.self_attn.k_norm] if kind == "qwen3" else []
    assert all(norm.forward.__func__ is LigerRMSNorm.forward for norm in norms)
    assert all(norm.variance_epsilon == other.model.norm.variance_epsilon for norm in norms)
    assert layer.mlp.forward.__func__ is LigerSwiGLUMLP.forward
    assert layer.self_attn.forward.__func__.__globals__["apply_rotary_pos_emb"] is liger_rotary_pos_emb
    assert layer.self_attn.forward.__func__.__code__ is attention_forward.__code__

    assert vars(modeling) == before, "transformers itself is as it was"
    assert torch.nn.functional.cross_entropy is cross_entropy
    assert "forward" not in vars(model) and "forward" not in vars(model.lm_head), "neither loss nor head"
    assert type(model.lm_head) is torch.nn.Linear
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in other.named_parameters()]
    assert not any("forward" in vars(module) for module in other.modules())
    packed_hidden(other, torch.arange(4), PackedLayout.of([4]))  # runs, on a CPU where Liger's kernels cannot


def test_numbers_and_gradients_are_those_of_transformers():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "tests.support.liger_worker"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    errors = dict(line.split() for line in result.stdout.splitlines())
    assert list(errors) == KINDS and all(float(error) < 2e-6 for error in errors.values()), errors


def test_when_it_is_applied(monkeypatch):
    swapped = []
    monkeypatch.setattr(liger, "swap", swapped.append)
    assert apply_liger("model", "auto", GPU) and apply_liger("model", "on", GPU) and len(swapped) == 2
    assert not apply_liger("model", "auto", CPU) and not apply_liger("model", "off", GPU)
    with pytest.raises(InputError, match="do not run on cpu; use --liger auto"):
        apply_liger("model", "on", CPU)
    monkeypatch.setattr(liger, "find_spec", lambda name: None)
    assert not apply_liger("model", "auto", GPU)
    with pytest.raises(InputError, match="liger-kernel is not installed; see siri doctor"):
        apply_liger("model", "on", GPU)
    assert len(swapped) == 2


def test_another_activation_keeps_its_mlp():
    model = tiny_model("llama", hidden_act="gelu")
    swap(model)
    assert "forward" not in vars(model.model.layers[0].mlp) and "forward" in vars(model.model.norm)


def test_an_attention_layer_that_rotates_another_way_is_refused(monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr(type(model.model.layers[0].self_attn), "forward", lambda self, hidden: hidden)
    with pytest.raises(InputError, match=r"rotates llama's queries another way .* use --liger off"):
        swap(model)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="Liger's kernels need a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu(kind):
    outcomes = []
    for swapped in (False, True):
        model = tiny_model(kind, hidden_size=256, intermediate_size=512).to(GPU)
        if swapped:
            assert apply_liger(model, "auto", GPU)
        torch.manual_seed(1)
        ids = torch.randint(0, VOCAB, (300,), device=GPU)
        hidden = packed_hidden(model, ids, PackedLayout.of([200, 100], GPU))
        (hidden * torch.randn_like(hidden)).sum().backward()
        outcomes.append([hidden.detach(), *(parameter.grad for parameter in model.model.parameters())])
    for one, two in zip(*outcomes, strict=True):
        assert float((one.float() - two.float()).norm() / one.float().norm()) < 0.03
