"""Every attention backend gives the numbers of one-by-one attention; where its kernels need a GPU, a stand-in with the
package's own signature checks what is passed to it."""

import sys
import types
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from siri.errors import InputError
from siri.model import attention
from siri.model.attention import PackedLayout, varlen_attention
from tests.support.synchronisations import Synchronisations

CPU = torch.device("cpu")
PACKS = [[5, 300, 1, 140], [128, 128, 256], [1], [127, 2, 400, 3, 3, 129]]


def pack(lengths, heads=6, groups=2, size=16, dtype=torch.float32, device=CPU):
    torch.manual_seed(0)
    return [torch.randn(sum(lengths), n, size, device=device).to(dtype) for n in (heads, groups, groups)]


def one_by_one(tensors, lengths, scale):
    outputs = []
    for query, key, value in zip(*(tensor.split(lengths) for tensor in tensors), strict=True):
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query, key) * scale
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], device=query.device).triu(1).bool(), float("-inf"))
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), value))
    return torch.cat(outputs)


@pytest.mark.parametrize("lengths", PACKS)
def test_sdpa_forward_and_gradient(lengths):
    tensors = [x.requires_grad_() for x in pack(lengths, dtype=torch.float64)]
    got = varlen_attention(*tensors, PackedLayout.of(lengths), scale=0.3)
    wanted = one_by_one(tensors, lengths, 0.3)
    torch.testing.assert_close(got, wanted)
    upstream = torch.randn_like(wanted)
    for result, truth in zip(
        torch.autograd.grad(got, tensors, upstream), torch.autograd.grad(wanted, tensors, upstream), strict=True
    ):
        torch.testing.assert_close(result, truth)


@pytest.mark.parametrize("groups", [1, 2, 6])  # the shares 6, 3 and 1 are no powers of two, and none
@pytest.mark.parametrize("lengths", PACKS)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_forward(lengths, groups):
    tensors = pack(lengths, groups=groups)
    got = varlen_attention(*tensors, PackedLayout.of(lengths, backend="flex"), scale=0.3)
    torch.testing.assert_close(got, one_by_one(tensors, lengths, 0.3))


@pytest.mark.parametrize("lengths", PACKS)
def test_the_block_mask_of_flex_is_the_one_that_torch_builds_from_all_pairs(lengths):
    from torch.nn.attention.flex_attention import create_block_mask

    mask = PackedLayout.of(lengths, backend="flex").block_mask
    total = sum(lengths)
    wanted = create_block_mask(mask.mask_mod, None, None, total, total, device="cpu", BLOCK_SIZE=attention.TILE)
    assert torch.equal(mask.to_dense(), wanted.to_dense())
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(mask, name), getattr(wanted, name)), name


# Signatures copied from the packages: flash-attn 2.8 (flash_attn), flash-attn 3 (flash_attn_interface), 4
# (flash_attn.cute) and torch 2.11 and 2.13 (torch.nn.attention.varlen).


class Seen(dict):
    """What a stand-in was called with; it answers with plain attention, cut at its cu_seqlens."""

    def answer(self, **passed):
        self.update(passed)
        starts = passed["cu"].tolist()
        lengths = [end - start for start, end in pairwise(starts)]
        return one_by_one((passed["q"], passed["k"], passed["v"]), lengths, passed["scale"])


def flash2(seen):
    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False,
        return_attn_probs=False, block_table=None,
    ):  # fmt: skip
        assert not dropout_p and window_size == (-1, -1) and not softcap and block_table is None
        seen.update(cu_k=cu_seqlens_k, longest=(max_seqlen_q, max_seqlen_k), causal=causal)
        return seen.answer(q=q, k=k, v=v, cu=cu_seqlens_q, scale=softmax_scale)

    return {"flash_attn": flash_attn_varlen_func}


def flash3(seen):
    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
        softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
        window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
        sm_margin=0, return_attn_probs=False,
    ):  # fmt: skip
        assert window_size == (-1, -1) and seqused_q is None and seqused_k is None and qv is None
        seen.update(cu_k=cu_seqlens_k, longest=(max_seqlen_q, max_seqlen_k), causal=causal)
        return seen.answer(q=q, k=k, v=v, cu=cu_seqlens_q, scale=softmax_scale)

    return {"flash_attn_interface": flash_attn_varlen_func}


def flash4(seen):
    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, seqused_q=None,
        seqused_k=None, page_table=None, softmax_scale=None, causal=False, window_size=(None, None),
        learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, score_mod=None,
        mask_mod=None, block_sparse_tensors=None, cu_total_m_blocks=None, cu_total_n_blocks=None, aux_tensors=None,
        return_lse=False,
    ):  # fmt: skip
        assert window_size == (None, None) and page_table is None and seqused_q is None
        seen.update(cu_k=cu_seqlens_k, longest=(max_seqlen_q, max_seqlen_k), causal=causal)
        return seen.answer(q=q, k=k, v=v, cu=cu_seqlens_q, scale=softmax_scale), None

    return {"flash_attn": None, "flash_attn.cute": flash_attn_varlen_func}


@pytest.mark.parametrize("make", [flash2, flash3, flash4])
def test_what_flash_attn_is_given(make, monkeypatch):
    seen = Seen()
    for name, function in make(seen).items():
        module = types.ModuleType(name)
        module.flash_attn_varlen_func = function
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
    lengths = PACKS[0]
    tensors = pack(lengths, dtype=torch.bfloat16)
    got = varlen_attention(*tensors, PackedLayout.of(lengths, backend=make.__name__), scale=0.3)
    assert seen["cu"].dtype == torch.int32 and seen["cu"].tolist() == [0, 5, 305, 306, 446]
    assert seen["cu_k"] is seen["cu"]
    assert seen["longest"] == (300, 300) and all(type(length) is int for length in seen["longest"])
    assert seen["causal"] is True and seen["scale"] == 0.3
    assert [seen[name].shape for name in "qkv"] == [(446, 6, 16), (446, 2, 16), (446, 2, 16)], "groups stay groups"
    torch.testing.assert_close(got, one_by_one(tensors, lengths, 0.3))
    single = varlen_attention(*(x.float() for x in tensors), PackedLayout.of(lengths, backend=make.__name__), scale=0.3)
    assert seen["q"].dtype == torch.bfloat16 and single.dtype == torch.float32, "fp32 is computed in bf16"


@pytest.mark.parametrize("knows_groups", [True, False])
def test_what_torch_varlen_is_given(knows_groups, monkeypatch):
    seen = Seen()

    def with_groups(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1),
        enable_gqa=False, seqused_k=None, block_table=None, num_splits=None,
    ):  # fmt: skip
        seen.update(longest=(max_q, max_k), window=window_size, grouped=enable_gqa)
        return seen.answer(q=query, k=key, v=value, cu=cu_seq_q, scale=scale)

    def without(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
    ):
        return with_groups(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)

    import torch.nn.attention.varlen as varlen

    monkeypatch.setattr(varlen, "varlen_attn", with_groups if knows_groups else without)
    lengths = PACKS[0]
    tensors = pack(lengths, dtype=torch.bfloat16)
    got = varlen_attention(*tensors, PackedLayout.of(lengths, backend="varlen"), scale=0.3)
    assert seen["window"] == (-1, 0), "causal, by torch's documentation"
    assert seen["longest"] == (300, 300) and all(type(length) is int for length in seen["longest"])
    assert seen["grouped"] is knows_groups and seen["k"].shape[1] == (2 if knows_groups else 6)
    torch.testing.assert_close(got, one_by_one(tensors, lengths, 0.3))


def test_the_arguments_for_torch_varlen_are_those_of_this_torch():
    """Against the function that is installed: it is called, down to the operator that needs a GPU."""
    lengths = PACKS[0]
    with pytest.raises(NotImplementedError, match="_flash_attention_forward"):
        varlen_attention(*pack(lengths, dtype=torch.bfloat16), PackedLayout.of(lengths, backend="varlen"), scale=0.3)


@pytest.mark.parametrize("backend", ["sdpa", "flash2"])
def test_no_layer_waits_for_the_device(backend, monkeypatch):
    monkeypatch.setattr(attention, "_flash_function", lambda name: lambda q, k, v, **options: q * 2)
    lengths = PACKS[3]
    layout = PackedLayout.of(lengths, backend=backend)
    tensors = [x.requires_grad_() for x in pack(lengths)]
    with Synchronisations() as seen:
        varlen_attention(*tensors, layout, scale=0.3).sum().backward()
        assert not seen.operators
        tensors[0][tensors[0] > 0]
    assert seen.operators, "the list would show one"


SHAPES = SimpleNamespace(num_attention_heads=4, num_key_value_heads=2, hidden_size=64, head_dim=16)


def test_the_choice_goes_by_what_works(monkeypatch):
    gpu = torch.device("cuda", 0)
    faults = {"flash3": "no module", "flash4": "no backward", "flash2": "", "varlen": "", "flex": ""}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(attention, "fault", lambda backend, *rest: faults.get(backend, ""))
    capability = (9, 0)
    assert attention.candidates(gpu) == ("flash3", "flash4", "flash2", "varlen", "flex", "sdpa")
    assert attention.select_backend("auto", gpu) == "flash2"
    faults["flash2"] = faults["varlen"] = "no module"
    assert attention.select_backend("auto", gpu) == "flex"
    assert attention.select_backend("auto", gpu, checkpointing="selective") == "sdpa"
    with pytest.raises(InputError, match=r"attention flash4 does not work here .no backward.; use --attention auto"):
        attention.select_backend("flash4", gpu)
    with pytest.raises(InputError, match="selective cannot keep what flex attends; use --checkpointing full"):
        attention.select_backend("flex", gpu, checkpointing="selective")
    (line,) = attention.notes("flash2", gpu, SHAPES)
    assert line.startswith("attention: flash-attn 2; faster on this GPU would be flash3 (no module; built from ")
    assert "flash4 (no backward; pip install --pre flash-attn-4)" in line
    assert attention.notes("flash3", gpu, SHAPES) == ("attention: flash-attn 3",)
    (line,) = attention.notes("varlen", gpu, SHAPES)
    assert "torch's varlen, on the kernels of FlashAttention 2; faster" in line and "flash2 (no module; pip" in line
    assert attention.notes("sdpa", CPU, SHAPES) == ()
    capability = (10, 0)
    assert attention.candidates(gpu)[0] == "flash4" and "flash3" not in attention.candidates(gpu)
    capability = (7, 5)
    assert attention.candidates(gpu) == ("sdpa",)


@pytest.mark.parametrize("name", ["flash4", "flash3", "flash2", "varlen", "flex"])
def test_on_a_cpu_only_sdpa_trains(name):
    assert attention.select_backend("auto", CPU) == attention.select_backend("sdpa", CPU) == "sdpa"
    with pytest.raises(InputError, match=rf"attention {name} does not work here .it has no backward on cpu."):
        attention.select_backend(name, CPU)


def test_a_backend_whose_numbers_are_wrong_is_refused(monkeypatch):
    """The trial itself, on CPU tensors that pass for a GPU's: right, wrong by the mask, and broken."""

    class Gpu:
        type = "cuda"

    monkeypatch.setattr(attention, "PackedLayout", Here)
    real = torch.randn, torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device: real[1]())
    monkeypatch.setattr(torch, "randn", lambda *shape, device, generator: real[0](*shape, generator=generator))

    def right(q, k, v, cu_seqlens_q, softmax_scale, **options):
        return Seen().answer(q=q, k=k, v=v, cu=cu_seqlens_q, scale=softmax_scale)

    def across(q, k, v, cu_seqlens_q, softmax_scale, **options):
        return one_by_one((q, k, v), [len(q)], softmax_scale)

    def broken(q, *rest, **options):
        raise AssertionError("varlen backward is not yet supported on sm90\nmore")

    said = []
    for function in (right, across, broken):
        monkeypatch.setattr(attention, "_flash_function", lambda name, function=function: function)
        said.append(attention.fault.__wrapped__("flash4", Gpu()))
    assert said[0] == "" and "off by" in said[1] and said[2] == "varlen backward is not yet supported on sm90"


class Here:
    """PackedLayout, but on the CPU whatever device is asked for."""

    @staticmethod
    def of(lengths, device, backend):
        return PackedLayout.of(lengths, "cpu", backend)


def test_a_sliding_window_is_refused():
    from transformers import AttentionInterface

    attention.register()
    forward = AttentionInterface()[attention.NAME]
    tensors = [torch.randn(1, 2, 4, 8) for _ in range(3)]
    layout = PackedLayout.of([4])
    forward(None, *tensors, None, layout=layout, sliding_window=None)
    with pytest.raises(InputError, match="no sliding window"):
        forward(None, *tensors, None, layout=layout, sliding_window=2)


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="its kernels need a GPU")


@GPU
@pytest.mark.parametrize("backend", ["flash4", "flash3", "flash2", "varlen", "flex", "sdpa"])
@pytest.mark.parametrize("heads, groups, size", [(12, 2, 128), (4, 4, 64), (32, 8, 128)])
def test_backends_on_a_gpu(backend, heads, groups, size):
    device = torch.device("cuda")
    if reason := attention.fault(backend, device, heads, groups, size):
        pytest.skip(f"{backend}: {reason}")
    for lengths in PACKS:
        tensors = [x.requires_grad_() for x in pack(lengths, heads, groups, size, torch.bfloat16, device)]
        got = varlen_attention(*tensors, PackedLayout.of(lengths, device, backend), scale=size**-0.5)
        exact = [x.detach().double().requires_grad_() for x in tensors]
        wanted = one_by_one(exact, lengths, size**-0.5)
        upstream = torch.randn_like(got)
        results = [got, *torch.autograd.grad(got, tensors, upstream)]
        truths = [wanted, *torch.autograd.grad(wanted, exact, upstream.double())]
        for result, truth in zip(results, truths, strict=True):
            assert float((result.double() - truth).norm() / truth.norm()) < 0.01


@GPU
def test_no_layer_synchronises_on_a_gpu():
    device = torch.device("cuda")
    lengths = PACKS[3]
    layout = PackedLayout.of(lengths, device, attention.select_backend("auto", device))
    tensors = [x.requires_grad_() for x in pack(lengths, size=64, dtype=torch.bfloat16, device=device)]
    varlen_attention(*tensors, layout, scale=0.1).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        varlen_attention(*tensors, layout, scale=0.1).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_selective_checkpointing_keeps_the_result_of_each_backend():
    """By the name of the operator, as torch and flash-attn register it."""
    from torch.utils.checkpoint import CheckpointPolicy

    from siri.model.policy import keep_attention

    kept = ["flash_attn::_flash_attn_varlen_forward", "flash_attn_3::_flash_attn_forward", "torch_attn::_varlen_attn"]
    kept += ["aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_cudnn_attention"]
    for name in kept:
        namespace, operator = name.split("::")
        assert keep_attention(None, f"{namespace}.{operator}.default") == CheckpointPolicy.MUST_SAVE, name
    import torch.nn.attention.varlen  # registers it

    assert keep_attention(None, torch.ops.torch_attn._varlen_attn.default) == CheckpointPolicy.MUST_SAVE
    assert keep_attention(None, torch.ops.aten.mm.default) == CheckpointPolicy.PREFER_RECOMPUTE


def test_a_backend_gets_every_layer_of_a_model_and_of_an_update(monkeypatch):
    """From the setting to each layer: the stand-in attends for whole models, with the numbers of sdpa."""
    from siri.runtime.stopwatch import Stopwatch
    from siri.train import learner
    from tests.support.tiny import tiny_policy
    from tests.support.update import update_policy
    from tests.unit.train.test_update import config, make_samples

    asked, seen = [], Seen()

    def chosen(name, device, model_config, checkpointing):
        asked.append((name, device, checkpointing))
        return "flash2"

    calls = []

    def stand_in(q, k, v, cu_seqlens_q, softmax_scale, **options):
        calls.append(options["max_seqlen_q"])
        return seen.answer(q=q, k=k, v=v, cu=cu_seqlens_q, scale=softmax_scale)

    monkeypatch.setattr(attention, "_flash_function", lambda name: stand_in)
    outcomes = []
    for setting in ("sdpa", "flash2"):
        if setting == "flash2":
            monkeypatch.setattr(learner, "select_backend", chosen)
        policy = tiny_policy(dtype=torch.float64)
        optimizer = torch.optim.SGD(policy.model.parameters(), lr=1.0)
        settings = config(attention=setting)
        samples = make_samples(1)
        metrics = update_policy(policy, optimizer, [samples], settings, watch=Stopwatch(CPU), token_budget=150)
        outcomes.append([parameter.detach() for parameter in policy.model.parameters()])
    assert asked == [("flash2", CPU, "none")]
    assert len(calls) == metrics["micro_steps"] * 2, "both layers of each micro-step"
    assert max(calls) == max(len(sample) for sample in samples)
    for value, value_of_sdpa in zip(*outcomes, strict=True):
        torch.testing.assert_close(value, value_of_sdpa, rtol=1e-9, atol=1e-9)


def test_shapes_that_change_do_without_cudnn():
    """It plans anew for every shape, and torch prefers it on an H100: the rest of torch's dense attention stays."""
    cuda = torch.backends.cuda
    kinds = (cuda.cudnn_sdp_enabled, cuda.flash_sdp_enabled, cuda.mem_efficient_sdp_enabled, cuda.math_sdp_enabled)
    before = [enabled() for enabled in kinds]
    with attention.any_shape(torch.device("cuda", 0)):
        assert [enabled() for enabled in kinds] == [False, True, True, True]
    assert [enabled() for enabled in kinds] == before
    with attention.any_shape(CPU):
        assert [enabled() for enabled in kinds] == before


@pytest.mark.parametrize(
    "option, said",
    [
        (["--attention", "flash3"], "attention flash3 does not work here (it has no backward on cpu)"),
        (["--liger", "on"], "liger is on, but its kernels do not run on cpu; use --liger auto"),
    ],
)
def test_training_says_at_once_what_cannot_be_had(tmp_path, capsys, option, said):
    from siri import cli

    run = tmp_path / "run"
    assert cli.main(["train", "demo", "--device", "cpu", "--run-dir", str(run), *option]) == 2
    assert said in capsys.readouterr().err and not run.exists()
