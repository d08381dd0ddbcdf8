"""Tiny random models and tokenizers, built from a config: real transformers objects that cost nothing."""

from pathlib import Path

import torch

VOCAB = 96


def tiny_model(kind: str = "qwen2", *, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides):
    """A 2-layer model with grouped queries and a vocabulary of 96."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from siri.model import attention

    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        "bos_token_id": 1,
        "pad_token_id": 0,
        "initializer_range": 0.2,  # far from uniform, so that a wrong attention shows
        **({"head_dim": 8} if kind == "qwen3" else {}),
        **overrides,
    }
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.register(), dtype=dtype)
    model.generation_config.eos_token_id = settings["eos_token_id"]
    return model


def word_tokenizer(size: int = VOCAB):
    """A tokenizer of words w3, w4, ... and </think>, the last word; for models in memory, because transformers loads
    every tokenizer of a Qwen2 folder as byte-level BPE."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<bos>", "<eos>", *(f"w{i}" for i in range(3, size - 1)), "</think>"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="w3"
    )


def bpe_tokenizer(texts: list[str], size: int = 600):
    """A byte-level BPE tokenizer trained on `texts`, with a chat template in the manner of R1-Distill."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>", "<|endoftext|>", "<|User|>", "<|Assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    fast.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ '<|User|>' if m['role'] == 'user' else '<|Assistant|>' }}"
        "{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"
    )
    return fast


def tiny_policy(kind: str = "qwen2", **options):
    from siri.model.policy import make_policy

    return make_policy(tiny_model(kind, **options), word_tokenizer())


def save_tiny(folder: Path, tokenizer=None, **options) -> Path:
    """A model folder as users have them."""
    tokenizer = tokenizer or bpe_tokenizer(["the answer is not known </think>"])
    options.setdefault("vocab_size", len(tokenizer))
    tiny_model(**options).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
