"""What the order of rollouts saves: a simulation, python bench/rollout_order.py [--batches N].

Eight engines sample 128 prompts x 16 responses, as siri-1.5b asks. Arrival order, with the prompts dealt to the engines
as they come, against the trainer's: dealt by the lengths of the last epoch, longest first in each engine, and, as a
bound, longest first by the true lengths. The time of a decoding step is a roofline of an H100 (weights, keys and values
read once from memory, plus an assumed 2 ms); NOTHING HERE IS MEASURED ON A GPU, so read the ratios.

Lengths are drawn anew for each batch, lognormal and cut at the cap:
  goal    median 0.45 of the cap, sigma 0.7 (the distribution of this repository's packing goals)
  paper   means of DeepSeek-R1-Distill-Qwen-1.5B on AIME24, AMC and MATH500 (12,333, 8,449, 4,745 tokens, arXiv
          2509.25176, table 1; measured under a cap of 16K), a third of the prompts each, sigma 0.6 in a prompt
Of goal's variance BETWEEN (60 %) lies between prompts, the rest in them: an assumption that decides how much the last
epoch can tell. Expected lengths are means of 16 responses drawn as independently as those of another epoch.
"""

import argparse
import heapq
from collections.abc import Sequence

import numpy as np

from siri.rollout.order import longest_first, sequences_in_flight, spread

PROMPTS, GROUP, ENGINES, PROMPT_TOKENS = 128, 16, 8, 200
BETWEEN = 0.6
TOKEN_BYTES = 2 * 2 * 28 * 2 * 128
"""Keys and values of a token in bf16: 28 layers, 2 heads of 128."""
WEIGHT_BYTES, BANDWIDTH, OVERHEAD_S = 2 * 1.54e9, 3.35e12, 2e-3
CACHE_TOKENS = int((0.6 * 80e9 - WEIGHT_BYTES - 2e9) / TOKEN_BYTES)


def lengths(kind: str, cap: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(true lengths [prompts, group], expected length [prompts]) of a batch."""
    if kind == "goal":
        centre = np.log(0.45 * cap) + 0.7 * BETWEEN**0.5 * random.standard_normal(PROMPTS)
        within = 0.7 * (1 - BETWEEN) ** 0.5
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
        read = steps * resident + count * steps * (steps - 1) / 2
        spent = steps * (OVERHEAD_S + WEIGHT_BYTES / BANDWIDTH) + read * TOKEN_BYTES / BANDWIDTH
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
    for own in share:
        work = true[own].flatten()
        if order != "arrival":
            rank_by = work if order == "true lengths" else np.repeat(guess[own], GROUP)
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


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--batches", type=int, default=20)
    print("\n".join(table(options.parse_args().batches)))
