"""Liger's fused kernels for RMSNorm, RoPE and SwiGLU, on one model; lm_head and loss stay as they are."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from types import MethodType, ModuleType
from typing import Any

import torch

from siri.errors import InputError, first_line
from siri.packing.flops import head_size

ROTATE = "apply_rotary_pos_emb"
"""What attention layers of transformers call, by this name in their module."""
SMALL = {
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "layer_types": ["full_attention"],
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
"""The model that a part is tried on differs in this from the one that trains."""
SPARING = ("RMSNorm", "SwiGLU")
"""The parts that keep less for the backward."""
LARGEST_ERROR = 0.01
"""Relative to the norm; fp32 kernels are nearer by far, and another formula is further away."""


@dataclass(frozen=True)
class Applied:
    """What of Liger a model runs on."""

    parts: tuple[str, ...] = ()
    """Of PARTS."""
    notes: tuple[str, ...] = ()
    """A line about what `auto` left out."""

    @property
    def sparing(self) -> tuple[str, ...]:
        """Those that keep less for the backward."""
        return tuple(part for part in SPARING if part in self.parts)


NOTHING = Applied()


def apply_liger(model: Any, choice: str, device: torch.device) -> Applied:
    """Let a Qwen2, Qwen3 or Llama model run on Liger's kernels, if `choice` (config.liger) says so.

    auto: on a GPU where liger-kernel is installed, those parts that pass `fault`. Parameters and their names stay as
    they are. Raises InputError when `on` cannot be had: without the package, off a GPU, or not in all its parts.
    """
    installed = find_spec("liger_kernel") is not None
    if choice == "off" or (choice == "auto" and not (installed and device.type == "cuda")):
        return Applied()
    if not installed:
        raise InputError("liger is on, but liger-kernel is not installed; see siri doctor, or use --liger auto")
    if device.type != "cuda":
        raise InputError(f"liger is on, but its kernels do not run on {device.type}; use --liger auto")
    faults = {part: reason for part in PARTS if (reason := fault(part, model.config, device))}
    listed = ", ".join(f"{part} ({reason})" for part, reason in faults.items())
    if faults and choice == "on":
        raise InputError(f"liger is on, but does not fit in {listed}; use --liger auto, which leaves that out")
    parts = tuple(part for part in PARTS if part not in faults)
    swap(model, parts)
    return Applied(parts, (f"liger leaves out {listed}; that runs as transformers writes it",) if faults else ())


def _swap_norms(model: Any) -> None:
    from liger_kernel.transformers.rms_norm import LigerRMSNorm

    for norm in [module for module in model.modules() if type(module) is type(model.model.norm)]:
        with torch.device("meta"):
            settings = vars(LigerRMSNorm(len(norm.weight), eps=norm.variance_epsilon))
        vars(norm).update({name: value for name, value in settings.items() if name not in vars(norm)})
        norm.forward = MethodType(LigerRMSNorm.forward, norm)


def _swap_rope(model: Any) -> None:
    from liger_kernel.transformers.rope import liger_rotary_pos_emb

    rotate_by(model, liger_rotary_pos_emb)


def _swap_swiglu(model: Any) -> None:
    from liger_kernel.transformers.swiglu import LigerSwiGLUMLP

    for layer in model.model.layers:
        layer.mlp.forward = MethodType(LigerSwiGLUMLP.forward, layer.mlp)


PARTS: dict[str, Callable[[Any], None]] = {"RMSNorm": _swap_norms, "RoPE": _swap_rope, "SwiGLU": _swap_swiglu}


def planned(choice: str) -> tuple[str, ...]:
    """Of SPARING, what a run on GPUs with this `liger` setting can be expected to run on, as far as this machine
    tells."""
    return SPARING if choice == "on" or (choice == "auto" and find_spec("liger_kernel") is not None) else ()


def swap(model: Any, parts: Iterable[str] = tuple(PARTS)) -> None:
    """Put Liger's functions into the modules of this model and of no other.

    Liger's own patch of an instance (apply_liger_kernel_to_qwen2 and so on, version 0.8.5) also replaces classes and
    functions of transformers for every other model in the process.
    """
    for part in parts:
        PARTS[part](model)


def rotate_by(model: Any, rotate: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Let the attention layers of this model rotate queries and keys by `rotate(q, k, cos, sin)`.

    They find the function by its name in their module. So the module is run a second time, under another name, and
    these layers take the forward of that twin, whose name means `rotate`: whatever decorators it bears, in whatever
    thread or recomputation it runs, and while transformers' own module stays as it is.
    """
    attention = type(model.model.layers[0].self_attn)
    twin = _twin(sys.modules[attention.__module__])
    if not hasattr(twin, ROTATE):
        raise LookupError(f"{attention.__module__} has no {ROTATE}")
    setattr(twin, ROTATE, rotate)
    forward = getattr(twin, attention.__name__).forward
    for layer in model.model.layers:
        layer.self_attn.forward = MethodType(forward, layer.self_attn)


def _twin(module: ModuleType) -> ModuleType:
    name = f"{module.__name__}_with_liger"  # in the same package, for its relative imports
    spec = spec_from_file_location(name, module.__spec__ and module.__spec__.origin)
    if spec is None or spec.loader is None:
        raise ImportError(f"{module.__name__} has no source to run again")
    twin = module_from_spec(spec)
    sys.modules[name] = twin  # dataclasses look for their module there
    spec.loader.exec_module(twin)
    return twin


def fault(part: str, config: Any, device: torch.device) -> str:
    """Why a part of PARTS does not fit a model with this transformers config on a device; "" when it does.

    It is tried, forward and backward, in a small fp32 model of the same kind: versions of transformers, Liger and
    triton go their own ways. Draws no random number that anybody else would have drawn.
    """
    if part == "SwiGLU" and config.hidden_act not in ("silu", "swish"):
        return f"hidden_act is {config.hidden_act}"
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            model = _small_model(config, device)
            wanted = _with_gradients(model)
            swap(model, [part])
            rotated = _count_rotations(model) if part == "RoPE" else [part]
            got = _with_gradients(model)
        worst = float(torch.stack([(x - y).norm() / y.norm() for x, y in zip(got, wanted, strict=True)]).max())
    except Exception as error:  # what a package raises that does not fit the GPU or the others is its own
        return first_line(error)
    if not rotated:
        return f"{config.model_type} of this version of transformers does not rotate by {ROTATE}"
    return "" if worst < LARGEST_ERROR else f"its numbers are off by {worst:.0%}"


def _count_rotations(model: Any) -> list[str]:
    """A list that gets an entry whenever the model, from now on, rotates by Liger's function."""
    from liger_kernel.transformers.rope import liger_rotary_pos_emb

    calls: list[str] = []

    def rotate(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(ROTATE)
        return liger_rotary_pos_emb(*args, **kwargs)

    rotate_by(model, rotate)
    return calls


def _small_model(config: Any, device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM

    small = type(config).from_dict({**config.to_dict(), **SMALL, "head_dim": head_size(config)})
    model = AutoModelForCausalLM.from_config(small, dtype=torch.float32, attn_implementation="eager")
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # so large that every wrong formula shows
            parameter.normal_(float(parameter.dim() == 1), 0.2, generator=draw)
    return model.to(device)


def _with_gradients(model: Any) -> list[torch.Tensor]:
    model.zero_grad()
    ids_1N = torch.arange(SMALL["vocab_size"], device=model.device)[None]
    hidden_ND = model.model(input_ids=ids_1N, use_cache=False).last_hidden_state[0]
    hidden_ND.backward(torch.linspace(-1, 1, hidden_ND.numel(), device=model.device).view_as(hidden_ND))
    return [hidden_ND.detach(), *(parameter.grad for parameter in model.model.parameters())]
