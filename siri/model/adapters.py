"""LoRA: low-rank adapters beside the frozen linear layers of a model, through peft.

y = W x + scaling B A x, with A [rank, in] and B [out, rank] trained in fp32, B from zero, W frozen. There is no
dropout: the log-probs of a response are to be those that it was sampled with.

The model stays the class that it was (`peft.inject_adapter_in_model`), so that packing, FSDP2 and checkpointing see
what they know. A parameter has two names here: in the model (`...q_proj.base_layer.weight`) and in files
(`...q_proj.weight`; of an adapter the name that peft and vLLM give it).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from siri.data.problems import PACKAGE_SCHEME, resolve_path
from siri.errors import InputError, parse_json
from siri.model.fsdp import fill, full, is_sharded
from siri.model.identity import ModelIdentity

ADAPTER = "adapter.json"
"""In a checkpoint that holds an adapter alone: what it belongs to."""
FILE_PREFIX = "base_model.model."
"""Before the name of each tensor in the files of peft."""
KEY = "default"
"""Of the one adapter, inside peft's layers."""


@dataclass(frozen=True)
class Adapter:
    """An adapter as it is asked for."""

    base: str
    """The model that it changes: a folder, a hub name, or one of the package."""
    rank: int
    alpha: float
    targets: tuple[str, ...]

    @property
    def scaling(self) -> float:
        """What B A counts."""
        return self.alpha / self.rank

    def written(self) -> bytes:
        """JSON: the adapter, and the content of its base, which is looked at."""
        folder = Path(self.base).expanduser()
        local = folder.is_dir() and not self.base.startswith(PACKAGE_SCHEME)
        held = {**asdict(self), "base": str(folder.absolute()) if local else self.base}
        return json.dumps({**held, "base_files": ModelIdentity.of(self.base).files}, indent=1).encode()

    @classmethod
    def read(cls, folder: Path) -> "Adapter | None":
        """Of a checkpoint; None where it holds whole weights. InputError where its base is not what it was."""
        path = folder / ADAPTER
        try:
            held = parse_json(path.read_bytes())
            adapter = cls(str(held["base"]), int(held["rank"]), float(held["alpha"]), tuple(held["targets"]))
            known = ModelIdentity(adapter.base, "", dict(held["base_files"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}: cannot be read ({type(error).__name__}); choose another checkpoint") from None
        base = Path(resolve_path(adapter.base))
        if base.is_absolute() and not base.is_dir():
            raise InputError(f"{folder}: holds an adapter of {adapter.base}, which is not there; restore that folder")
        if change := ModelIdentity.of(adapter.base).change(known):
            raise InputError(f"{folder}: holds an adapter, and its base is another now; {change}; restore it")
        return adapter

    def peft_config(self, base: str) -> dict[str, Any]:
        """adapter_config.json as peft and vLLM read it."""
        config = _lora_config(self, base_model_name_or_path=base).to_dict()
        return {
            name: sorted(value) if isinstance(value, set) else getattr(value, "value", value)
            for name, value in config.items()
        } | {"inference_mode": True}


def add_adapter(model: Any, adapter: Adapter) -> None:
    """Put an adapter beside the target layers of a transformers model, in place, on the device of each (also meta), and
    freeze all else. Its values are undefined until `initialise`. InputError names a target that is not there."""
    check_targets(model, adapter.targets)
    try:
        from peft import inject_adapter_in_model
    except ImportError:
        raise InputError(
            "lora_rank needs peft, which is not installed; pip install -e ./kernels -e '.[lora]'"
        ) from None
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):  # peft draws values that are replaced
        inject_adapter_in_model(_lora_config(adapter), model, KEY)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_is_adapters(name))
        if _is_adapters(name):
            parameter.data = parameter.data.float()


def check_targets(model: Any, targets: tuple[str, ...]) -> None:
    """InputError for a target that is no linear layer of the model, with the nearest names, or a head that is tied."""
    kinds = {name.rpartition(".")[2]: module for name, module in model.named_modules() if name}
    linear = [name for name, module in kinds.items() if isinstance(module, torch.nn.Linear)]
    for target in targets:
        if target not in linear:
            if target == "all-linear":  # as PEFT and others call it
                raise InputError("lora_targets: all linear layers but the head is the default; leave lora_targets out")
            if "," in target:
                raise InputError(f"lora_targets: {target!r} is several names; separate them by spaces")
            near = get_close_matches(target, linear, n=2, cutoff=0.55) or linear
            what = "no linear layer" if target in kinds else "no layer"
            raise InputError(f"lora_targets: {target!r} is {what} of the model; it has {' and '.join(near)}")
    if "lm_head" in targets and model.lm_head.weight is model.get_input_embeddings().weight:
        raise InputError(
            "lora_targets: the model's lm_head is its embedding, which an adapter would part; leave lm_head out"
        )


def adapted_layers(model: Any) -> dict[str, Any]:
    """The layers that have an adapter, by their names in files; none in a model without."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def base_parameters(model: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The parameters of the model itself by their names in files; tied ones once."""
    for name, parameter in model.named_parameters():
        if not _is_adapters(name):
            yield name.replace(".base_layer.", "."), parameter


def trained_parameters(model: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """What is trained and saved, by its names in files: an adapter where there is one, or else all."""
    lone = not adapted_layers(model)
    for name, parameter in model.named_parameters():
        if lone:
            yield name, parameter
        elif _is_adapters(name):
            yield FILE_PREFIX + name.replace(f".{KEY}.", "."), parameter


def adapter_size(model: Any) -> tuple[int, int] | None:
    """Parameters of the adapter in the layers and at the head; None where all weights are trained."""
    layers = adapted_layers(model)
    sizes = {name: sum(factor.numel() for factor in _pair(layer)) for name, layer in layers.items()}
    head = sizes.pop("lm_head", 0)
    return (sum(sizes.values()), head) if layers else None


@torch.no_grad()
def initialise(model: Any, seed: int) -> None:
    """Values of a new adapter, the same on any number of ranks (a collective where it is sharded): A uniform within
    1 / sqrt(in), as peft has it, and B zero, so that the model is its base."""
    for number, layer in enumerate(adapted_layers(model).values()):
        down, up = _pair(layer)
        generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
        bound = down.shape[1] ** -0.5
        fill(down, torch.empty(down.shape).uniform_(-bound, bound, generator=generator))
        fill(up, torch.zeros(up.shape))


@torch.no_grad()
def merged_parameters(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The model's parameters by their names in files, each in one piece and with its adapter in it, which makes it fp32
    (a collective where they are sharded, so every rank goes through all of it). A tied lm_head is not among them."""
    layers = {f"{name}.weight": layer for name, layer in adapted_layers(model).items()}
    for name, parameter in base_parameters(model):
        whole = full(parameter.detach())
        if (layer := layers.get(name)) is not None:
            down, up = (full(factor.detach()) for factor in _pair(layer))
            whole = merged(whole, down, up, layer.scaling[KEY])
        yield name, whole


def merged(weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scaling: float) -> torch.Tensor:
    """W + scaling B A, fp32."""
    return weight.float() + scaling * (up.float() @ down.float())


def merge_into(weights: dict[str, torch.Tensor], factors: Mapping[str, torch.Tensor], scaling: float) -> None:
    """Replace weights, in place, by those with an adapter in them, whose tensors have peft's names."""
    for name, down in factors.items():
        if name.endswith(".lora_A.weight"):
            layer = name.removeprefix(FILE_PREFIX).removesuffix(".lora_A.weight")
            up = factors[f"{FILE_PREFIX}{layer}.lora_B.weight"]
            weights[f"{layer}.weight"] = merged(weights[f"{layer}.weight"], down, up, scaling)


class MergeCheck:
    """Whether weights that leave for an engine have the adapter in them: each is compared with what the trainer
    computes with, on the rows that this rank holds. A sync that sends the frozen base, or an old adapter, is found
    before anything is sampled; that what was sent arrived is proved by the engine's checksums and answers."""

    def __init__(self, model: Any) -> None:
        self.layers = {f"{name}.weight": layer for name, layer in adapted_layers(model).items()}
        self.seen: set[str] = set()
        self.wrong = ""

    @torch.no_grad()
    def passing(self, weights: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """The same weights, which have not been rounded yet; InputError after the last, when other ranks need this one
        no more, if one of them was not merged, or was left out. Every rank goes through all of it."""
        for name, tensor in weights:
            if (layer := self.layers.get(name)) is not None:
                self._look(name, tensor, layer)
            yield name, tensor
        if missing := sorted(self.layers.keys() - self.seen):
            self.wrong = self.wrong or f"{missing[0]} was not sent"
        if any(is_sharded(_pair(layer)[1]) for layer in self.layers.values()):
            said: list[str] = [""] * dist.get_world_size()
            dist.all_gather_object(said, self.wrong)  # what one rank finds ends all of them
            self.wrong = next(filter(None, said), "")
        if self.wrong:
            raise InputError(
                f"weight sync: the engine was not sent the adapter ({self.wrong}); it would sample another model"
            )

    def _look(self, name: str, tensor: torch.Tensor, layer: Any) -> None:
        down, up = _pair(layer)
        base, local_up, rows = _local(layer.base_layer.weight), _local(up), _rows(up)
        change = layer.scaling[KEY] * (local_up.float() @ full(down.detach()).float())
        sent = tensor[rows].to(base.device).float() - base.float()
        size, off = change.square().sum().item(), (sent - change).square().sum().item()
        norm = base.float().square().sum().item()
        self.seen.add(name)
        # what fp32 rounds away of a weight is no fault
        if not off <= 1e-6 * size + 1e-13 * norm:
            self.wrong = self.wrong or f"{name} is not its base with the adapter"


def head_share(head: Any, hidden_RD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(u [R, rank], B [V, rank]) with u B^T the share of an adapter in the logits, in the dtype of the hidden states;
    None for a head without. Inside `run_inside`."""
    if not hasattr(head, "lora_A"):
        return None
    down, up = _pair(head)
    u_RK = torch.nn.functional.linear(hidden_RD, down.to(hidden_RD.dtype)) * head.scaling[KEY]
    return u_RK, up.to(hidden_RD.dtype)


def _lora_config(adapter: Adapter, **options: Any) -> Any:
    from peft import LoraConfig

    alpha: Any = int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha
    targets = list(adapter.targets)
    return LoraConfig(r=adapter.rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM", **options)


def _is_adapters(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _pair(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return layer.lora_A[KEY].weight, layer.lora_B[KEY].weight


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local().detach() if is_sharded(tensor) else tensor.detach()


def _rows(tensor: torch.Tensor) -> slice:
    """The rows that this rank holds."""
    if not is_sharded(tensor):
        return slice(0, tensor.shape[0])
    (chunk,) = tensor.__create_chunk_list__()
    return slice(chunk.offsets[0], chunk.offsets[0] + chunk.sizes[0])
