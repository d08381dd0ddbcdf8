"""TRL's GRPOTrainer, two optimizer steps, then the same with one import changed."""

import tempfile

import torch
from _compare import DEVICE, gradients, largest_difference, measure, report, tiny_qwen2
from datasets import Dataset
from siri_kernels.integrations.trl import FusedGRPOTrainer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer


def tokenizer():
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2, **{f"w{i}": i for i in range(3, 8192)}}
    made = Tokenizer(models.WordLevel(words, unk_token="w3"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "w3"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def reward(completion_ids, **_):
    return [len(set(ids)) / len(ids) + ids[0] / 8192 for ids in completion_ids]


def trained(kind):
    """A trainer of this class after two steps of plain SGD in fp32, and its parameters."""
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=48,
        learning_rate=0.1,
        optim="sgd",
        bf16=False,
        use_cpu=DEVICE == "cpu",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        log_level="error",
    )
    data = Dataset.from_dict({"prompt": ["w4 w5 w6", "w7 w8", "w9", "w10 w11"]})
    trainer = kind(
        model=tiny_qwen2(), reward_funcs=reward, args=config, train_dataset=data, processing_class=tokenizer()
    )
    trainer.train()
    return trainer


def step(trainer):
    """The loss of one micro-batch and its backward, the part that the adapter changes."""
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 8000, (4, 256), generator=g).to(DEVICE)
    ones = torch.ones_like(ids)
    inputs = {
        "prompt_ids": ids[:, :64],
        "prompt_mask": ones[:, :64],
        "completion_ids": ids[:, 64:],
        "completion_mask": ones[:, 64:],
        "advantages": torch.tensor([1.0, -1.0, 0.5, -0.5], device=DEVICE),
        "num_items_in_batch": ones[:, 64:].sum(),
    }

    def run():
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
        return loss, gradients(trainer.model)

    return run


before, after = trained(GRPOTrainer), trained(FusedGRPOTrainer)
after_training = largest_difference(list(before.model.parameters()), list(after.model.parameters()))
difference = max(after_training, largest_difference(step(before)(), step(after)()))
report("TRL GRPOTrainer: parameters, loss, gradients", measure(step(before)), measure(step(after)), difference)
if DEVICE == "cpu":
    print("  on a CPU TRL also scores the prompts, in tiles of 32,768 tokens of the vocabulary; on a GPU it does not")
