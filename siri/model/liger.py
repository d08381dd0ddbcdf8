"""Liger's fused kernels for RMSNorm, RoPE and SwiGLU, on one model; lm_head and loss stay as they are."""

from importlib import import_module
from importlib.util import find_spec
from types import FunctionType, MethodType
from typing import Any

import torch

from siri.errors import InputError

ROTATE = "apply_rotary_pos_emb"
"""What attention layers of transformers call, by this name in their module."""


def apply_liger(model: Any, choice: str, device: torch.device) -> bool:
    """Let a Qwen2, Qwen3 or Llama model run on Liger's kernels, if `choice` (config.liger) says so; returns whether.

    auto: on a GPU where liger-kernel is installed. Parameters and their names stay as they are. Raises InputError when
    `on` cannot be had: without the package, or off a GPU.
    """
    installed = find_spec("liger_kernel") is not None
    if choice == "off" or (choice == "auto" and not (installed and device.type == "cuda")):
        return False
    if not installed:
        raise InputError("liger is on, but liger-kernel is not installed; see siri doctor, or use --liger auto")
    if device.type != "cuda":
        raise InputError(f"liger is on, but its kernels do not run on {device.type}; use --liger auto")
    swap(model)
    return True


def swap(model: Any) -> None:
    """Put Liger's functions into the modules of this model.

    Liger's own patch of an instance (apply_liger_kernel_to_qwen2 and so on, version 0.8.5) also replaces classes and
    functions of transformers for every other model in the process, so its effect there is taken back, and RoPE, which
    it knows no other way to replace, goes into the model's attention layers alone.
    """
    from liger_kernel.transformers import monkey_patch
    from liger_kernel.transformers.rope import liger_rotary_pos_emb

    kind = model.config.model_type
    modeling = import_module(f"transformers.models.{kind}.modeling_{kind}")
    before = dict(vars(modeling))
    patch = getattr(monkey_patch, f"apply_liger_kernel_to_{kind}")
    wanted = {"rms_norm": True, "swiglu": model.config.hidden_act in ("silu", "swish"), "rope": False}
    try:
        patch(**wanted, cross_entropy=False, fused_linear_cross_entropy=False, model=model)
    finally:
        vars(modeling).update(before)
    for layer in model.model.layers:
        forward = type(layer.self_attn).forward
        if ROTATE not in forward.__code__.co_names:
            raise InputError(
                f"this version of transformers rotates {kind}'s queries another way than Liger's RoPE expects; use "
                "--liger off"
            )
        own = FunctionType(
            forward.__code__,
            {**forward.__globals__, ROTATE: liger_rotary_pos_emb},
            forward.__name__,
            forward.__defaults__,
            forward.__closure__,
        )
        own.__kwdefaults__ = forward.__kwdefaults__
        layer.self_attn.forward = MethodType(own, layer.self_attn)
