"""The demo's problems: a training set and a held-out set for the trainer, and batches of traces for the warm-up."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

from siri.demo import task as demo_task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

TRAIN_ROWS, HELDOUT_ROWS = 4096, 2048
BATCH = 128
POOL = 16  # batches that are cut from one length-sorted lot, so that little of a batch is padding
IGNORE = -100


def draw_problems(
    rng: random.Random, count: int, exclude: set[str], task: ModuleType = demo_task
) -> list[demo_task.Problem]:
    """`count` different problems of `task`, its kinds in turn so that any prefix is balanced; none is in `exclude`."""
    problems, seen = [], set(exclude)
    while len(problems) < count:
        problem = task.problem(rng, task.KINDS[len(problems) % len(task.KINDS)])
        prompt = task.prompt_text(problem)
        if prompt not in seen:
            seen.add(prompt)
            problems.append(problem)
    return problems


def draw_sets(seed: int, task: ModuleType = demo_task) -> tuple[list[demo_task.Problem], list[demo_task.Problem]]:
    """The training set (4096) and the held-out set (2048): as many of each kind, without a common problem."""
    heldout = draw_problems(random.Random(f"heldout {seed}"), HELDOUT_ROWS, set(), task)
    train = draw_problems(random.Random(f"train {seed}"), TRAIN_ROWS, {task.prompt_text(p) for p in heldout}, task)
    return train, heldout


def write_problems(path: Path, problems: list[demo_task.Problem], task: ModuleType = demo_task) -> None:
    """Write one JSON object a line: `problem` (the prompt's text), `answer` and `level` (the kind)."""
    rows = ({"problem": task.prompt_text(p), "answer": task.answer(p), "level": p.kind} for p in problems)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def batches(
    rng: random.Random, tokenizer: "PreTrainedTokenizerBase", exclude: set[str], task: ModuleType = demo_task
) -> Iterator[tuple["torch.Tensor", "torch.Tensor"]]:
    """Endless batches of traces: input_ids and labels, both int64 [128, T], padded on the right.

    labels are the next tokens, IGNORE on the prompt and on the padding. Causal attention needs no mask for padding on
    the right. Problems with a prompt in `exclude` are left out.
    """
    import torch

    while True:
        lot = []
        while len(lot) < BATCH * POOL:
            problem = task.problem(rng)
            prompt = task.prompt_text(problem)
            if prompt not in exclude:
                lot.append((prompt, task.trace_text(rng, problem)))
        prompts = tokenizer([prompt for prompt, _ in lot])["input_ids"]
        traces = tokenizer([f" {trace}{tokenizer.eos_token}" for _, trace in lot], add_special_tokens=False)[
            "input_ids"
        ]
        rows = sorted(zip(prompts, traces, strict=True), key=lambda row: len(row[1]))
        chunks = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
        rng.shuffle(chunks)
        for chunk in chunks:
            length = min(task.MAX_TOKENS, max(len(prompt) + len(trace) for prompt, trace in chunk))
            tokens = torch.full((BATCH, length), cast(int, tokenizer.pad_token_id))
            labels = torch.full((BATCH, length), IGNORE)
            for i, (prompt, trace) in enumerate(chunk):
                sequence = torch.tensor((prompt + trace)[:length])
                tokens[i, : len(sequence)] = sequence
                labels[i, len(prompt) - 1 : len(sequence) - 1] = sequence[len(prompt) :]
            yield tokens, labels
