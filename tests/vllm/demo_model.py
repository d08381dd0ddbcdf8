"""The demo's model in a shape that vLLM's CPU attention takes: heads of 32 instead of 24, the same function."""

from pathlib import Path

import torch

NARROW, WIDE, HEADS = 24, 32, 4


def widen(folder: Path) -> Path:
    """Write the demo's model and tokenizer to `folder` with every head and the residual stream padded by zeros.

    Rotary pairs i and i + d/2 keep their distance if each half is padded by itself, and their frequencies
    theta^(-2i/d) if theta becomes theta^(32/24). Queries grow by sqrt(32/24), because attention divides by sqrt(d);
    norm weights shrink by sqrt(24/32), because the mean square of the padded stream is 24/32 of what it was.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from siri.data.problems import resolve_path

    source = str(resolve_path("siri:demo/model"))
    config = AutoConfig.from_pretrained(source)
    assert (config.hidden_size, config.num_attention_heads) == (NARROW * HEADS, HEADS), "the demo's model has changed"
    old = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).state_dict()
    config.hidden_size = WIDE * HEADS
    config.rope_parameters["rope_theta"] **= WIDE / NARROW
    config.rms_norm_eps *= NARROW / WIDE
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    stream = torch.arange(NARROW * HEADS)
    halves = [h * WIDE + s * WIDE // 2 + i for h in range(HEADS) for s in (0, 1) for i in range(NARROW // 2)]
    rotary, plain = torch.tensor(halves), torch.tensor([h * WIDE + i for h in range(HEADS) for i in range(NARROW)])
    inside = torch.arange(config.intermediate_size)
    state = {}
    for name, new in model.state_dict().items():
        part = name.split(".")[-2]
        rows = {"q_proj": rotary, "k_proj": rotary, "v_proj": plain, "gate_proj": inside, "up_proj": inside}
        rows |= {"embed_tokens": torch.arange(config.vocab_size), "lm_head": torch.arange(config.vocab_size)}
        scale = (WIDE / NARROW) ** (0.5 if part == "q_proj" else -0.5 if "norm" in part else 0)
        wide = torch.zeros_like(new)
        if new.ndim == 1:
            wide[rows.get(part, stream)] = old[name] * scale
        else:
            columns = {"o_proj": plain, "down_proj": inside}.get(part, stream)
            wide[rows.get(part, stream)[:, None], columns] = old[name] * scale
        state[name] = wide
    model.load_state_dict(state)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder
