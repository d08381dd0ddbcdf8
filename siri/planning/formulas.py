"""Formulas of the memory plan: parameters, shards, activations, the head, the moments of an update.

P = parameters, D = hidden size, I = intermediate size, V = vocabulary, H and K = query and key-value heads, Q and C
their total widths (heads * head size), L = layers, N = tokens of a micro-step, S = shards. Figures are bytes.

Parameters and shards are exact. What the layers keep is held to torch's own record of memory on a CPU, where sdpa
attends, with varlen to what autograd saves of tensors without data, and to stand-ins for flash-attn and flex. The
moments of an update are held within 3 % to what the trainer's own update makes on fake CUDA tensors (tests/fake_cuda).
On a GPU one step has been compared, which peaked 7 % below its plan (docs/gpu.md); what kernels take beside their
results, and fragmentation, have not been looked at apart.

With the head cut by vocabulary (vocab_parts > 1) V is that of a part in the head's terms, N there that of all ranks.
"""

from collections.abc import Collection
from math import prod
from typing import Any, Literal

from siri.packing.flops import head_size

Checkpointing = Literal["none", "selective", "full"]
LEVELS: tuple[Checkpointing, ...] = ("none", "selective", "full")
Shapes = dict[str, tuple[int, ...]]
TILE_COLUMNS = 128
"""Of the head's GEMM: it keeps three sums for each row and tile."""
RESERVE = 0.08
"""Share of a GPU's memory that is kept free: the CUDA context, NCCL's buffers, fragmentation."""


def parameter_shapes(model_config: Any) -> Shapes:
    """Name -> shape of every parameter, as transformers names them, of a Qwen2, Qwen3 or Llama configuration. A head
    that is tied to the embedding is not listed twice."""
    c = model_config
    hidden, inner, vocab = c.hidden_size, c.intermediate_size, c.vocab_size
    head, queries, keys = widths(c)
    qkv_bias = c.model_type == "qwen2" or getattr(c, "attention_bias", False)
    out_bias = c.model_type != "qwen2" and getattr(c, "attention_bias", False)
    mlp_bias = c.model_type == "llama" and getattr(c, "mlp_bias", False)
    rows_of = {"q": queries, "k": keys, "v": keys}
    matrices = [(f"self_attn.{name}_proj", rows, hidden, qkv_bias) for name, rows in rows_of.items()]
    matrices += [("self_attn.o_proj", hidden, queries, out_bias)]
    matrices += [(f"mlp.{name}_proj", inner, hidden, mlp_bias) for name in ("gate", "up")]
    matrices += [("mlp.down_proj", hidden, inner, mlp_bias)]
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    for index in range(c.num_hidden_layers):
        layer = f"model.layers.{index}."
        for name, rows, columns, bias in matrices:
            shapes[f"{layer}{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{layer}{name}.bias"] = (rows,)
        if c.model_type == "qwen3":
            shapes |= {f"{layer}self_attn.{name}_norm.weight": (head,) for name in "qk"}
        shapes |= {f"{layer}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    shapes["model.norm.weight"] = (hidden,)
    if not c.tie_word_embeddings:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def adapter_shapes(model_config: Any, rank: int, targets: Collection[str]) -> Shapes:
    """Name -> shape of every parameter of a LoRA adapter on the named linear layers; none of rank 0."""
    shapes: Shapes = {}
    for name, shape in parameter_shapes(model_config).items() if rank else ():
        layer = name.removesuffix(".weight")
        if len(shape) == 2 and layer.rpartition(".")[2] in targets:
            shapes |= {f"{layer}.lora_A.weight": (rank, shape[1]), f"{layer}.lora_B.weight": (shape[0], rank)}
    return shapes


def sharded_bytes(shapes: Shapes, shards: int, itemsize: int = 4) -> int:
    """Bytes on the first of `shards` GPUs: FSDP2 cuts every parameter along its first dimension, rounded up."""
    return sum(-(-shape[0] // shards) * prod(shape[1:]) for shape in shapes.values()) * itemsize


def layer_bytes(model_config: Any, liger: Collection[str] = (), attention: str = "auto") -> int:
    """What autograd keeps of one layer for each token, without checkpointing, bytes (bf16 compute):

    two RMSNorms                      2 (4D fp32 copy + 2D normalised + 2D result + 4)
    queries, keys, values, output     2Q + 4C + 2Q, log-sum-exp 4H
    Qwen3's norms of queries, keys    6 (Q + C) + 4 (H + K)
    gate, up, silu(gate), product     8I

    liger: of its parts (`siri.model.liger.PARTS`), RMSNorm keeps its input as it is, so 4D less for each norm, and
    SwiGLU computes silu(gate) anew, 2I less. RoPE keeps what transformers' own does.

    attention: the backend; auto is planned as varlen. What kernels for packed sequences and flex write is in the pack's
    order and goes into the projection as it is. sdpa attends in blocks of sequences of like length: their output in
    the pack's order is a second one, 2Q more, and its part grows by up to a third where lengths differ. A backend that
    does not know the model's groups of queries keeps keys and values for every query head, 4Q in the place of 4C.
    """
    from siri.model.attention import repeats_keys

    c = model_config
    _, queries, keys = widths(c)
    size = 16 * c.hidden_size + 8 + 4 * queries + 4 * keys + 4 * c.num_attention_heads + 8 * c.intermediate_size
    if attention == "sdpa":
        size += 2 * queries
    if repeats_keys("varlen" if attention == "auto" else attention, c.num_attention_heads // c.num_key_value_heads):
        size += 4 * (queries - keys)
    if c.model_type == "qwen3":
        size += 6 * (queries + keys) + 4 * (c.num_attention_heads + c.num_key_value_heads)
    less = 8 * c.hidden_size * ("RMSNorm" in liger) + 2 * c.intermediate_size * ("SwiGLU" in liger)
    return size - less


def kept_and_redone(
    model_config: Any, checkpointing: Checkpointing, liger: Collection[str] = (), attention: str = "auto"
) -> tuple[int, int]:
    """Bytes for each token: what every layer keeps, and what the layer in its backward computes anew.

    none       kept `layer_bytes`, nothing anew
    selective  kept the layer's input 2D and attention's result 2Q + 4H; anew `layer_bytes` less that result
    full       kept the layer's input 2D; anew `layer_bytes`
    """
    whole = layer_bytes(model_config, liger, attention)
    if checkpointing == "none":
        return whole, 0
    _, queries, _ = widths(model_config)
    attended = 2 * queries + 4 * model_config.num_attention_heads if checkpointing == "selective" else 0
    return 2 * model_config.hidden_size + attended, whole - attended


def backward_bytes(
    model_config: Any, checkpointing: Checkpointing, liger: Collection[str] = (), attention: str = "auto"
) -> int:
    """Bytes for each token on top of what is kept, at the worst moment of the layers' backward: what the layer computed
    anew, and 6I + 4D of gradients; with Liger's SwiGLU, which writes gradients over what it kept, 2I + 2D."""
    c = model_config
    redone = kept_and_redone(c, checkpointing, liger, attention)[1]
    if "SwiGLU" in liger:
        return redone + 2 * c.intermediate_size + 2 * c.hidden_size
    return redone + 6 * c.intermediate_size + 4 * c.hidden_size


def head_rows(model_config: Any, vocab_parts: int) -> int:
    """Rows of the vocabulary on the first of so many ranks."""
    return -(-model_config.vocab_size // vocab_parts)


def head_bytes(
    model_config: Any,
    tokens: int,
    *,
    multiprocessors: int = 132,
    vocab_parts: int = 1,
    adapter: Shapes | None = None,
) -> int:
    """Peak of the fused LM head and loss over `tokens` response tokens (`siri_kernels.chunked`, memory="fast", bf16,
    the anchored path, which a Hopper GPU takes). With n rows in a chunk and T = V / 128 tiles:

      hidden states and their rows  4ND; with a cut head the rows of all ranks, 2ND, beside its own
      the loop   exponentials of a chunk 2nV; the larger of the sums of its tiles 12nT + 2nD, and its dX in fp32 and in
                 bf16 or the weighted inputs 6nD; dW 4VD (fp32) unless there is but one chunk, dX 2ND
      backward   dW 4VD and in bf16 2VD, or with one chunk its exponentials, the weighted inputs 2nD and dW 2VD; dX
                 twice 4ND
    """
    from siri_kernels.chunked import BUDGET, MIN_ROWS, whole_waves

    hidden, vocab, here = model_config.hidden_size, head_rows(model_config, vocab_parts), tokens
    tokens *= vocab_parts  # the ranks gather the hidden states of all of them
    rows = max(MIN_ROWS, BUDGET["cuda"]["fast"] // (2 * vocab))
    rows = tokens if rows >= tokens else whole_waves(rows, hidden, multiprocessors)
    taught, beside = hidden, 0
    if adapter:
        taught = adapter.get("lm_head.lora_B.weight", (0, 0))[1]
        beside = 2 * vocab * (hidden + taught) if taught else 0
    chunk = 2 * rows * (-(-vocab // 64) * 64)
    single = rows == tokens
    late = chunk + 2 * rows * hidden + 2 * vocab * taught if single else 6 * vocab * taught
    chunk += max(12 * rows * -(-vocab // TILE_COLUMNS) + 2 * rows * hidden, 6 * rows * hidden)
    loop = chunk + (0 if single else 4 * vocab * taught) + 2 * tokens * hidden
    backward = late + 4 * tokens * hidden
    rows_of_all = 2 * tokens * hidden if vocab_parts > 1 else 0
    return 4 * here * hidden + rows_of_all + beside + max(loop, backward)


def update_moments(
    model_config: Any,
    tokens: int,
    *,
    shards: int,
    checkpointing: Checkpointing,
    multiprocessors: int = 132,
    accumulated: int = 0,
    vocab_parts: int = 1,
    visiting: int = 0,
    adapter: Shapes | None = None,
    liger: Collection[str] = (),
    attention: str = "auto",
) -> dict[str, int]:
    """Bytes on top of weights, gradients, optimizer state and gathered weights, at each moment of an update whose
    micro-step has `tokens` tokens. With kept = N (L * kept of a layer + 6D + 28): layers, last norm (Liger's: 2D),
    ids and places,

    head        kept + `head_bytes` + accumulated, less the layers, which are not gathered then, 4 P_layer
    backward    kept + N `backward_bytes` + bf16 gradient of the head 2VD + a layer's gradients, in bf16 and in fp32
                for the reduction, 6 P_layer (with Liger's SwiGLU the worst comes before them), + accumulated
    reduction   the root's gradients, 6 P_root
    optimizer   AdamW's square roots, fp32, 4P / S, or what `visiting` says of an optimizer whose moments are offloaded

    accumulated: see `accumulated_bytes`. liger, attention: see `layer_bytes`. adapter: shapes of one, which alone has
    gradients then; the layers keep 2 bytes of each of its ranks for every token on top. Without an adapter held within
    3 % to the storages that the update itself makes on fake CUDA tensors (tests/fake_cuda).
    """
    c = model_config
    shapes = adapter or parameter_shapes(c)
    root, layer = root_and_layer(shapes, vocab_parts)
    each, _ = kept_and_redone(c, checkpointing, liger, attention)
    last_norm = (2 if "RMSNorm" in liger else 6) * c.hidden_size
    kept = tokens * (c.num_hidden_layers * each + last_norm + 28)
    kept += 2 * tokens * sum(shape[0] for name, shape in (adapter or {}).items() if "lora_A" in name)
    head = head_bytes(c, tokens, multiprocessors=multiprocessors, vocab_parts=vocab_parts, adapter=adapter) - 4 * layer
    head_gradient = 0 if adapter else 2 * head_rows(c, vocab_parts) * c.hidden_size
    one_layer = tokens * backward_bytes(c, checkpointing, liger, attention) + (0 if "SwiGLU" in liger else 6 * layer)
    return {
        "head": kept + head + accumulated,
        "backward": kept + one_layer + head_gradient + accumulated,
        "reduction": 6 * root,
        "optimizer": visiting or sharded_bytes(shapes, shards),
    }


def accumulated_bytes(shapes: Shapes, shards: int, vocab_parts: int = 1) -> int:
    """Between micro-steps whose gradients are reduced once, at the last of them, FSDP2 holds the sum on every GPU in
    one piece and fp32: what that takes beyond the shards that are left after the reduction."""
    if shards == 1:
        return 0
    whole = {name: shape for name, shape in shapes.items() if not (vocab_parts > 1 and name == "lm_head.weight")}
    return sum(4 * prod(shape) for shape in whole.values()) - sharded_bytes(whole, shards)


def cache_token_bytes(model_config: Any, itemsize: int = 2) -> int:
    """Keys and values of one token in all layers."""
    return 2 * itemsize * model_config.num_hidden_layers * widths(model_config)[2]


def embedded_cache_tokens(
    model_config: Any, *, memory: int, held: int, reserve: float = RESERVE, itemsize: int = 2
) -> int:
    """Tokens of keys and values for the embedded engine, in the plan and in the trainer alike: half of what `memory`
    leaves beside the reserve and the bytes `held` while it samples, because its cache grows by copying."""
    room = memory - int(reserve * memory) - held
    return max(0, room) // 2 // cache_token_bytes(model_config, itemsize)


def widths(c: Any) -> tuple[int, int, int]:
    """Head size, width of all query heads, width of all key-value heads."""
    head = head_size(c)
    return head, head * c.num_attention_heads, head * c.num_key_value_heads


def root_and_layer(shapes: Shapes, vocab_parts: int = 1) -> tuple[int, int]:
    """Parameters outside the layers, without a head of its own that is cut by vocabulary, and of one layer."""
    layer = sum(prod(shape) for name, shape in shapes.items() if name.startswith("model.layers.0."))
    left_out = "lm_head.weight" if vocab_parts > 1 else ""
    return sum(prod(shape) for name, shape in shapes.items() if ".layers." not in name and name != left_out), layer
