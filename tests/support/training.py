"""Small runs of the demo through the command line, and what is the same of two of them."""

import json
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch

from siri.cli import main
from tests.support.saving import tensors

CONTRACT = {
    *("step", "phase", "cap", "reward_mean", "response_tokens_mean", "truncation_rate", "entropy", "loss"),
    *("grad_norm", "clip_low_fraction", "clip_high_fraction", "approx_kl", "lockstep_efficiency"),
    *("rollout_s", "train_s", "tokens_per_s"),
}
SMALL = ["--prompts-per-step", "4", "--group-size", "8", "--mini-batch-prompts", "2", "--lr", "1e-3"]
SMALL += ["--eval-problems", "16", "--eval-samples", "1", "--l-max", "64", "--l-min", "24", "--cycle", "4"]


def train(folder: Path, *arguments: str, recipe: str = "demo", expect: int = 0, report: bool = False) -> list[dict]:
    """A small run of the demo; the rows of its metrics.jsonl. Without `report` no pictures are drawn, which takes
    longer than all the rest."""
    settings = SMALL if recipe == "demo" else []
    command = ["train", recipe, *settings, *arguments, "--run-dir", str(folder)]
    with nullcontext() if report else patch("siri.report.view.write_report"):
        assert main(command) == expect
    return rows(folder)


def rows(folder: Path, name: str = "metrics") -> list[dict]:
    def refuse(constant: str):
        raise AssertionError(f"{constant} in {name}.jsonl: what does not exist is null")

    text = (folder / f"{name}.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def reproducible(metrics: list[dict]) -> list[dict]:
    """The rows without what depends on clock and machine, by the contract's rule."""
    marks = ("per_s", "time", "memory", "mfu")
    return [
        {key: value for key, value in row.items() if not key.endswith("_s") and not any(m in key for m in marks)}
        for row in metrics
    ]


def weights(folder: Path, checkpoint: str) -> dict[str, torch.Tensor]:
    return tensors(folder / "checkpoints" / checkpoint)


def assert_same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys() and any("exp_avg" in key for key in first)
    different = [key for key in first if not torch.equal(first[key], second[key])]
    assert not different


def same_run(first: Path, second: Path, last: str = "step_000006") -> None:
    assert reproducible(rows(first)) == reproducible(rows(second))
    assert_same_weights(weights(first, last), weights(second, last))
