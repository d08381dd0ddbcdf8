"""Host work of a rank between the last response and the first forward: from its own responses to the groups of all
ranks, the row's figures and its micro-batches. `python bench/host_cost.py` compares, in one process, what is done now
with what was done at first, when every rank turned the tokens of all into lists and counted the words of all.

Collectives, decoding and grading are not in it: they are the same in both.
"""

import argparse
import gc
import json
import time
from collections.abc import Callable
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from siri.config import Config
from siri.rollout import Completion
from siri.train.dynamics import Dynamics, repetition_rate
from siri.train.groups import Group, from_arrays, rollout_metrics, to_arrays
from siri.train.micro_batch import MicroBatch
from siri.train.samples import make_samples

GROUP = 16
VOCAB = 152_064
BUDGET = 36_864
WORDS = {"wait": 1, " wait": 2, "hold": 3, "on": 4, "so": 5, "alternatively": 6}


def sampled(responses: int, length: int, seed: int) -> list[Group]:
    """Groups as an engine gives them, in lists."""
    draw = np.random.default_rng(seed)

    def completion() -> Completion:
        count = int(draw.integers(length // 2, length + length // 2))
        return Completion(draw.integers(0, VOCAB, count).tolist(), draw.normal(-1, 0.1, count).tolist(), False)

    scores = [float(place % 2) for place in range(GROUP)]
    return [Group([7] * 150, [completion() for _ in range(GROUP)], scores, scores) for _ in range(responses // GROUP)]


def before(mine: list[Group], others: list[dict[str, np.ndarray]], dynamics: Any, config: Config) -> Any:
    """As it was: every token passes through lists, on every rank."""

    def flat(lists: Any, dtype: type) -> np.ndarray:
        return np.fromiter((item for items in lists for item in items), dtype)

    answers = [completion for group in mine for completion in group.completions]
    sent = to_arrays(mine) | {
        "response_ids": flat((answer.token_ids for answer in answers), np.int32),
        "logp": flat((answer.logp for answer in answers), np.float32),
    }
    groups = []
    for arrays in (sent, *others):
        ends = np.cumsum(arrays["response_lengths"])[:-1]
        lists = [[piece.tolist() for piece in np.split(arrays[name], ends)] for name in ("response_ids", "logp")]
        completions = (Completion(ids, logp, False) for ids, logp in zip(*lists, strict=True))
        for group in from_arrays(arrays):
            groups.append(Group(group.prompt_ids, list(islice(completions, GROUP)), group.scores, group.rewards))
    responses = [np.array(completion.token_ids, np.int64) for group in groups for completion in group.completions]
    joined = np.concatenate([piece for ids in responses for piece in (ids, np.array([-1]))])
    for counter in (dynamics.backtracking, dynamics.forward):
        for words in counter.phrases_ids:
            matching = np.ones(len(joined) - len(words) + 1, bool)
            for offset, ids in enumerate(words):
                matching &= np.isin(joined[offset : offset + len(matching)], ids)
            matching.sum()
    np.mean([repetition_rate(ids) for ids in responses])
    return finished(groups, config)


def now(mine: list[Group], others: list[dict[str, np.ndarray]], dynamics: Dynamics, config: Config) -> Any:
    """As the collector does it."""
    mine = [
        Group(group.prompt_ids, group.completions, group.scores, group.rewards, wording=dynamics.of(group.completions))
        for group in mine
    ]
    groups = [group for arrays in (to_arrays(mine), *others) for group in from_arrays(arrays)]
    dynamics.metrics(groups)
    return finished(groups, config)


def finished(groups: list[Group], config: Config) -> Any:
    """What both do: figures, samples, and this rank's micro-batches."""
    rollout_metrics(groups)
    samples = [sample for batch in make_samples(config, groups) for sample in batch][: len(groups) * GROUP // RANKS]
    batches, pack, held = [], [], 0
    for sample in samples:
        if pack and held + len(sample) > BUDGET:
            batches.append(MicroBatch.of(pack, entropy_bonus=False, device=torch.device("cpu"), backend="varlen"))
            pack, held = [], 0
        pack.append(sample)
        held += len(sample)
    return batches


RANKS = 8


def seconds(function: Callable[..., Any], *arguments: Any) -> float:
    gc.collect()
    began = time.process_time()  # what this process computes, whatever else the machine does
    function(*arguments)
    return time.process_time() - began


def measure(responses: int, length: int) -> dict[str, Any]:
    """CPU seconds of a step on one of RANKS ranks, both ways, and their ratio."""
    dynamics = Dynamics(SimpleNamespace(get_vocab=lambda: WORDS))
    config = Config(group_size=GROUP, prompts_per_step=responses // GROUP, mini_batch_prompts=responses // GROUP)
    mine = sampled(responses // RANKS, length, 0)
    others = []
    for rank in range(1, RANKS):
        groups = sampled(responses // RANKS, length, rank)
        words = [
            Group(group.prompt_ids, group.completions, group.scores, group.rewards, wording=((0.0, 0.0, 0.0),) * GROUP)
            for group in groups
        ]
        others.append(to_arrays(words))
    old, new = (seconds(way, mine, others, dynamics, config) for way in (before, now))
    return {"responses": responses, "length": length, "before_s": round(old, 3), "now_s": round(new, 3),
            "share": round(new / old, 4)}  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--responses", type=int, default=2048)
    parser.add_argument("--length", type=int, default=7500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(measure(options.responses, options.length)))
