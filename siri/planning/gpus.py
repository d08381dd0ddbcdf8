"""Data sheets of GPUs: what plans assume, and what utilisation is measured against."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Gpu:
    """Data sheet of a GPU."""

    memory: int
    """Bytes."""
    multiprocessors: int
    flops: float = 0.0
    """Dense bf16 peak, FLOP/s; 0 = not known."""
    bandwidth: float = 0.0
    """Of the memory, bytes/s; 0 = not known."""


GPUS = {
    "h100": Gpu(80 * 10**9, 132, 989e12, 3.35e12),
    "h200": Gpu(141 * 10**9, 132, 989e12, 4.8e12),
    "a100-40": Gpu(40 * 10**9, 108, 312e12, 1.555e12),
    "a100-80": Gpu(80 * 10**9, 108, 312e12, 2.039e12),
    "l40s": Gpu(48 * 10**9, 142, 362e12, 0.864e12),
    "rtx4090": Gpu(24 * 10**9, 128, 165.2e12, 1.008e12),
    "a10": Gpu(24 * 10**9, 72, 125e12, 0.6e12),
}
"""Those that plans know by name."""

# By a part of the name that torch reports; the first part that is there counts: PCIe and NVL cards run slower than the
# SXM modules of the same name.
_PEAKS = {"H100 PCIe": 756e12, "H100 NVL": 835e12, "H200 NVL": 835e12}
_PEAKS |= {"H200": GPUS["h200"].flops, "H100": GPUS["h100"].flops, "A100": GPUS["a100-80"].flops}
_PEAKS |= {"B200": 2250e12, "L40S": GPUS["l40s"].flops, "RTX 4090": GPUS["rtx4090"].flops}
_PEAKS |= {"NVIDIA A10": GPUS["a10"].flops}


def peak_flops(name: str) -> float | None:
    """Dense bf16 peak, FLOP/s, of the GPU that torch calls `name`, from the vendor's data sheet; None = not known."""
    return next((flops for mark, flops in _PEAKS.items() if mark in name), None)


def model_flops_utilisation(flops: float, seconds: float, gpus: int, device: "torch.device") -> float | None:
    """Share of the GPUs' bf16 peak that training reached: model FLOPs (see `siri.packing.flops`) / (seconds x GPUs x
    peak). None where the peak is not known, as on a CPU."""
    if device.type != "cuda":
        return None
    import torch

    peak = peak_flops(torch.cuda.get_device_name(device))
    return None if peak is None else flops / (seconds * gpus * peak)
