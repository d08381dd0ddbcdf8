"""Evaluation at a given cap: accuracy (avg@k), pass@k, response tokens, truncation, and the efficiency score."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb
from typing import Any

from siri.data.prompts import PromptSet
from siri.model.policy import Policy
from siri.rewards.pool import Grader
from siri.rollout import Progress, Request, Rollout
from siri.runtime.ranks import ALONE, Ranks
from siri.runtime.signals import Stop
from siri.train.thinking import ThinkingCheck


@dataclass(frozen=True)
class Evaluation:
    """Figures of one model on one set of problems."""

    cap: int
    """Longest response allowed, tokens."""
    problems: int
    samples: int
    """Responses to each problem (k of avg@k)."""
    left_out: int
    """Problems without an answer or with an over-long prompt, which are not among `problems`."""
    accuracy: float
    """Share of right responses (reward 1 or more), mean over problems and samples."""
    reward_mean: float
    """Mean reward; differs from the accuracy where a reward gives part marks."""
    pass_at_k: dict[str, float]
    """Chance that at least one of k responses is right, for k = 1, 2, 4, ... up to `samples`."""
    tokens_mean: float
    """Mean response length, tokens."""
    tokens_right_mean: float | None
    """The same over right responses; None if there is none."""
    tokens_wrong_mean: float | None
    truncation_rate: float
    """Share of responses that reached the cap."""
    reward_timeouts: int
    """Answers that took too long to grade, counted as wrong."""
    reward_errors: int
    """Answers whose grading failed, counted as wrong."""
    reward_undecided: int = 0
    """Answers that could not be told from the gold answer within bounds, counted as wrong."""


def average(results: Mapping[str, Evaluation]) -> dict[str, Any]:
    """One row of eval.jsonl: the mean over benchmarks, each counting the same; several are listed in `benchmarks`."""
    each = [asdict(result) for result in results.values()]
    if len(each) == 1:
        return each[0]
    row: dict[str, Any] = {"cap": each[0]["cap"], "samples": each[0]["samples"]}
    counts = ("problems", "left_out", "reward_timeouts", "reward_errors", "reward_undecided")
    row |= {key: sum(result[key] for result in each) for key in counts}
    row |= {
        key: _mean([result[key] for result in each])
        for key in ("accuracy", "reward_mean", "tokens_mean", "truncation_rate")
    }
    row["pass_at_k"] = {k: _mean([result["pass_at_k"][k] for result in each]) for k in each[0]["pass_at_k"]}
    return row | {"benchmarks": dict(zip(results, each, strict=True))}


def evaluate(
    policy: Policy,
    engine: Rollout,
    rewards: Grader,
    prompts: PromptSet,
    *,
    cap: int,
    samples: int,
    temperature: float,
    seed: int,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
    stop: Stop | None = None,
    thinking: ThinkingCheck | None = None,
) -> Evaluation:
    """Sample `samples` responses of at most `cap` tokens to every problem and grade them with the reward pool; each
    rank does its share of the problems, all get the figures.

    A response that the cap cuts is graded on what it holds. Greedy decoding is temperature 0, with one sample. Raises
    Interrupted when `stop` asks for it.
    """
    share = ranks.share(len(prompts.ids))
    options = {"cap": cap, "samples": samples, "temperature": temperature, "seed": seed, "progress": progress}
    options["thinking"] = thinking
    at_once = ranks.size == 1 or engine.independent
    answers = (Stop() if stop is None else stop).heed(
        lambda: answer(policy, engine, rewards, prompts, share, **options), ranks=ranks, at_once=at_once
    )
    return summarise(ranks.gather(answers), prompts, cap=cap, samples=samples)


Answers = tuple[list[tuple[int, bool]], list[float], tuple[int, ...]]
"""What is left of the answers to some problems: (tokens, truncated) and reward of each, and how many of them timed out,
failed and were undecided in grading."""


def answer(
    policy: Policy,
    engine: Rollout,
    rewards: Grader,
    prompts: PromptSet,
    share: slice,
    *,
    cap: int,
    samples: int,
    temperature: float,
    seed: int,
    progress: Progress | None,
    thinking: ThinkingCheck | None = None,
) -> Answers:
    """Sample and grade the problems `share` of a set."""
    requests = [Request(ids, cap, samples) for ids in prompts.ids[share]]
    completions = engine.generate(requests, temperature=temperature, seed=seed, progress=progress)
    flat = [completion for answers in completions for completion in answers]
    texts = [policy.decode(completion.token_ids) for completion in flat]
    if thinking:
        thinking.see(texts, flat)
    graded = rewards.score(texts, [answer for answer in prompts.answers[share] for _ in range(samples)])
    faults = (graded.timeouts, graded.errors, graded.undecided)
    return [(len(completion.token_ids), completion.truncated) for completion in flat], list(graded.rewards), faults


def summarise(answered: Sequence[Answers], prompts: PromptSet, *, cap: int, samples: int) -> Evaluation:
    """The figures of a set of problems from the portions in which it was answered, in order."""
    responses = [response for responses, _, _ in answered for response in responses]
    scores = [reward for _, rewards, _ in answered for reward in rewards]
    right = [reward >= 1 for reward in scores]
    lengths = [length for length, _ in responses]
    hits = [sum(right[start : start + samples]) for start in range(0, len(right), samples)]
    counts = [2**power for power in range(samples.bit_length())]
    return Evaluation(
        cap=cap,
        problems=len(prompts.ids),
        samples=samples,
        left_out=prompts.dropped + prompts.too_long,
        accuracy=sum(right) / len(right),
        reward_mean=sum(scores) / len(scores),
        pass_at_k={str(k): sum(pass_at_k(samples, hit, k) for hit in hits) / len(hits) for k in counts},
        tokens_mean=sum(lengths) / len(lengths),
        tokens_right_mean=_mean([length for length, hit in zip(lengths, right, strict=True) if hit]),
        tokens_wrong_mean=_mean([length for length, hit in zip(lengths, right, strict=True) if not hit]),
        truncation_rate=sum(truncated for _, truncated in responses) / len(responses),
        reward_timeouts=sum(faults[0] for _, _, faults in answered),
        reward_errors=sum(faults[1] for _, _, faults in answered),
        reward_undecided=sum(sum(faults[2:]) for _, _, faults in answered),  # none in the file of an older version
    )


def pass_at_k(n: int, right: int, k: int) -> float:
    """Unbiased chance that one of k draws without replacement from n responses, `right` of them right, is right
    (arXiv 2107.03374)."""
    return 1.0 - comb(n - right, k) / comb(n, k)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
