"""Liger's kernels: on the model they are put into and no other, leaving parameters, head and loss alone."""

import importlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from siri.cli import main
from siri.errors import InputError
from siri.model import liger
from siri.model.attention import PackedLayout
from siri.model.liger import PARTS, Applied, apply_liger, fault, swap
from siri.model.policy import checkpoint_activations, packed_hidden
from siri.train import setup
from tests.support.tiny import VOCAB, tiny_model

CPU, GPU = torch.device("cpu"), torch.device("cuda")
KINDS = ["qwen2", "qwen3", "llama"]
LIGER_ROPE = "liger_kernel.transformers.rope.liger_rotary_pos_emb"


def modeling_of(kind):
    return importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")


def outcome(model):
    """Hidden states and gradients of a pack."""
    model.zero_grad()
    hidden = packed_hidden(model, torch.arange(3, 11), PackedLayout.of([5, 3]))
    (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    return [hidden.detach(), *(parameter.grad for parameter in model.model.parameters())]


def same(first, second):
    return all(map(torch.equal, first, second))


@pytest.fixture
def backwards(monkeypatch):
    """Stands for Liger's RoPE, which does not run on a CPU: the other way round, so that it shows. Returns its calls:
    the threads they came from."""
    rotate, calls = modeling_of("llama").apply_rotary_pos_emb, []

    def rotate_backwards(q, k, cos, sin):
        calls.append(threading.get_ident())
        return rotate(q, k, cos, -sin)

    monkeypatch.setattr(LIGER_ROPE, rotate_backwards)
    return calls


@pytest.mark.parametrize("kind", KINDS)
def test_the_modules_of_this_model_and_no_other_are_swapped(kind):
    from liger_kernel.transformers.rms_norm import LigerRMSNorm
    from liger_kernel.transformers.swiglu import LigerSwiGLUMLP

    modeling = modeling_of(kind)
    model, other = tiny_model(kind), tiny_model(kind)
    before = dict(vars(modeling))
    cross_entropy = torch.nn.functional.cross_entropy
    swap(model)

    layer = model.model.layers[1]
    norms = [model.model.norm, layer.input_layernorm, layer.post_attention_layernorm]
    norms += [layer.self_attn.q_norm, layer.self_attn.k_norm] if kind == "qwen3" else []
    assert all(norm.forward.__func__ is LigerRMSNorm.forward for norm in norms)
    assert all(norm.variance_epsilon == other.model.norm.variance_epsilon for norm in norms)
    assert layer.mlp.forward.__func__ is LigerSwiGLUMLP.forward
    assert all("forward" in vars(layer.self_attn) for layer in model.model.layers)

    assert vars(modeling) == before, "transformers itself is as it was"
    assert torch.nn.functional.cross_entropy is cross_entropy
    assert "forward" not in vars(model) and "forward" not in vars(model.lm_head), "neither loss nor head"
    assert type(model.lm_head) is torch.nn.Linear
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in other.named_parameters()]
    assert not any("forward" in vars(module) for module in other.modules())
    packed_hidden(other, torch.arange(4), PackedLayout.of([4]))  # runs, on a CPU where Liger's kernels cannot


@pytest.mark.parametrize("kind", KINDS)
def test_this_model_rotates_by_ligers_function_and_no_other_does(kind, backwards, monkeypatch):
    model, other = tiny_model(kind), tiny_model(kind)
    plain = outcome(other)
    assert not backwards
    swap(model, ["RoPE"])
    swapped = outcome(model)
    assert len(backwards) == len(model.model.layers)
    assert same(outcome(other), plain) and not same(swapped, plain)
    assert len(backwards) == len(model.model.layers), "the other model does not call it"

    rotate = modeling_of(kind).apply_rotary_pos_emb
    monkeypatch.setattr(modeling_of(kind), "apply_rotary_pos_emb", lambda q, k, cos, sin: rotate(q, k, cos, -sin))
    assert same(outcome(other), swapped), "the numbers are those of transformers with that function"
    assert same(outcome(model), swapped)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["full", "selective"])
def test_layers_that_are_computed_again_rotate_alike(kind, mode, backwards):
    model, other = tiny_model(kind), tiny_model(kind)
    swap(model, ["RoPE"])
    plain, swapped = outcome(other), outcome(model)
    for each in (model, other):
        checkpoint_activations(each, mode)
    backwards.clear()
    hidden = packed_hidden(model, torch.arange(3, 11), PackedLayout.of([5, 3]))
    assert same(outcome(other), plain), "between forward and backward another model runs, without Liger"
    assert len(backwards) == len(model.model.layers)
    model.zero_grad()
    (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    assert len(backwards) == 2 * len(model.model.layers)
    gradients = [parameter.grad for parameter in model.model.parameters()]
    assert same([hidden.detach(), *gradients], swapped)


def test_models_in_threads_do_not_meet(backwards):
    models = [tiny_model("qwen2", num_hidden_layers=1) for _ in range(4)]
    for model in models[:2]:
        swap(model, ["RoPE"])
        checkpoint_activations(model, "full")
    alone = [outcome(model) for model in models]
    assert same(alone[0], alone[1]) and same(alone[2], alone[3]) and not same(alone[0], alone[2])
    backwards.clear()
    start, differ, mine = threading.Barrier(len(models), timeout=60), [], {}

    def run(index):
        mine[index] = threading.get_ident()
        start.wait()
        differ.extend(index for _ in range(10) if not same(outcome(models[index]), alone[index]))

    threads = [threading.Thread(target=run, args=[index]) for index in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(mine) == len(models) and not differ
    assert {mine[0], mine[1]} <= set(backwards) and not {mine[2], mine[3]} & set(backwards)


def test_numbers_and_gradients_are_those_of_transformers():
    """With the real kernels, also sharded with FSDP2 and computed again in the backward."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "tests.support.liger_worker"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, timeout=900)
    assert result.returncode == 0, result.stderr[-2000:]
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    results = dict(lines)
    errors = {name: float(results.pop(name)) for name in [*KINDS, *(f"sharded-{kind}" for kind in KINDS)]}
    assert all(error < 2e-6 for error in errors.values()), errors
    assert results == {f"trial-{part}-{kind}": "passed" for kind in KINDS for part in PARTS}


def test_when_it_is_applied(monkeypatch):
    swapped = []
    monkeypatch.setattr(liger, "swap", lambda model, parts: swapped.append(parts))
    monkeypatch.setattr(liger, "fault", lambda part, config, device: "")
    model = tiny_model("llama")
    assert apply_liger(model, "auto", GPU) == apply_liger(model, "on", GPU) == Applied(tuple(PARTS))
    assert swapped == [tuple(PARTS)] * 2
    assert apply_liger(model, "auto", CPU) == apply_liger(model, "off", GPU) == Applied()
    with pytest.raises(InputError, match="do not run on cpu; use --liger auto"):
        apply_liger(model, "on", CPU)
    monkeypatch.setattr(liger, "find_spec", lambda name: None)
    assert apply_liger(model, "auto", GPU) == Applied()
    with pytest.raises(InputError, match="liger-kernel is not installed; see siri doctor"):
        apply_liger(model, "on", GPU)
    assert len(swapped) == 2


def test_auto_leaves_out_what_does_not_fit_and_says_so(monkeypatch):
    faults = {"RoPE": "its numbers are off by 40%", "RMSNorm": "no module named triton"}
    swapped = []
    monkeypatch.setattr(liger, "swap", lambda model, parts: swapped.extend(parts))
    monkeypatch.setattr(liger, "fault", lambda part, config, device: faults.get(part, ""))
    model = tiny_model("llama")
    applied = apply_liger(model, "auto", GPU)
    assert list(applied.parts) == swapped == ["SwiGLU"]
    assert applied.notes == (
        "liger leaves out RMSNorm (no module named triton), RoPE (its numbers are off by 40%); that runs as "
        "transformers writes it",
    )
    with pytest.raises(InputError, match=r"liger is on, but does not fit in RMSNorm \(no .* use --liger auto, which"):
        apply_liger(model, "on", GPU)
    assert swapped == ["SwiGLU"]


def test_a_run_says_once_what_is_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(setup, "apply_liger", lambda model, choice, device: Applied((), ("liger leaves out all",)))
    run = ["train", "demo", "--steps", "1", "--eval-problems", "1", "--eval-samples", "1"]
    with patch("siri.report.view.write_report"):
        assert main([*run, "--run-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("liger leaves out all\n") == 1


def test_another_activation_keeps_its_mlp():
    assert fault("SwiGLU", tiny_model("llama", hidden_act="gelu").config, CPU) == "hidden_act is gelu"


class TestTrial:
    """RoPE is tried with transformers' own formula, because Liger's kernels do not run here."""

    @pytest.fixture
    def rope(self, monkeypatch):
        def put(function):
            monkeypatch.setattr(LIGER_ROPE, function)

        put(modeling_of("llama").apply_rotary_pos_emb)
        return put

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_fits_passes_and_no_random_number_is_drawn(self, kind, rope):
        config = tiny_model(kind, hidden_size=320, num_attention_heads=5, num_key_value_heads=1).config
        before, state = config.to_dict(), torch.get_rng_state()
        assert fault("RoPE", config, CPU) == ""
        assert torch.equal(torch.get_rng_state(), state) and config.to_dict() == before

    def test_scaled_frequencies_are_tried_as_they_are(self, rope):
        scaled = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0, "original_max_position_embeddings": 64}
        assert fault("RoPE", tiny_model("qwen2", rope_parameters=scaled).config, CPU) == ""

    def test_other_numbers(self, rope, backwards):
        assert fault("RoPE", tiny_model("qwen2").config, CPU).startswith("its numbers are off by ")
        rope(lambda q, k, cos, sin: (q * torch.nan, k))
        assert fault("RoPE", tiny_model("qwen2").config, CPU) == "its numbers are off by nan%"

    def test_an_error_of_a_package(self, rope):
        def broken(q, k, cos, sin):
            raise TypeError("no such kernel\nand more")

        rope(broken)
        assert fault("RoPE", tiny_model("qwen2").config, CPU) == "no such kernel"

    def test_attention_that_rotates_by_another_name(self, rope, tmp_path, monkeypatch):
        modeling = modeling_of("qwen2")
        text = Path(modeling.__file__).read_text().replace("apply_rotary_pos_emb", "turn")
        monkeypatch.setattr(modeling.__spec__, "origin", str(tmp_path / "modeling_qwen2.py"))
        Path(modeling.__spec__.origin).write_text(text)
        assert fault("RoPE", tiny_model("qwen2").config, CPU) == f"{modeling.__name__} has no apply_rotary_pos_emb"
        Path(modeling.__spec__.origin).write_text(text + "\napply_rotary_pos_emb = turn  # for those who import it\n")
        said = "qwen2 of this version of transformers does not rotate by apply_rotary_pos_emb"
        assert fault("RoPE", tiny_model("qwen2").config, CPU) == said

    def test_attention_that_somebody_else_has_replaced(self, rope, monkeypatch):
        attention = type(tiny_model("llama").model.layers[0].self_attn)
        monkeypatch.setattr(attention, "forward", lambda self, hidden_states, **kwargs: (hidden_states, None))
        assert fault("RoPE", tiny_model("llama").config, CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="Liger's kernels need a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu(kind):
    outcomes = []
    for swapped in (False, True):
        model = tiny_model(kind, hidden_size=256, intermediate_size=512).to(GPU)
        if swapped:
            assert apply_liger(model, "auto", GPU) == Applied(tuple(PARTS))
        torch.manual_seed(1)
        ids = torch.randint(0, VOCAB, (300,), device=GPU)
        hidden = packed_hidden(model, ids, PackedLayout.of([200, 100], GPU))
        (hidden * torch.randn_like(hidden)).sum().backward()
        outcomes.append([hidden.detach(), *(parameter.grad for parameter in model.model.parameters())])
    for plain, with_liger in zip(*outcomes, strict=True):
        assert float((plain.float() - with_liger.float()).norm() / plain.float().norm()) < 0.03
