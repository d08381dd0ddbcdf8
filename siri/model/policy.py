"""The trained model: loading, and the padding-free forward pass from packed tokens to hidden states."""

from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from siri.data.problems import resolve_path
from siri.data.prompts import PromptSet
from siri.errors import InputError, first_line, parse_json
from siri.model import attention
from siri.model.adapters import Adapter
from siri.model.attention import PackedLayout
from siri.model.fit import check_fit
from siri.model.weight_files import is_checkpoint, settle_tying
from siri.runtime.ranks import ALONE, Ranks

T = TypeVar("T")

ARCHITECTURES = ("llama", "qwen2", "qwen3")
MOVING_ROPE = ("dynamic", "longrope")
"""Rotary embeddings whose angles depend on what else is in the batch."""


@dataclass(frozen=True)
class Policy:
    """A causal language model with what sampling and training need to know about it."""

    model: Any
    tokenizer: Any
    stop_ids: frozenset[int]
    """Tokens that end a response."""
    context: int
    """Most tokens the model can hold."""
    notes: tuple[str, ...] = ()
    """Lines for the user: what of the model's files was taken otherwise than its config.json has it."""
    adapter: Adapter | None = None
    """What is trained where the model's weights are frozen."""

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """function(model, *args) with the model's parameters at hand, sharded or not."""
        run_inside = getattr(self.model, "run_inside", None)
        if run_inside is None:
            return function(self.model, *args)
        result = run_inside(function, *args)
        if not torch.is_grad_enabled():
            # FSDP2 gives the root's parameters back in the backward; without one, a checkpoint or a weight sync would
            # take its gathered copies in the compute dtype for the parameters
            self.model.reshard()
        return result

    @property
    def device(self) -> torch.device:
        return self.model.lm_head.weight.device

    def decode(self, token_ids: Any) -> str:
        """Text of a response, given as ids in a list or an array; special tokens are left out."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)


def pick_device(name: str) -> torch.device:
    """`auto` is a GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device {name!r} is unknown; use cpu, cuda or auto") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name!r} asked for, but torch sees no GPU; use --device cpu, or see siri doctor")
    return device


def load_policy(
    source: str,
    device: torch.device,
    *,
    weights: bool = True,
    fetch: bool = True,
    checkpoint: Path | None = None,
    ranks: Ranks = ALONE,
) -> Policy:
    """Load model and tokenizer with fp32 weights from a folder, the hub or the package (siri:demo/model).

    weights False leaves the model on the meta device, without storage, to be sharded before it is filled. fetch False:
    it never will be, so weights of the hub are not downloaded to be looked at. checkpoint: the model will be filled
    from it, so that it says whether the head is tied. ranks: those that call this together; rank 0 looks into the
    files for all. Raises InputError when there is no model, no tokenizer, an architecture that was not checked to work
    packed, or tensors that are not those of config.json (`siri.model.fit`).
    """
    from transformers import AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    folder = str(resolve_path(source))
    logging.disable_progress_bar()
    config, note = trainable_config(source, fetch=fetch, checkpoint=checkpoint, ranks=ranks)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its parsers raise
        raise InputError(
            f"model {source}: no usable tokenizer there ({first_line(error)}); copy the tokenizer's files"
        ) from None
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        # transformers makes up an empty one where a folder has a config but no tokenizer files
        raise InputError(f"model {source}: no tokenizer there; copy tokenizer.json and tokenizer_config.json beside it")
    model = _hollow(config, source)
    unused = ""
    if checkpoint is None:
        unused = ranks.on_main(lambda: check_fit(model, source, folder, fetch=fetch))
    if weights:
        model = read_model(source, config).to(device)
    else:
        with suppress(OSError):  # as from_pretrained: the file, with all tokens that end a response, or config.json's
            model.generation_config = GenerationConfig.from_pretrained(folder)
    return replace(make_policy(model, tokenizer), notes=tuple(line for line in (note, unused) if line))


def _hollow(config: Any, source: str, device: torch.device | str = "meta") -> Any:
    """A new model of a configuration, fp32, by default without storage. InputError where the configuration is that of
    none."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device(device):
            return AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation=attention.register()
            )
    except (AssertionError, ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise InputError(f"model {source}: no model can be made of its config.json ({first_line(error)})") from None


def read_model(source: str | Path, config: Any) -> Any:
    """The model of a settled configuration with the weights of a folder or the hub, fp32, on the CPU. InputError when
    some of them are not there: they would be random."""
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": attention.register()}
    # weights that would have to be unpickled are none
    options |= {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(resolve_path(source), config=config, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"model {source}: {first_line(error)}") from None
    model, told = loaded
    if missing := sorted(told["missing_keys"]):
        more = f" and {len(missing) - 1} more" * (len(missing) > 1)
        raise InputError(
            f"model {source}: its files hold no {missing[0]}{more}, which would be random; copy all of its files, or "
            "mend its config.json"
        )
    model.tie_weights()  # transformers leaves apart what is no number in both
    return model


def hollow_copy(policy: Policy) -> Policy:
    """The same model without weights and adapter, on the meta device, whether or not the policy's is sharded."""
    model = _hollow(deepcopy(policy.model.config), policy.model.name_or_path)
    model.generation_config = policy.model.generation_config
    return replace(policy, model=model, adapter=None)


def _adapter(path: Path) -> str:
    """What to do about a folder that holds an adapter, or what is left of one, which transformers would look for."""
    if (path.parent / "config.json").is_file() and not any(path.parent.glob("adapter_model.*")):
        return "holds whole weights, but an adapter_config.json as well and no adapter; delete that file"
    try:
        base = parse_json(path.read_bytes())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    return (
        f"holds an adapter (adapter_config.json) of base_model_name_or_path {base!r}, which would not be applied; "
        "merge it into its base (siri export RUN FOLDER --merge, or PEFT's merge_and_unload and save_pretrained) and "
        "give that folder"
    )


def random_policy(source: str, device: torch.device, *, layers: int = 0) -> Policy:
    """The model of `source` with random weights, fp32, for timing: it needs no more than config.json, and has no
    tokenizer. layers: how many of them, 0 = all. InputError as `load_policy`."""
    config, note = trainable_config(source, fetch=False)
    if layers > config.num_hidden_layers:
        raise InputError(f"layers is {layers}, but the model has {config.num_hidden_layers}")
    if layers:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    return Policy(
        _hollow(config, source, device), None, frozenset(), config.max_position_embeddings, (note,) if note else ()
    )


def trainable_config(
    source: str, *, fetch: bool, checkpoint: Path | None = None, ranks: Ranks = ALONE
) -> tuple[Any, str]:
    """The configuration of a model that trains packed, and a line where it was settled otherwise than its file has it
    (see `siri.model.weight_files`), by its files or by a checkpoint that it is filled from; InputError names what
    speaks against it."""
    from transformers import AutoConfig

    folder = str(resolve_path(source))
    here = source.startswith((".", "/", "~", "siri:")) or source.count("/") > 1  # a hub name has two parts at most
    if here and not Path(folder).is_dir():
        raise InputError(f"model {source}: no such folder; give a folder, or a hub name such as org/model")
    if (Path(folder) / "checkpoints").is_dir() and not is_checkpoint(folder):
        names = sorted(path.name for path in (Path(folder) / "checkpoints").iterdir() if path.name[0] != ".")
        way = f"give one of its checkpoints, such as {folder}/checkpoints/{names[-1]}" if names else "it has saved none"
        raise InputError(f"model {source}: a run's folder; {way}")
    adapter = Path(folder) / "adapter_config.json"
    if adapter.is_file():
        raise InputError(f"model {source}: {_adapter(adapter)}")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # values that cannot be have a dozen unrelated types of errors
        way = "give a folder with config.json, or a hub name"
        if "tie_word_embeddings" in str(error):
            way = "set tie_word_embeddings in its config.json to true or false, or take the key out"
        if not Path(folder).exists() and (above := Path(folder).parent) != Path() and above.is_dir():
            way = f"there is no such folder in {above} here, if it should be one"
        raise InputError(f"model {source}: {first_line(error).rstrip('.')}; {way}") from None
    if config.model_type not in ARCHITECTURES:
        raise InputError(
            f"model {source}: architecture {config.model_type!r} is not among those checked to train packed "
            f"({', '.join(ARCHITECTURES)})"
        )
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        raise InputError(f"model {source}: sliding-window attention is not supported; set use_sliding_window false")
    rotary = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotary in MOVING_ROPE:
        raise InputError(
            f"model {source}: rope_type {rotary!r} turns a token by the length of the longest sequence beside it, so "
            "packing would change the numbers; set a fixed rope_type (default, linear, yarn, llama3)"
        )

    pad = getattr(config, "pad_token_id", None)
    if isinstance(pad, int) and not -config.vocab_size <= pad < config.vocab_size:
        raise InputError(
            f"model {source}: pad_token_id is {pad} in its config.json, and vocab_size {config.vocab_size}; it must be "
            "below, or null"
        )

    def settle() -> tuple[bool, str]:
        note = settle_tying(config, source, checkpoint or folder, fetch=fetch)
        return config.tie_word_embeddings, note

    config.tie_word_embeddings, note = ranks.on_main(settle)
    return config, note


def allocate(model: Any, device: torch.device) -> None:
    """Give a model on the meta device, sharded or not, storage on `device`: parameters undefined, buffers right. A head
    that is tied stays so."""
    model.to_empty(device=device)
    model.tie_weights()  # each module has got storage for itself
    # the only buffers of these architectures are the rotary frequencies, which come from the config
    model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config).to(device)


def checkpoint_activations(model: Any, mode: str) -> None:
    """Trade compute for memory in training: full recomputes each layer in the backward, selective all of it but its
    attention, none keeps every activation."""
    if mode == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, keep_attention)
    # the method's name until transformers 6, and the argument's name, changed on the way
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(options)
    model.train()  # transformers checkpoints in training mode only; none of these models has dropout


def keep_attention(_context: Any, operator: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    # flash-attn 4 runs outside torch's operators: its result cannot be kept, and is computed anew
    kept = any(part in str(operator) for part in ("scaled_dot_product", "flash_att", "varlen_attn"))
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def make_policy(model: Any, tokenizer: Any) -> Policy:
    """Wrap a model and a tokenizer that are already loaded."""
    stops = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = [*(stops if isinstance(stops, list) else [stops]), tokenizer.eos_token_id]
    stop_ids = {end for end in ends if end is not None}
    if not stop_ids:
        raise InputError("neither the model's generation config nor its tokenizer names an end-of-sequence token")
    rows = model.get_input_embeddings().weight.shape[0]
    if min(stop_ids) >= rows:
        raise InputError(
            f"the end-of-sequence token is {min(stop_ids)}, but the model's embedding has {rows} rows, so that no "
            "response could end; give the model the tokenizer that it was trained with"
        )
    return Policy(model, tokenizer, frozenset(stop_ids), model.config.max_position_embeddings)


def check_context(policy: Policy, longest_prompt: int, cap: int) -> None:
    """Refuse a cap that does not fit into the model's context together with the longest prompt (both in tokens)."""
    if longest_prompt + cap > policy.context:
        raise InputError(
            f"a cap of {cap} tokens and the longest prompt ({longest_prompt}) exceed the model's context of "
            f"{policy.context}; lower the cap (--l-max, --eval-cap) or --max-prompt-tokens"
        )


def check_prompts(policy: Policy, prompts: PromptSet, cap: int, *, source: str) -> None:
    """`check_context`, and refuse prompts with tokens that the model has no embedding for."""
    check_context(policy, prompts.longest, cap)
    rows = policy.model.get_input_embeddings().weight.shape[0]
    highest = max(max(ids, default=0) for ids in prompts.ids)
    if highest >= rows:
        token = policy.tokenizer.convert_ids_to_tokens(highest)
        raise InputError(
            f"{source}: the tokenizer makes token {highest} ({token!r}) of its prompts, but the model's embedding has "
            f"{rows} rows; give the model the tokenizer that it was trained with, or resize its embedding"
        )


def packed_hidden(model: Any, input_ids_N: torch.Tensor, layout: PackedLayout) -> torch.Tensor:
    """Hidden states [N, D] before lm_head of sequences laid end to end in input_ids_N [N] int64 (no padding).

    Positions restart with every sequence and no sequence attends to another. On a GPU matrix products run in bf16, and
    bf16 hidden states go to the head.
    """
    # A 4-D mask is passed through by transformers as it is; without it a dense N x N mask would be built, only to be
    # ignored, because the layout says everything.
    no_mask = torch.empty(1, 1, 1, 1, device=input_ids_N.device)
    with torch.autocast("cuda", torch.bfloat16, enabled=input_ids_N.is_cuda):
        output = model.model(
            input_ids=input_ids_N[None],
            position_ids=layout.position_ids_N[None],
            attention_mask=no_mask,
            use_cache=False,
            layout=layout,
        )
    hidden_ND = output.last_hidden_state[0]
    return hidden_ND.bfloat16() if hidden_ND.is_cuda else hidden_ND
