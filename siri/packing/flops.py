"""What sequences cost: FLOPs from the model's config, and the one ratio that a calibration measures."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from siri.errors import InputError
from siri.packing import Cost

COST_RATIO = 1.6
"""Time of one FLOP of attention over that of one in the matrix products, where no calibration says otherwise."""


def head_size(model_config: Any) -> int:
    """Width of an attention head; configurations that do not name it divide the hidden size among the heads."""
    return getattr(model_config, "head_dim", None) or model_config.hidden_size // model_config.num_attention_heads


def forward_flops(model_config: Any) -> tuple[float, float, float]:
    """FLOPs of a forward pass through a Qwen2, Qwen3 or Llama config: for each token in the layers, for each token that
    enters the head, and times n^2 for a sequence of n tokens under causal attention.

        layers      2 (P_attention + P_mlp) of each layer: two for every weight
        head        2 D V
        attention   2 Q of each layer: QK' and PV, two FLOPs each, over half of the n^2 pairs
    """
    c = model_config
    queries = c.num_attention_heads * head_size(c)
    attention = c.hidden_size * (2 * queries + 2 * c.num_key_value_heads * head_size(c))
    layer = attention + 3 * c.hidden_size * c.intermediate_size
    return 2.0 * c.num_hidden_layers * layer, 2.0 * c.hidden_size * c.vocab_size, 2.0 * c.num_hidden_layers * queries


def sequence_cost(model_config: Any, *, cost_ratio: float = COST_RATIO) -> Cost:
    """Cost of a sequence for the packing plan, a * n + b * n^2 in FLOPs of a forward pass through layers and head.

    cost_ratio: how many times longer a FLOP of attention takes than one of the matrix products.
    """
    layers, head, attention = forward_flops(model_config)
    linear, quadratic = layers + head, cost_ratio * attention

    def cost(lengths: np.ndarray) -> np.ndarray:
        return linear * lengths + quadratic * lengths**2

    return cost


def training_flops(
    model_config: Any,
    lengths: Sequence[int] | np.ndarray,
    responses: Sequence[int] | np.ndarray,
    alive: Sequence[bool] | np.ndarray,
    *,
    backward: Sequence[bool] | None = None,
    scored: bool = False,
    adapter: tuple[int, int] | None = None,
) -> float:
    """Model FLOPs of an optimizer step, the numerator of MFU.

    lengths, responses: tokens of each sequence and of its response; alive: whether the response may have a gradient.
    backward: whether the layers run backward for it; None = for all. Layers and attention count 3 times their forward
    pass then (the backward costs twice the forward), and once without it; the head counts only
    the response tokens that enter it, 3 times where they may have a gradient and once elsewhere. scored adds the
    forward pass that old log-probs take in the mini-batches after the first. What checkpointing computes anew does not
    count, nor what blocks of attention pad. adapter: parameters of a LoRA adapter in the layers and at the head; the
    gradients of the frozen weights are not computed, so that their backward counts once, and the adapter's own products
    as those of trained weights.
    """
    layers, head, attention = forward_flops(model_config)
    n, r = np.asarray(lengths, dtype=np.float64), np.asarray(responses, dtype=np.float64)
    entering, taught = r * (1 + scored), r * np.asarray(alive)
    back = np.ones_like(n) if backward is None else np.asarray(backward, dtype=np.float64)
    passes = 1 + scored + 2 * back
    if adapter is None:
        body = passes * (layers * n + attention * n**2)
        return float(body.sum()) + head * float((entering + 2 * taught).sum())
    in_layers, at_head = (2.0 * size for size in adapter)
    body = (passes - back) * layers * n + passes * (in_layers * n + attention * n**2)
    return float((body + head * (entering + taught) + at_head * (entering + 2 * taught)).sum())


def read_cost_ratio(setting: float | str) -> float:
    """The ratio itself, or that of a file written by `siri bench calibrate`. InputError names what is wrong with it."""
    if not isinstance(setting, str):
        return setting
    path = Path(setting)
    wayout = "give a number, or a file written by siri bench calibrate"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cost_ratio {setting}: cannot be read ({error.strerror}); {wayout}") from None
    except ValueError as error:
        raise InputError(f"cost_ratio {setting}: not JSON ({error}); {wayout}") from None
    ratio = cast("dict[str, object]", content).get("cost_ratio") if isinstance(content, dict) else None
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not (math.isfinite(ratio) and ratio > 0):
        raise InputError(f"cost_ratio {setting}: holds no number above 0 under the key cost_ratio; {wayout}")
    return float(ratio)
