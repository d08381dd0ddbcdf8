"""The engine's side of a weight sync: loading into vLLM's model, and checksums of what arrived and of what is there.

`siri.rollout.colocated` calls the functions in its own process. A `vllm serve` process gets them with
`--worker-extension-cls siri.rollout.worker.SyncWorker`, so nothing but torch may be imported at the top.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

MANIFEST = "manifest.json"
"""In a folder of weights for transfer: its version, and the checksum of each tensor."""
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_WORD = 2**64

Sums = dict[str, list[int]]
"""Name of a tensor -> [checksum, number of elements]."""


def bit_sum(tensor: torch.Tensor) -> int:
    """Sum of a tensor's bit patterns as whole numbers, modulo 2^64.

    Unlike a hash it adds up over the parts of a fused tensor (q, k and v in one), and zeros, with which an engine pads
    the vocabulary, do not count.
    """
    bits = tensor.detach().contiguous().view(_INTEGERS[tensor.element_size()])
    return int(bits.sum(dtype=torch.int64)) % _WORD


def load(worker: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> Sums:
    """Load checkpoint tensors, one at a time, into the model of a vLLM worker in place; returns what arrived."""
    arrived: Sums = {}

    def counted() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            arrived[name] = [bit_sum(tensor), tensor.numel()]
            yield name, tensor

    worker.model_runner.reload_weights(weights_iterator=counted())
    model = worker.model_runner.get_model()
    head = getattr(model, "lm_head", None)
    if head is not None and next(model.parameters()).device.type == "cpu":
        # On a CPU the head multiplies with a repacked copy of its weight. Tied to the embedding it gets no weight of
        # its own from a checkpoint, so nothing renews that copy, and the old head would go on sampling.
        head.quant_method.process_weights_after_loading(head)
    return arrived


def present(worker: Any) -> dict[str, Any]:
    """Checksums of the parameters that a worker's model holds, and which of them are fused of which."""
    model = worker.model_runner.get_model()
    sums = {name: [bit_sum(tensor), tensor.numel()] for name, tensor in model.named_parameters()}
    return {"sums": sums, "fused": getattr(model, "packed_modules_mapping", {})}


def expected(sent: Sums, fused: dict[str, list[str]]) -> Sums:
    """The checksums that an engine should hold after it was sent `sent`, by the engine's names."""
    owner = {part: whole for whole, parts in fused.items() for part in parts}
    sums: Sums = {}
    for name, (total, count) in sent.items():
        path = ".".join(owner.get(part, part) for part in name.split("."))
        held = sums.setdefault(path, [0, 0])
        held[0] = (held[0] + total) % _WORD
        held[1] += count
    return sums


def differing(sent: Sums, there: dict[str, Any]) -> list[str]:
    """Names, as the engine calls them, of the tensors that are not what was sent. A tensor that the engine repacked and
    dropped (as vLLM does on a CPU) cannot be compared and does not count."""
    wanted = expected(sent, there["fused"])
    names = []
    for name, (total, count) in there["sums"].items():
        if name not in wanted or (count >= wanted[name][1] and total != wanted[name][0]):
            names.append(name)
    return sorted(names)


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
