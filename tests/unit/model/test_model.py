"""The padding-free forward pass against one-by-one forward passes, in fp64."""

import json
import random
from types import SimpleNamespace

import pytest
import torch

from siri.data.prompts import PromptSet
from siri.errors import InputError
from siri.model.attention import PackedLayout, varlen_attention
from siri.model.policy import check_prompts, checkpoint_activations, load_policy, make_policy, packed_hidden
from tests.support.tiny import VOCAB, bpe_tokenizer, save_tiny, tiny_model

CPU = torch.device("cpu")


def ragged(seed: int, count: int = 9, longest: int = 60) -> list[int]:
    draw = random.Random(seed)
    return [1, longest, *(draw.randint(1, longest) for _ in range(count))]


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("seed", range(3))
def test_packed_forward_and_gradient_equal_one_by_one(kind, seed):
    model = tiny_model(kind, dtype=torch.float64, seed=seed)
    lengths = ragged(seed)
    torch.manual_seed(seed)
    ids = [torch.randint(0, VOCAB, (n,)) for n in lengths]
    coefficients = torch.randn(sum(lengths), 32, dtype=torch.float64)

    packed = packed_hidden(model, torch.cat(ids), PackedLayout.of(lengths))
    (packed * coefficients).sum().backward()
    packed_grads = [parameter.grad.clone() for parameter in model.model.parameters()]

    model.zero_grad()
    model.set_attn_implementation("sdpa")  # transformers' own path (its eager one rounds to fp32)
    single = torch.cat([model.model(sequence[None], use_cache=False).last_hidden_state[0] for sequence in ids])
    (single * coefficients).sum().backward()
    torch.testing.assert_close(packed, single, rtol=1e-11, atol=1e-11)
    for gradient, parameter in zip(packed_grads, model.model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-9)


def test_the_tokens_that_end_a_response_do_not_depend_on_how_the_model_is_loaded(tmp_path):
    """generation_config.json names more of them than config.json, as with Qwen's instruction models."""
    folder = save_tiny(tmp_path / "model")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [2, 5]}))
    loaded, sharded = load_policy(str(folder), CPU), load_policy(str(folder), CPU, weights=False)
    assert loaded.stop_ids == sharded.stop_ids == {2, 5}
    (folder / "generation_config.json").unlink()
    loaded, sharded = load_policy(str(folder), CPU), load_policy(str(folder), CPU, weights=False)
    assert loaded.stop_ids == sharded.stop_ids == {2}


def test_no_token_sees_another_sequence():
    """Changing one sequence leaves every other row of the pack as it was, bit for bit."""
    model = tiny_model(dtype=torch.float64)
    lengths = ragged(5)
    ids = torch.randint(0, VOCAB, (sum(lengths),))
    layout = PackedLayout.of(lengths)
    before = packed_hidden(model, ids, layout)
    start = sum(lengths[:4])
    changed = ids.clone()
    changed[start : start + lengths[4]] = (changed[start : start + lengths[4]] + 1) % VOCAB
    after = packed_hidden(model, changed, layout)
    others = torch.ones(len(ids), dtype=torch.bool)
    others[start : start + lengths[4]] = False
    assert torch.equal(before[others], after[others])
    assert not torch.allclose(before[~others], after[~others])


def test_layout_restarts_positions_and_covers_every_row_once():
    lengths = [3, 7, 1, 6, 7]
    layout = PackedLayout.of(lengths)
    assert layout.cu_seqlens.tolist() == [0, 3, 10, 11, 17, 24] and layout.max_seqlen == 7
    assert layout.position_ids_N.tolist() == [i for n in lengths for i in range(n)]
    gathered = torch.cat([rows_SL.flatten() for rows_SL in layout.blocks])
    assert gathered[layout.place_N].tolist() == list(range(24))
    assert len(gathered) - 24 <= 0.25 * len(gathered), "padding"


def test_attention_with_grouped_queries_matches_the_formula():
    torch.manual_seed(0)
    lengths, heads, groups, size = [4, 9, 2], 6, 2, 5
    total = sum(lengths)
    query = torch.randn(total, heads, size, dtype=torch.float64)
    key, value = (torch.randn(total, groups, size, dtype=torch.float64) for _ in range(2))
    got = varlen_attention(query, key, value, PackedLayout.of(lengths), scale=0.3)
    start = 0
    for n in lengths:
        for head in range(heads):
            q, k, v = (
                query[start : start + n, head],
                key[start : start + n, head // 3],
                value[start : start + n, head // 3],
            )
            scores = (0.3 * q @ k.T).masked_fill(torch.ones(n, n).triu(1).bool(), float("-inf"))
            torch.testing.assert_close(got[start : start + n, head], scores.softmax(-1) @ v)
        start += n


def test_load_policy_round_trip(tmp_path):
    folder = save_tiny(tmp_path / "model", seed=7)
    policy = load_policy(str(folder), CPU)
    assert policy.stop_ids == {2} and policy.context == 512
    text = "so </think> 5 + 7"
    assert policy.decode(policy.tokenizer(text)["input_ids"] + [2]) == text
    expected = tiny_model(vocab_size=len(policy.tokenizer), seed=7).state_dict()
    assert all(torch.equal(expected[name], value) for name, value in policy.model.state_dict().items())


def test_model_folders_that_cannot_work(tmp_path):
    with pytest.raises(InputError, match=r"/nowhere/model: no such folder"):
        load_policy("/nowhere/model", CPU)
    with pytest.raises(InputError, match=r"runs/demo/model: no such folder"):  # no hub name has three parts
        load_policy("runs/demo/model", CPU)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: .*config\.json"):
        load_policy(str(tmp_path / "empty"), CPU)
    bare = tmp_path / "bare"
    tiny_model().save_pretrained(bare)
    with pytest.raises(InputError, match="bare: no tokenizer there"):
        load_policy(str(bare), CPU)
    with pytest.raises(InputError, match="sliding-window"):
        load_policy(
            str(save_tiny(tmp_path / "window", use_sliding_window=True, sliding_window=16, max_window_layers=0)), CPU
        )


# another attention (GPT-2, Mistral's and Gemma's windows), state spaces, hybrids of both, experts
OTHERS = ["gpt2", "mistral", "gemma2", "mamba", "mamba2", "falcon_mamba", "jamba", "bamba", "qwen3_next", "qwen2_moe"]


@pytest.mark.parametrize("kind", OTHERS)
def test_another_architecture_is_refused_by_name(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(InputError, match=rf"architecture '{kind}' is not among those checked .*llama, qwen2, qwen3"):
        load_policy(str(tmp_path), CPU)


FIXED = {
    "linear": {"factor": 2.0},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": 32},
    "llama3": {
        "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32
    },
}  # fmt: skip
MOVING = {
    "dynamic": {"factor": 2.0},
    "longrope": {
        "factor": 2.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 32
    },
}  # fmt: skip


@pytest.mark.parametrize("rotary", [*FIXED, *MOVING])
def test_rotary_embeddings_that_packing_would_change_are_refused(tmp_path, rotary):
    parameters = {"rope_type": rotary, "rope_theta": 1e4, **(FIXED | MOVING)[rotary]}
    options = {"rope_parameters": parameters, "max_position_embeddings": 64}
    model = tiny_model("llama", dtype=torch.float64, **options)
    lengths = [5, 100, 20]
    torch.manual_seed(0)
    ids = [torch.randint(0, VOCAB, (n,)) for n in lengths]
    packed = packed_hidden(model, torch.cat(ids), PackedLayout.of(lengths))
    model.set_attn_implementation("sdpa")
    single = torch.cat([model.model(sequence[None], use_cache=False).last_hidden_state[0] for sequence in ids])
    assert torch.allclose(packed, single, atol=1e-11) == (rotary in FIXED)
    folder = save_tiny(tmp_path / "model", kind="llama", **options)
    if rotary in FIXED:
        load_policy(str(folder), CPU)
    else:
        with pytest.raises(InputError, match=f"rope_type '{rotary}' turns a token by the length"):
            load_policy(str(folder), CPU)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("mode", ["full", "selective"])
def test_checkpointed_activations_change_memory_and_nothing_else(kind, mode):
    lengths = ragged(2)
    ids = torch.randint(0, VOCAB, (sum(lengths),))
    coefficients = torch.randn(sum(lengths), 32, dtype=torch.float64)
    grads, saved = [], []
    for checkpointing in ("none", mode):
        model = tiny_model(kind, dtype=torch.float64)
        checkpoint_activations(model, checkpointing)
        kept: list[int] = []

        def note(tensor, kept=kept):
            kept.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            hidden = packed_hidden(model, ids, PackedLayout.of(lengths))
        (hidden * coefficients).sum().backward()
        grads.append([parameter.grad for parameter in model.model.parameters()])
        saved.append(sum(kept))
    for gradient, gradient_again in zip(*grads, strict=True):
        assert torch.equal(gradient, gradient_again)
    assert saved[1] < 0.5 * saved[0]


class _Evil:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.torture
@pytest.mark.parametrize("trick", ["pickled weights", "model code", "tokenizer code"])
def test_a_model_folder_is_never_executed(tmp_path, trick):
    canary = tmp_path / "canary"
    folder = save_tiny(tmp_path / "model")
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    path = folder / ("tokenizer_config.json" if trick == "tokenizer code" else "config.json")
    settings = json.loads(path.read_text())
    if trick == "pickled weights":
        (folder / "model.safetensors").unlink()
        torch.save({"lm_head.weight": _Evil(canary)}, folder / "pytorch_model.bin")
    elif trick == "model code":
        settings["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
        settings["model_type"] = "evil"
    else:
        settings["auto_map"] = {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
        settings["tokenizer_class"] = "Tokenizer"
    path.write_text(json.dumps(settings))
    try:
        load_policy(str(folder), CPU)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert trick == "tokenizer code", "its data files may be read without its code"
    assert not canary.exists()


def test_an_adapter_without_its_base_is_named(tmp_path):
    config = {"peft_type": "LORA", "base_model_name_or_path": "org/base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"adapter_config\.json.*base_model_name_or_path 'org/base'.*merge"):
        load_policy(str(tmp_path), torch.device("cpu"))
    save_tiny(tmp_path)
    with pytest.raises(InputError, match=r"whole weights, but an adapter_config\.json as well and no adapter; delete"):
        load_policy(str(tmp_path), torch.device("cpu"))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    (tmp_path / "adapter_config.json").write_text("[")
    with pytest.raises(InputError, match=r"adapter_config\.json.*base_model_name_or_path None"):
        load_policy(str(tmp_path), torch.device("cpu"))


@pytest.mark.parametrize("weights", [True, False])
def test_tokens_that_the_embedding_has_no_row_for_are_refused(tmp_path, weights):
    tokenizer = bpe_tokenizer(["the answer is not known </think>"])
    save_tiny(tmp_path, tokenizer, vocab_size=len(tokenizer) - 1)
    policy = load_policy(str(tmp_path), torch.device("cpu"), weights=weights)
    last = len(tokenizer) - 1
    check_prompts(policy, PromptSet([[3, last - 1]], ["7"], 0, 0), 8, source="set.json")
    with pytest.raises(InputError, match=rf"set\.json: the tokenizer makes token {last} \(.*has {last} rows"):
        check_prompts(policy, PromptSet([[3, last]], ["7"], 0, 0), 8, source="set.json")


def test_a_response_that_could_never_end_is_refused():
    with pytest.raises(InputError, match="end-of-sequence token is 2000"):
        make_policy(tiny_model(eos_token_id=2000), SimpleNamespace(eos_token_id=None))
