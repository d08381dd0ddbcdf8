"""The formulas of the memory plan: what can be counted on a CPU is counted."""

import gc
from math import prod

import pytest
import torch

from siri.model import attention
from siri.model.attention import PackedLayout
from siri.model.policy import checkpoint_activations, packed_hidden
from siri.planning.formulas import (
    LEVELS,
    head_bytes,
    kept_and_redone,
    layer_bytes,
    parameter_shapes,
    sharded_bytes,
    update_moments,
    widths,
)
from tests.support.tiny import tiny_model

VARIANTS = {
    "qwen2": ("qwen2", {}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "qwen3 wide heads, biases": ("qwen3", {"head_dim": 24, "attention_bias": True}),
    "llama": ("llama", {}),
    "llama tied, biases": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
}


def qwen2(**settings):
    from transformers import AutoConfig

    return AutoConfig.for_model("qwen2", tie_word_embeddings=False, num_hidden_layers=28, **settings)


R1_1_5B = {
    "hidden_size": 1536,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8960,
    "vocab_size": 151936,
}
R1_7B = {
    "hidden_size": 3584,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
}


@pytest.fixture
def small():
    return qwen2(**R1_1_5B)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_those_of_the_model(variant):
    kind, settings = VARIANTS[variant]
    model = tiny_model(kind, **settings)
    assert parameter_shapes(model.config) == {
        name: tuple(parameter.shape) for name, parameter in model.named_parameters()
    }


def test_shards_are_those_of_torch():
    """FSDP2 cuts along the first dimension as torch.chunk does; the first rank has the largest part."""
    shapes = parameter_shapes(tiny_model("qwen3", vocab_size=97).config)
    for shards in (1, 3, 8, 64):
        first = [torch.empty(shape).chunk(shards)[0].nbytes for shape in shapes.values()]
        assert sharded_bytes(shapes, shards) == sum(first)


def saved_bytes(kind: str, layers: int, lengths: list[int], backend: str = "sdpa", **settings) -> int:
    """What autograd keeps for the backward of a bf16 forward pass, each storage once, parameters left out. Where
    others than sdpa attend, the tensors have no data."""
    device = "cpu" if backend == "sdpa" else "meta"
    model = tiny_model(kind, dtype=torch.bfloat16, num_hidden_layers=layers, **settings).to(device)
    held_by_model = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def note(tensor):
        if tensor.untyped_storage()._cdata not in held_by_model:
            kept[tensor.untyped_storage()._cdata] = tensor  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        ids = torch.zeros(sum(lengths), dtype=torch.int64, device=device)
        output = packed_hidden(model, ids, PackedLayout.of(lengths, device, backend))
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


SIZES = [{}, {"hidden_size": 64, "intermediate_size": 80}, {"num_attention_heads": 8, "head_dim": 24}]


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("settings", SIZES)
def test_a_layer_keeps_what_the_formula_says(kind, settings):
    lengths = [40, 40]  # of one length, because blocks of unequal lengths are padded
    more, fewer = (saved_bytes(kind, layers, lengths, **settings) for layers in (3, 2))
    assert (more - fewer) / sum(lengths) == layer_bytes(tiny_model(kind, **settings).config, attention="sdpa")


class Kernel(torch.autograd.Function):
    """What flash-attn's kernels and flex, compiled, keep; their output lies in memory as the queries do."""

    @staticmethod
    def forward(ctx, query, key, value):
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("settings", [*SIZES, {"num_attention_heads": 6, "hidden_size": 48}])
@pytest.mark.parametrize("backend", ["varlen", "varlen of torch 2.11", "flash2", "flex"])
def test_other_kernels_than_sdpa_keep_their_output_once(backend, kind, settings, monkeypatch):
    import torch.nn.attention.varlen as varlen

    def without_groups(*tensors_and_lengths, scale=None, window_size=(-1, -1)):
        return with_groups(*tensors_and_lengths, scale=scale, window_size=window_size)

    with_groups = varlen.varlen_attn
    if backend == "varlen of torch 2.11":
        monkeypatch.setattr(varlen, "varlen_attn", without_groups)
    monkeypatch.setattr(attention, "_flash_function", lambda _: lambda q, k, v, **_: Kernel.apply(q, k, v))
    monkeypatch.setattr(attention, "_plain_flex", lambda: lambda q, k, v, **_: Kernel.apply(q, k, v))
    lengths, name = [40, 10], backend.split()[0]
    more, fewer = (saved_bytes(kind, layers, lengths, name, **settings) for layers in (3, 2))
    config = tiny_model(kind, **settings).config
    # varlen also keeps the state of the random numbers, 16 bytes a layer whatever the tokens
    assert (more - fewer) / sum(lengths) == pytest.approx(layer_bytes(config, attention=name), abs=0.5)
    _, queries, keys = widths(config)
    once = layer_bytes(config, attention="sdpa") - 2 * queries
    if backend != "varlen":  # that of another torch
        repeated = backend == "varlen of torch 2.11" or (name == "flex" and config.num_attention_heads == 6)
        assert layer_bytes(config, attention=name) == once + repeated * 4 * (queries - keys)


def recorded(run) -> int:
    """Bytes that run() allocates and that its result holds, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    gc.collect()  # so that nothing older is freed while it is recorded
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            held = run()
    finally:
        gc.enable()
    del held
    return sum(event.nbytes() for event in record.profiler.kineto_results.events() if event.name() == "[memory]")


@pytest.mark.parametrize("checkpointing", LEVELS)
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("qwen2", {"hidden_size": 64, "intermediate_size": 384}),
        ("qwen2", {}),
        ("qwen3", {"hidden_size": 64, "intermediate_size": 384}),
        ("llama", {"hidden_size": 64, "intermediate_size": 384}),
    ],
)
def test_every_level_of_checkpointing_keeps_what_the_formula_says(kind, settings, checkpointing):
    kept, tokens = {}, 600
    for layers in (2, 3):
        model = tiny_model(kind, dtype=torch.bfloat16, num_hidden_layers=layers, **settings)
        checkpoint_activations(model, checkpointing)
        ids, layout = torch.zeros(tokens, dtype=torch.int64), PackedLayout.of([tokens // 2] * 2)
        kept[layers] = recorded(lambda model=model, ids=ids, layout=layout: packed_hidden(model, ids, layout))
    # checkpointing also keeps the state of the random numbers, 5 KB a layer whatever the tokens
    expected = kept_and_redone(model.config, checkpointing, attention="sdpa")[0]
    assert (kept[3] - kept[2]) / tokens == pytest.approx(expected, abs=10)


def test_checkpointing_keeps_less_and_computes_more(small):
    levels = [kept_and_redone(small, level) for level in ("none", "selective", "full")]
    assert levels[0] == (layer_bytes(small), 0)
    assert levels[2] == (2 * 1536, layer_bytes(small))
    kept, anew = zip(*levels, strict=True)
    assert kept[0] > kept[1] > kept[2] > 0
    assert anew[0] < anew[1] < anew[2]
    peaks = [
        max(update_moments(small, 36864, shards=8, checkpointing=level).values()) for level in ("none", "selective")
    ]
    assert peaks[0] > 2 * peaks[1]


def test_head_follows_the_kernels():
    """In chunks the logits take at most their budget, whatever the tokens; with few tokens, just their own rows."""
    from siri_kernels.chunked import BUDGET

    config = qwen2(**R1_1_5B)
    per_token = 4 * 1536 + 2 * 1536
    chunked = [head_bytes(config, tokens) - per_token * tokens for tokens in (32768, 65536)]
    assert chunked[0] == chunked[1]
    logits = chunked[0] - 4 * prod((151936, 1536))
    assert 0.5 * BUDGET["cuda"]["fast"] < logits < BUDGET["cuda"]["fast"] * (1 + 1536 / 151936)
    few = 100  # the backward is the peak then: dW in bf16, and the exponentials and inputs that it is formed from
    assert head_bytes(config, few) == 2 * 151936 * 1536 + 2 * few * (151936 + 1536) + 8 * 1536 * few
