"""A trainer that samples ahead on servers, killed at random moments: what it must not have lost in the end."""

import contextlib
import json
import random
import subprocess
import time
from pathlib import Path

from pyarrow import parquet

from siri.errors import InputError
from siri.model.policy import Policy
from siri.store import checkpoint
from siri.train.batches import from_arrays, read
from tests.support.processes import UNREPORTED, finish, kill, start

STEPS, KEPT = 8, 999
Kept = dict[tuple[int, int, int], tuple[list[int], bool]]
"""Of responses, by step, prompt and number: tokens, and whether they are all."""
OPTIONS = ["train", "demo", "--steps", str(STEPS), "--cycle", "4", "--prompts-per-step", "4", "--group-size", "4"]
OPTIONS += ["--mini-batch-prompts", "2", "--importance", "tis", "--save-every", "1", "--quiet", "--eval-problems", "8"]
OPTIONS += ["--keep-responses", str(KEPT)]


def rows(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def trained(run: Path, step: int) -> tuple[list[str], dict[tuple[int, int], str]]:
    """The prompts of a step in their order, and its responses by prompt and number."""
    (path,) = run.glob(f"responses/step-{step:06d}*.parquet")
    table = parquet.read_table(path).to_pydict()
    prompts, texts = {}, {}
    for number, prompt, text in zip(table["prompt_number"], table["prompt"], table["text"], strict=True):
        prompts[number] = prompt
        texts[number, sum(key[0] == number for key in texts)] = text
    return [prompts[number] for number in sorted(prompts)], texts


def newest(run: Path) -> list:
    """The batches in flight of the checkpoint from which a run would go on."""
    with contextlib.suppress(InputError):
        source, _ = checkpoint.newest_good(run / "checkpoints")
        if source is not None and (source / checkpoint.PENDING).exists():
            return from_arrays(read(source / checkpoint.PENDING, vocabulary=10**6))
    return []


def survive(run: Path, options: list[str], kills: int, draw: random.Random) -> tuple[list[str], Kept]:
    """Start and kill a run `kills` times, then let it end. Returns what was going on at each kill, and what the
    checkpoints held from which it went on."""
    moments, kept = [], {}
    while True:
        before = len(rows(run))
        process = start(run, options, module=UNREPORTED)
        if len(moments) < kills:
            moment = _wait(process, run, before, draw)
            if moment is not None:
                kill(process)
                moments.append(moment)
                kept |= held(run)
                continue
        assert finish(process) == 0, f"it failed after kills in {moments}"
        return moments, kept


def held(run: Path) -> Kept:
    """What the checkpoint from which a run would go on holds of its rollouts."""
    return {
        (batch.step, place, number): (answer.draft.tokens.tolist(), answer.draft.done)
        for batch in newest(run)
        for place, answers in batch.answers.items()
        for number, answer in enumerate(answers)
    }


def _wait(process: subprocess.Popen, run: Path, before: int, draw: random.Random) -> str | None:
    """Let it run until something is going on that is worth a kill: what; None at its end. Every other kill comes
    before the process has finished a step, so that the run would never get on if anything were lost."""
    deadline = time.monotonic() + 400
    started = draw.random() < 0.4
    while process.poll() is None and time.monotonic() < deadline:
        if len(rows(run)) > before or (started and (run / "metrics.jsonl").exists()):
            break
        time.sleep(0.02)
    end = time.monotonic() + draw.uniform(0, 1.5)
    aim = draw.choice(["anything", "a save", "a sync"])
    patience = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < patience:
        saving = any((run / "checkpoints").glob(".step_*.part"))
        syncing = any((run / "rollout-weights").glob(".*.part"))
        if (
            (aim == "anything" and time.monotonic() > end)
            or (aim == "a save" and saving)
            or (aim == "a sync" and syncing)
        ):
            return aim
        time.sleep(0.001)
    return "anything" if process.poll() is None else None


def assert_nothing_lost(run: Path, calm: Path, kept: Kept, policy: Policy) -> None:
    """Every prompt of the sampler was trained exactly once, and what a checkpoint held of a response is its beginning.
    calm: a run that was left alone, with whatever engine: the prompts and caps are the same."""
    assert [row["step"] for row in rows(run)] == list(range(STEPS))
    for row, row_calm in zip(rows(run), rows(calm), strict=True):
        assert row["cap"] == row_calm["cap"] and row["response_tokens_max"] <= row["cap"]
        assert row["fingerprint_gap_max"] < 1e-3 and row["staleness_max"] <= 2
    for step in range(STEPS):
        prompts, texts = trained(run, step)
        assert prompts == trained(calm, step)[0], f"step {step}"
        for place, number in texts:
            tokens, done = kept.get((step, place, number), ([], False))
            said, text = policy.decode(tokens), texts[place, number]
            assert text == said if done else text.startswith(said), (step, place, number)
