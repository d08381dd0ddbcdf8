"""Small studies for tests: their files, and what finished pairs leave."""

import json
from pathlib import Path

from siri.study.study import Study

SMALL = """
recipe = "demo"
seeds = [0, 1]
[common]
l_max = 24
l_min = 12
eval_cap = 24
cycle = 2
steps = 2
eval_every = 1
eval_problems = 8
prompts_per_step = 2
group_size = 2
reward_workers = 1
[arms.siri]
[arms.high]
schedule = "constant"
[arms.best]
schedule = "constant"
sweep = "cap"
[sweeps.cap]
key = "l_max"
values = [20, 24]
seeds = [7]
schedule = "constant"
"""


def write(folder: Path, text: str = SMALL) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "study.toml"
    path.write_text(text)
    return path


def row(pair, accuracy=0.5, tokens=20.0) -> dict:
    """A line of results.jsonl as a finished pair leaves it."""
    evals = [
        {"step": step, "name": name, "train_tokens": 100 * step, "accuracy": a, "tokens_mean": t, "cap": 24}
        for step, name, a, t in ((0, "base", 0.4, 24.0), (2, "final", accuracy, tokens))
    ]
    steps = {"cap": [24, 12], "response_tokens_mean": [20.0, 18.0]}
    return {"arm": pair.arm, "seed": pair.seed, "config_hash": pair.config_hash, "settings": pair.settings} | {
        "evals": evals,
        "steps": steps,
    }


def record(study: Study, rows: list[dict]) -> None:
    study.results.write_text("".join(json.dumps(row) + "\n" for row in rows))


TASKS_OF_TWO = (
    (
        SMALL.replace("l_max = 24\nl_min = 12\n", "")
        + """
[arms.down]
branch = { arm = "high", at = 1 }
schedule = "cosine"
steps = 1
[tasks.demo]
lengths = [10, 20]
budgets = [1]
reasoner = { task = "demo" }
common = { l_max = 24, l_min = 12 }
[tasks.more]
lengths = [20]
reasoner = { task = "demo" }
common = { l_max = 24, l_min = 12, lr = 2e-4 }
arms.high.l_max = 20
"""
    )
    .replace("seeds = [0, 1]", "seeds = [0, 1]\nhalves = true")
    .replace("eval_every = 1\n", "eval_every = 1\nkeep_every = 1\n")
)
