"""Make the demo's base model: a tiny Qwen2, taught from nothing by imitation of imperfect traces.

`python -m siri.demo` writes `train.jsonl`, `heldout.jsonl` and `model/` and prints what the base model can do. The same
seed on the same machine with one thread gives the same bytes.
"""

import hashlib
import random
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from siri.demo import ASSETS, HELDOUT, MODEL, TRAIN, data, search, settle, settle_long
from siri.demo import task as demo_task
from siri.demo.measure import measure
from siri.demo.tokenizer import build_tokenizer
from siri.errors import InputError
from siri.runtime.threads import wait_passively

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

LEARNING_RATE = 3e-3
LR_WARMUP_STEPS = 50
EMBEDDING_STD = 0.3
STEPS, SEED = 2900, 0
"""That the demo's base is made with."""


class Reasoner(NamedTuple):
    """A task, and the size of the model that learns it."""

    task: ModuleType
    width: int = 96
    layers: int = 2
    context: int = 256


TASKS = {
    "demo": Reasoner(demo_task),
    "settle": Reasoner(settle, width=64),
    "search": Reasoner(search, width=64),
    "settle-long": Reasoner(settle_long, width=384, layers=8, context=1024),
}
"""281 K, twice some 120 K, and 14.5 M parameters."""


def build_model(tokenizer: "PreTrainedTokenizerBase", seed: int, size: Reasoner = TASKS["demo"]) -> "Qwen2ForCausalLM":
    """A randomly initialised Qwen2, fp32, for `tokenizer`'s vocabulary."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    special: dict[str, Any] = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")
    }
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=size.width * 8 // 3,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=size.context,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        tie_word_embeddings=False,
        **special,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        model = Qwen2ForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                # 0.02 suits wide models: take torch's own scale for a Linear, and a larger one for the words
                std = EMBEDDING_STD if "embed_tokens" in name else (3 * parameter.shape[1]) ** -0.5
                parameter.normal_(0.0, std, generator=generator)
    return model


def train(
    model: "Qwen2ForCausalLM",
    tokenizer: "PreTrainedTokenizerBase",
    steps: int,
    seed: int,
    exclude: set[str],
    task: ModuleType = demo_task,
) -> float:
    """Teach `model` in place on `steps` batches of fresh traces and return the last loss (nats a token).

    AdamW; the rate rises for 50 steps and falls to zero along a cosine, because the habit of rechecking wobbles
    as long as the rate is high. `exclude` holds prompts that the model must not see.
    """
    import torch
    import torch.nn.functional as F
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from transformers import get_cosine_schedule_with_warmup

    rate = LEARNING_RATE * min(1.0, 96 / model.config.hidden_size)  # wide models want smaller steps
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = get_cosine_schedule_with_warmup(optimizer, min(LR_WARMUP_STEPS, steps // 2), steps)
    stream = data.batches(random.Random(f"warm-up {seed}"), tokenizer, exclude, task)
    columns = (TextColumn("warm-up"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]}"))
    model.train()
    with Progress(*columns, TimeRemainingColumn()) as progress:
        bar = progress.add_task("", total=steps, loss="-")
        for step in range(steps):
            tokens_BT, labels_BT = (tensor.to(model.device) for tensor in next(stream))
            taught_BT = labels_BT != data.IGNORE
            hidden_BTD = model.model(input_ids=tokens_BT, use_cache=False).last_hidden_state
            loss = F.cross_entropy(model.lm_head(hidden_BTD[taught_BT]), labels_BT[taught_BT])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 10 == 0 or step == steps - 1:
                progress.update(bar, completed=step + 1, loss=f"{loss.item():.3f}")
    return loss.item()


def make(
    out: Path, steps: int, seed: int, task: str = "demo", device: str = "cpu"
) -> "tuple[Qwen2ForCausalLM, PreTrainedTokenizerBase]":
    """Write `out`/train.jsonl, `out`/heldout.jsonl and `out`/model, and return the trained model with its tokenizer.

    `task` is a key of TASKS; `device` is torch's name of where to train.

    The global generators of Python and torch are left as they were. `steps` < 1 and an unusable `out` are InputErrors.
    """
    if steps < 1:
        raise InputError(f"--steps must be at least 1, got {steps}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: {str(error.strerror).lower()}; name a folder that can be written") from None
    module = TASKS[task].task
    train_set, heldout_set = data.draw_sets(seed, module)
    tokenizer = build_tokenizer(module)
    model = build_model(tokenizer, seed, TASKS[task])
    model.to(device)  # pyright: ignore[reportArgumentType]  # transformers' decorator hides its self
    train(model, tokenizer, steps, seed, {module.prompt_text(p) for p in heldout_set}, module)
    data.write_problems(out / TRAIN.name, train_set, module)
    data.write_problems(out / HELDOUT.name, heldout_set, module)
    model.save_pretrained(out / MODEL.name)
    tokenizer.save_pretrained(out / MODEL.name)
    return model, tokenizer


def taken_from_package(out: Path, task: str, steps: int, seed: int) -> bool:
    """Whether this is the base of the recipe `demo`, made with the defaults; then `out` gets a copy of it, which is
    what took 15 minutes to make."""
    if (task, steps, seed) != ("demo", STEPS, SEED):
        return False
    out.mkdir(parents=True)
    for path in (TRAIN, HELDOUT):
        shutil.copyfile(path, out / path.name)
    shutil.copytree(MODEL, out / MODEL.name)
    return True


def fingerprint(task: str, steps: int, seed: int) -> str:
    """Twelve hex digits of what `make` will teach: problems, answers, a sample of traces and the settings."""
    module, width, layers, _ = TASKS[task]
    train_set, heldout_set = data.draw_sets(seed, module)
    rng = random.Random(0)
    parts = [(module.prompt_text(p), module.answer(p)) for p in (*train_set, *heldout_set)]
    parts += [module.trace_text(rng, p) for p in train_set[:512]]
    parts += [steps, seed, width, LEARNING_RATE, LR_WARMUP_STEPS, EMBEDDING_STD, data.BATCH, module.MAX_TOKENS]
    parts += [layers] if layers != 2 else []
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def main(argv: list[str] | None = None) -> None:
    """Command line of `python -m siri.demo`: make the files, then print what the base model does when held out."""
    import tyro

    def make_files(
        out: Path = ASSETS,
        steps: int = STEPS,
        seed: int = SEED,
        threads: int = 1,
        task: Literal["demo", "settle", "search", "settle-long"] = "demo",
    ) -> None:
        """Make the demo's data and base model, 15 minutes on one core with the defaults.

        Args:
            out: Folder for train.jsonl, heldout.jsonl and model/.
            steps: Optimizer steps of the supervised warm-up.
            seed: Seed of data and weights.
            threads: CPU threads; only 1 gives the same bytes each time.
            task: The demo's task, or one of the studies'; the defaults are the demo's.
        """
        import torch
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.set_num_threads(threads)
        model, tokenizer = make(out, steps, seed, task)
        print(f"wrote {out}")
        module = TASKS[task].task
        heldout = data.draw_sets(seed, module)[1]
        for temperature in (0.6, 1.0):
            for name, figures in measure(model, tokenizer, heldout, temperature, task=module).items():
                print(f"held-out, T {temperature}, {name}: {figures}")

    wait_passively()
    try:
        tyro.cli(make_files, prog="python -m siri.demo", args=argv)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
