"""Configurations of models that are planned for and not loaded."""

from pathlib import Path
from typing import Any

from siri.errors import InputError

_R1 = {"model_type": "qwen2", "num_hidden_layers": 28, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
_R1 |= {"max_position_embeddings": 131072}
_R1_1_5B = _R1 | {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_key_value_heads": 2}
_R1_1_5B |= {"vocab_size": 151936}
KNOWN: dict[str, dict[str, Any]] = {
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": _R1_1_5B,
    "agentica-org/DeepScaleR-1.5B-Preview": _R1_1_5B,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": _R1
    | {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4}
    | {"vocab_size": 152064},
    "Qwen/Qwen2.5-0.5B-Instruct": {"model_type": "qwen2", "num_hidden_layers": 24, "rms_norm_eps": 1e-6}
    | {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2}
    | {"vocab_size": 151936, "tie_word_embeddings": True, "max_position_embeddings": 32768},
}
"""The recipes' models: what their config.json on the hub says of their sizes."""


def load_model_config(source: str) -> tuple[Any, str]:
    """The transformers configuration of a model, and a line for the user where it was not read from a file: a folder
    with config.json, one of KNOWN, or a hub name. InputError in one line when it can be had from none of these."""
    from transformers import AutoConfig

    from siri.data.problems import resolve_path

    folder = resolve_path(source)
    if source in KNOWN and not Path(folder).exists():
        settings = dict(KNOWN[source])
        note = f"{source}: planned by the sizes that are known of it; the hub was not asked"
        return AutoConfig.for_model(settings.pop("model_type"), **settings), note
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False), ""
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"model {source}: no configuration to be had ({reason}); give --model a folder with config.json"
        ) from None
