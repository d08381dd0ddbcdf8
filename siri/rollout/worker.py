"""The engine's side of a weight sync: loading into vLLM's model, and checksums of what arrived and of what is there.

`siri.rollout.colocated` calls the functions in its own process. A `vllm serve` process gets them with
`--worker-extension-cls siri.rollout.worker.SyncWorker`, so nothing but torch may be imported at the top.
"""

import json
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

MANIFEST = "manifest.json"
"""In a folder of weights for transfer: its version, and the checksum of each tensor."""
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
WORD = 2**64
ROW, COLUMN = 6364136223846793005, 2862933555777941757
"""What a number of the next row, and of the next column, counts more. Both are 5 modulo 8, so that their powers modulo
2^64 do not repeat within any tensor."""
_AT_ONCE = 2**22
"""Elements that are looked at together: 32 MB in 64 bits."""

Sum = list[int]
"""[checksum, rows, columns]."""
Sums = dict[str, Sum]
"""By the name of a tensor."""


def checksum(tensor: torch.Tensor) -> Sum:
    """The checksum of a tensor with the shape that it is of, all but the first dimension taken as columns."""
    rows = tensor.shape[0] if tensor.dim() else 1
    return [bit_sum(tensor), rows, tensor.numel() // rows if rows else 0]


def bit_sum(tensor: torch.Tensor) -> int:
    """Sum over a tensor's elements of (bit pattern as a whole number) x ROW^row x COLUMN^column, modulo 2^64.

    It knows the place of every element, and yet adds up over the parts of a fused or cut tensor, as a hash would not
    (`siri.rollout.checksums`). Zeros, with which an engine pads the vocabulary, do not count. Any device; the same bits
    on all of them, since nothing is rounded.
    """
    if not tensor.numel():
        return 0
    rows = tensor.shape[0] if tensor.dim() else 1
    bits_RC = tensor.detach().contiguous().view(_INTEGERS[tensor.element_size()]).reshape(rows, -1)
    powers_C = _powers(COLUMN, bits_RC.shape[1], tensor.device)
    step = max(1, _AT_ONCE // bits_RC.shape[1])
    sums_R = torch.cat([(some.to(torch.int64) * powers_C).sum(1) for some in bits_RC.split(step)])
    return int((sums_R * _powers(ROW, rows, tensor.device)).sum()) % WORD


def _powers(base: int, count: int, device: torch.device) -> torch.Tensor:
    """base^0, base^1, ..., int64, which wraps: [count]."""
    factors = torch.full((count,), base, dtype=torch.int64, device=device)
    factors[0] = 1
    return factors.cumprod(0)


def load(worker: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> Sums:
    """Load checkpoint tensors, one at a time, into the model of a vLLM worker in place; returns what arrived."""
    arrived: Sums = {}

    def counted() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            arrived[name] = checksum(tensor)
            yield name, tensor

    # the worker's, not its model runner's: it sets the configuration that vLLM's layers look up while they load
    worker.reload_weights(weights_iterator=counted())
    model = worker.model_runner.get_model()
    head = getattr(model, "lm_head", None)
    if head is not None and next(model.parameters()).device.type == "cpu":
        # On a CPU the head multiplies with a repacked copy of its weight. Tied to the embedding it gets no weight of
        # its own from a checkpoint, so nothing renews that copy, and the old head would go on sampling.
        head.quant_method.process_weights_after_loading(head)
    return arrived


def present(worker: Any) -> dict[str, Any]:
    """Checksums of the parameters that a worker's model holds, each in its blocks (q, k and v of one tensor apart,
    where the layer says how many rows they have), and which of them are fused of which."""
    model = worker.model_runner.get_model()
    layers = dict(model.named_modules())
    sums = {}
    for name, tensor in model.named_parameters():
        sizes = list(getattr(layers.get(name.rpartition(".")[0]), "output_partition_sizes", None) or ())
        cut = len(sizes) > 1 and tensor.dim() and sum(sizes) == tensor.shape[0]
        sums[name] = [checksum(block) for block in (tensor.split(sizes) if cut else [tensor])]
    return {"sums": sums, "fused": getattr(model, "packed_modules_mapping", {})}


class SyncWorker:
    """Methods that a `vllm serve` process gets in addition, called through POST /collective_rpc; answers are JSON."""

    def siri_about(self: Any) -> str:
        """What decides whether this server samples what the trainer scores."""
        config = self.vllm_config
        return json.dumps(
            {
                "model": config.model_config.hf_config.to_dict(),
                "dtype": str(config.model_config.dtype).removeprefix("torch."),
                "cache_tokens": config.cache_config.num_gpu_blocks * config.cache_config.block_size,
                "version": getattr(self, "siri_loaded", None),
            },
            default=str,
        )

    def siri_process(self: Any) -> str:
        """Which process this is: one that took the place of another has another name."""
        if not hasattr(self, "siri_name"):
            self.siri_name = secrets.token_hex(8)
        return json.dumps(self.siri_name)

    def siri_load(self: Any, folder: str) -> str:
        """Load the weights in `folder`. They have no name until `siri_mark` gives them one, unless they were in place
        already: several ranks may find a restarted server."""
        from safetensors import safe_open

        if not (Path(folder) / MANIFEST).exists():
            return json.dumps({"unseen": True})
        manifest = json.loads((Path(folder) / MANIFEST).read_text())
        if getattr(self, "siri_loaded", None) == manifest["version"]:
            return json.dumps({"damaged": [], **present(self)})
        self.siri_loaded = None

        def tensors() -> Iterator[tuple[str, torch.Tensor]]:
            for file in manifest["files"]:
                with safe_open(Path(folder) / file, framework="pt") as shard:
                    for name in shard.keys():  # noqa: SIM118  (not a dict)
                        yield name, shard.get_tensor(name)

        arrived = load(self, tensors())
        damaged = sorted(name for name, sums in manifest["sums"].items() if arrived.get(name) != sums)
        return json.dumps({"damaged": damaged, **present(self)})

    def siri_mark(self: Any, version: str) -> str:
        """Name the weights in place, once they were compared and the cache of older ones is gone; "" takes the name
        off before they change."""
        self.siri_loaded = version or None
        return json.dumps(self.siri_loaded)

    def siri_present(self: Any) -> str:
        """Checksums of the weights that came another way (NCCL)."""
        return json.dumps(present(self))

    def siri_version(self: Any) -> str:
        """The version of the weights in place; null after a restart or a sync that did not end."""
        return json.dumps(getattr(self, "siri_loaded", None))
