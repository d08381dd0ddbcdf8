"""Liger's RMSNorm and SwiGLU by what they keep for the backward, without their kernels. Its RoPE keeps what that of
transformers keeps."""

from typing import Any

import torch

from siri.model.liger import SPARING

PROGRAMS = 132
"""Rows of partial gradients of a norm's weight: one for each multiprocessor."""


class SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return torch.empty_like(gate)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor):
        return ctx.saved_tensors  # its kernel writes the gradients over what was kept


class RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor):
        _, weight, _ = ctx.saved_tensors
        partial = upstream.new_empty(PROGRAMS, weight.shape[0], dtype=torch.float32)
        return upstream, partial.sum(0).to(weight.dtype)  # in place, as its kernel has it


def swap(model: Any) -> None:
    for module in model.modules():
        if type(module) is type(model.model.norm):
            module.forward = lambda x, module=module: RmsNorm.apply(x, module.weight)
    for layer in model.model.layers:
        mlp = layer.mlp
        mlp.forward = lambda x, mlp=mlp: mlp.down_proj(SwiGlu.apply(mlp.gate_proj(x), mlp.up_proj(x)))


def planned(on: bool) -> dict[str, Any]:
    """What the plan is told of it."""
    return {"liger": SPARING} if on else {}
