"""AdamW whose moments live in host memory: between steps the device holds weights and gradients alone."""

from collections.abc import Iterator
from typing import Any

import torch

from siri.model.fsdp import is_sharded

CHUNK_BYTES = 2**28
"""Moments of so many bytes visit the device together; one parameter is never divided."""
MOMENTS = ("exp_avg", "exp_avg_sq")


class HostAdamW(torch.optim.AdamW):
    """torch.optim.AdamW, step for step and bit for bit; `state` holds each rank's part of the moments on the CPU, in
    pinned memory where the parameters are on a GPU. Parameters may be sharded (DTensor). To read a moment, `bring` it.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._buffers: dict[tuple[torch.Tensor, str], torch.Tensor] = {}
        """The pinned memory of each moment, for pinning takes long."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step, some parameters at a time. Takes no closure: ValueError."""
        if closure is not None:
            raise ValueError("HostAdamW takes its gradients from .grad and no closure")
        groups = self.param_groups
        try:
            for group in groups:
                for members in _chunks([parameter for parameter in group["params"] if parameter.grad is not None]):
                    for parameter in members:
                        state = self.state[parameter]
                        state.update({name: bring(state[name], parameter) for name in MOMENTS if name in state})
                    self.param_groups = [{**group, "params": members}]
                    super().step()
                    for parameter in members:
                        self.park(parameter)
        finally:
            self.param_groups = groups
        if self._buffers:  # whoever reads the moments on the host, a checkpoint's thread say, finds them whole
            torch.cuda.current_stream().synchronize()

    def park(self, parameter: torch.Tensor) -> None:
        """Move a parameter's moments to the host."""
        state = self.state[parameter]
        for name in MOMENTS:
            local = state[name].to_local() if is_sharded(state[name]) else state[name]
            if local.device.type == "cuda":
                if (parameter, name) not in self._buffers:
                    self._buffers[parameter, name] = torch.empty(local.shape, dtype=local.dtype, pin_memory=True)
                local = self._buffers[parameter, name].copy_(local, non_blocking=True)
            state[name] = local


def bring(moment: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A moment beside its parameter, and sharded like it; one that is there already stays as it is."""
    if is_sharded(moment) or not is_sharded(parameter):
        return moment.to(parameter.device, non_blocking=True)
    from torch.distributed.tensor import DTensor

    local = moment.to(parameter.to_local().device, non_blocking=True)
    # shape and stride are told, because parts may differ in size
    like = {"shape": parameter.shape, "stride": parameter.stride()}
    return DTensor.from_local(local, parameter.device_mesh, parameter.placements, run_check=False, **like)


def _chunks(parameters: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    chunk: list[torch.Tensor] = []
    held = 0
    for parameter in parameters:
        local = parameter.to_local() if is_sharded(parameter) else parameter
        size = 2 * local.numel() * local.element_size()
        if chunk and held + size > CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
        chunk.append(parameter)
        held += size
    if chunk:
        yield chunk
