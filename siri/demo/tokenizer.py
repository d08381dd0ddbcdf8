"""The demo's tokenizer: one token a word, of the class that real Qwen2 models load with."""

from types import ModuleType
from typing import TYPE_CHECKING

from siri.demo import task as demo_task

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"


def build_tokenizer(task: ModuleType = demo_task) -> "Qwen2Tokenizer":
    """A tokenizer over a task's words (307 tokens for the demo's), pads on the left.

    As in any byte-level BPE a word carries the space before it (" b7", " wait"), so decoding gives back the text, and
    only a prompt's first word stands without ("a3"). Encoding puts `<bos>` first unless `add_special_tokens=False`.
    `<think>` and `</think>` are not special: `decode(ids, skip_special_tokens=True)` keeps them, as it does with the
    tokenizers of real reasoning models. Text outside the vocabulary is dropped.
    """
    from tokenizers.processors import TemplateProcessing
    from transformers import AddedToken, Qwen2Tokenizer

    words = [*task.first_words(), *(f" {word}" for word in task.vocabulary())]
    ids = {word: i for i, word in enumerate([PAD, BOS, EOS, UNK, *words])}
    tokenizer = Qwen2Tokenizer(
        vocab=ids,
        merges=[],
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
    )
    # AutoTokenizer rebuilds every tokenizer of a Qwen2 folder as byte-level BPE, whatever tokenizer.json says. Added
    # tokens survive that, and they are matched before the BPE splits letters from digits.
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])]
    )
    return tokenizer
