"""What the order of rollouts saves, and what sampling ahead of the training: two simulations,

    python bench/rollout_order.py [--batches N] [--gpus N] [--staleness 0 1 2 4] [--lengths-of RUN]

NOTHING HERE IS MEASURED ON A GPU: the time of a decoding step is a roofline (`siri.commands.splits.Engines`), so read
the ratios.

The first table: eight engines sample 128 prompts x 16 responses, as siri-1.5b asks. Arrival order, with the prompts
dealt to the engines as they come, against the trainer's: dealt by the lengths of the last epoch, longest first in each
engine, and, as a bound, longest first by the true lengths. An H100 reads weights, keys and values once from memory for
a token of all responses, plus an assumed 2 ms. Lengths are drawn anew for each batch, lognormal and cut at the cap:
  goal    median 0.45 of the cap, sigma 0.7 (the distribution of this repository's packing goals)
  paper   means of DeepSeek-R1-Distill-Qwen-1.5B on AIME24, AMC and MATH500 (12,333, 8,449, 4,745 tokens, arXiv
          2509.25176, table 1; measured under a cap of 16K), a third of the prompts each, sigma 0.6 in a prompt
Of goal's variance BETWEEN (60 %) lies between prompts, the rest in them: an assumption that decides how much the last
epoch can tell. Expected lengths are means of 16 responses drawn as independently as those of another epoch.

The second table: siri-1.5b on N H100s, servers and trainers in turn (staleness 0) and overlapped (1, 2, 4), the best
split of each, beside all GPUs doing both in turn. It is the simulation of `siri plan`, in order: a step waits for the
last response to its prompts. Lengths are goal's, or, with --lengths-of, drawn around the means of a run's prompts.
"""

import argparse
import heapq
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from siri.commands.splits import BETWEEN, Engines, prompt_means, splits
from siri.config import Config
from siri.config.recipe import RecipeOptions, resolve
from siri.planning.hours import MEDIAN_SHARE, SIGMA, Rates
from siri.planning.memory_plan import Machine, memory_plan
from siri.planning.models import load_model_config
from siri.planning.tables import find_gpu
from siri.rollout.order import longest_first, sequences_in_flight, spread

PROMPTS, GROUP, ENGINES, PROMPT_TOKENS = 128, 16, 8, 200
TOKEN_BYTES = 2 * 2 * 28 * 2 * 128
"""Keys and values of a token in bf16: 28 layers, 2 heads of 128."""
WEIGHT_BYTES, BANDWIDTH, OVERHEAD_S = 2 * 1.54e9, 3.35e12, 2e-3
CACHE_TOKENS = int((0.6 * 80e9 - WEIGHT_BYTES - 2e9) / TOKEN_BYTES)
H100S = Engines(ENGINES, CACHE_TOKENS, TOKEN_BYTES, WEIGHT_BYTES, BANDWIDTH, OVERHEAD_S, read_share=1.0)
MFU = 0.4
"""Assumed of the training, as `siri plan` does."""


def lengths(kind: str, cap: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(true lengths [prompts, group], expected length [prompts]) of a batch."""
    if kind == "goal":
        centre = np.log(MEDIAN_SHARE * cap) + SIGMA * BETWEEN**0.5 * random.standard_normal(PROMPTS)
        within = SIGMA * (1 - BETWEEN) ** 0.5
    else:
        within = 0.6
        centre = np.log(random.choice([12333, 8449, 4745], PROMPTS)) - within**2 / 2

    def draw() -> np.ndarray:
        drawn = np.exp(centre[:, None] + within * random.standard_normal((PROMPTS, GROUP)))
        return np.clip(drawn, 1, cap).astype(int)

    return draw(), draw().mean(1)


def run(ordered: Sequence[int], limit: int) -> tuple[float, float, int]:
    """(seconds, sum of the seconds of each response, most tokens in the cache) of one engine that starts responses of
    these lengths in this order, at most `limit` at once."""
    waiting = list(ordered[::-1])
    running: list[int] = []  # a heap of the steps at which responses end
    now = resident = peak = 0
    seconds = busy = 0.0
    started: dict[int, list[int]] = {}
    while waiting or running:
        while waiting and len(running) < limit:
            length = waiting.pop()
            heapq.heappush(running, now + length)
            started.setdefault(now + length, []).append(length)
            resident += PROMPT_TOKENS
        steps, count = running[0] - now, len(running)
        spent = steps * H100S.token_s(resident + count * (steps - 1) / 2)  # linear: of the mean context
        seconds, busy = seconds + spent, busy + spent * count
        now, resident = running[0], resident + count * steps
        peak = max(peak, resident)
        while running and running[0] == now:
            heapq.heappop(running)
            resident -= PROMPT_TOKENS + started[now].pop()
    return seconds, busy, peak


def batch(kind: str, cap: int, order: str, planned: str, seed: int) -> tuple[float, float, float]:
    """(seconds, idle share, peak of the cache's use) of a rollout batch: everybody waits for the slowest engine."""
    true, expected = lengths(kind, cap, np.random.default_rng(seed))
    guess = true.mean(1) if order == "true lengths" else expected
    share = np.array_split(np.arange(PROMPTS), ENGINES) if order == "arrival" else spread(guess, ENGINES)
    limit = sequences_in_flight(CACHE_TOKENS, PROMPT_TOKENS, cap if planned == "cap" else expected.mean(), 1024)
    spent, busy, peak = [], 0.0, 0
    for prompts in share:
        work = true[prompts].flatten()
        if order != "arrival":
            rank_by = work if order == "true lengths" else np.repeat(guess[prompts], GROUP)
            work = work[longest_first(rank_by)]
        seconds, used, most = run(work.tolist(), limit)
        spent.append(seconds)
        busy, peak = busy + used, max(peak, most)
    return max(spent), 1 - busy / (max(spent) * ENGINES * min(limit, work.size)), peak / CACHE_TOKENS


def table(batches: int) -> list[str]:
    """Rows of the table, in Markdown."""
    rows = ["| cap | lengths | in flight planned from | at once | order | seconds | saved | idle | peak of the cache |"]
    rows.append("|---|---|---|---|---|---|---|---|---|")
    for cap in (8192, 16384):
        for kind in ("goal", "paper"):
            for planned in ("cap", "mean length"):
                base = None
                for order in ("arrival", "last epoch", "true lengths"):
                    runs = [batch(kind, cap, order, planned, seed) for seed in range(batches)]
                    seconds, idle, peak = np.mean(runs, 0)
                    base = base or seconds
                    mean = lengths(kind, cap, np.random.default_rng(0))[1].mean()
                    tokens = cap if planned == "cap" else mean
                    most = sequences_in_flight(CACHE_TOKENS, PROMPT_TOKENS, tokens, PROMPTS * GROUP // ENGINES)
                    rows.append(
                        f"| {cap} | {kind} | {planned} | {most} | {order} | {seconds:.1f} "
                        f"| {1 - seconds / base:.1%} | {idle:.1%} | {peak:.0%} |"
                    )
    return rows


def split_table(config: Config, gpus: int, staleness: Sequence[int], means: Sequence[float]) -> list[str]:
    """Rows of the table of splits, in Markdown."""
    gpu, (model_config, _) = find_gpu("h100"), load_model_config(config.model)
    plan = memory_plan(model_config, config, Machine(gpus, gpu.memory), rollout="colocated")
    rates = Rates(MFU * gpu.flops, gpu.bandwidth)
    rows = ["| cap | GPUs | staleness | servers | trainers | seconds a step | speed | trainer waits | servers idle |"]
    rows.append("|---|---|---|---|---|---|---|---|---|")
    for cap in (8192, 16384):
        priced = splits(model_config, plan, rates, [cap], [lag for lag in staleness if lag], means)
        wanted = [("colocated", 0), *(("overlapped" if lag else "in turn", lag) for lag in staleness)]
        best = [next(each for each in priced if (each.way, each.staleness) == way) for way in wanted]
        for each in best:
            counts = f"{each.staleness} | {each.servers or 'all'} | {each.trainers or 'all'}"
            rows.append(
                f"| {cap} | {each.way} | {counts} | {each.step_s:.0f} | {best[0].step_s / each.step_s:.2f} "
                f"| {each.trainer_waits:.0%} | {each.servers_idle:.0%} |"
            )
    return rows


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--batches", type=int, default=20, help="of the first table, for each row")
    options.add_argument("--gpus", type=int, default=16, help="of the second table")
    options.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2, 4])
    options.add_argument("--lengths-of", default="", help="a run whose prompts' lengths the second table takes")
    given = options.parse_args()
    print("\n".join(table(given.batches)) + "\n")
    recipe = resolve("siri-1.5b", RecipeOptions, []).config("model")
    run_means = prompt_means(Path(given.lengths_of)) if given.lengths_of else []
    print("\n".join(split_table(recipe, given.gpus, given.staleness, run_means)))
