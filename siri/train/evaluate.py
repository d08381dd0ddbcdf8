"""Evaluation at a given cap: accuracy (avg@k), pass@k, response tokens, truncation, and the efficiency score."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import comb
from typing import Any, NamedTuple

from siri.data.prompts import PromptSet
from siri.intervals import half_width
from siri.model.policy import Policy
from siri.rewards.pool import Grader
from siri.rollout import Progress, Request, Rollout
from siri.runtime.ranks import ALONE, Ranks
from siri.runtime.signals import Stop
from siri.train.records import Answer
from siri.train.thinking import ThinkingCheck
from siri.train.votes import NO_VOTE, majority_at_k, read_votes


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
    accuracy_half: float | None = None
    """Half the width of the accuracy's 95 % interval over problems, of which each counts once however many samples it
    has; None of a single problem."""
    tokens_half: float | None = None
    """The same of the mean response length."""
    top_p: float = 1.0
    maj_at_k: dict[str, float | None] | None = None
    """Chance that the most frequent answer of k responses is right (`siri.train.votes`); None where answers cannot be
    read, as with a reward of the user's."""
    without_answer: int | None = None
    """Responses in which no answer could be read; None as above."""
    budgets: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """What the same responses come to when they are cut at fewer tokens: accuracy, accuracy_half, tokens_mean and
    truncation_rate by the cap."""


class Readable(NamedTuple):
    """How answers are read from responses (`siri.train.votes`)."""

    reward: str
    think: bool


@dataclass(frozen=True)
class Answers:
    """What is left of the answers to some problems."""

    responses: list[tuple[int, bool]]
    """(tokens, truncated) of each."""
    rewards: list[float]
    faults: tuple[int, ...]
    """How many of them timed out, failed and were undecided in grading."""
    votes: list[int] = field(default_factory=list)
    """Which answer each gives; empty where nobody can tell."""
    at_budgets: dict[str, list[float]] = field(default_factory=dict)
    """The rewards when they are cut at fewer tokens."""


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
    row["top_p"], row["maj_at_k"], row["without_answer"] = each[0]["top_p"], None, None
    if all(result["maj_at_k"] for result in each):
        row["maj_at_k"] = {k: _mean([result["maj_at_k"][k] for result in each]) for k in each[0]["maj_at_k"]}
        row["without_answer"] = sum(result["without_answer"] for result in each)
    row["budgets"] = {
        cap: {
            key: _mean([result["budgets"][cap][key] for result in each])
            for key in ("accuracy", "tokens_mean", "truncation_rate")
        }
        for cap in each[0]["budgets"]
    }
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
    keep: Callable[[list[Answer]], None] | None = None,
    top_p: float = 1.0,
    budgets: Sequence[int] = (),
    readable: Readable | None = None,
) -> Evaluation:
    """Sample `samples` responses of at most `cap` tokens to every problem and grade them with the reward pool; each
    rank does its share of the problems, all get the figures.

    A response that the cap cuts is graded on what it holds. Greedy decoding is temperature 0, with one sample. Raises
    Interrupted when `stop` asks for it. keep: takes all responses, on rank 0. budgets: fewer tokens at which the same
    responses are judged as well. readable: how answers are read, for majority votes.
    """
    share = ranks.share(len(prompts.ids))
    options = {"cap": cap, "samples": samples, "temperature": temperature, "seed": seed, "progress": progress}
    options |= {"thinking": thinking, "top_p": top_p, "budgets": budgets, "readable": readable}
    kept: list[Answer] = []
    if keep is not None:
        options["kept"] = kept
    at_once = ranks.size == 1 or engine.independent
    answers = (Stop() if stop is None else stop).heed(
        lambda: answer(policy, engine, rewards, prompts, share, **options), ranks=ranks, at_once=at_once
    )
    if keep is not None:
        everything = [response for part in ranks.gather(kept) for response in part]
        if ranks.main:
            keep(everything)
    return summarise(ranks.gather(answers), prompts, cap=cap, samples=samples, top_p=top_p)


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
    kept: list[Answer] | None = None,
    top_p: float = 1.0,
    budgets: Sequence[int] = (),
    readable: Readable | None = None,
) -> Answers:
    """Sample and grade the problems `share` of a set. kept: gets each response."""
    requests = [Request(ids, cap, samples, top_p) for ids in prompts.ids[share]]
    completions = engine.generate(requests, temperature=temperature, seed=seed, progress=progress)
    flat = [completion for answers in completions for completion in answers]
    texts = [policy.decode(completion.token_ids) for completion in flat]
    if thinking:
        thinking.see(texts, flat)
    gold = [answer for answer in prompts.answers[share] for _ in range(samples)]
    graded = rewards.score(texts, gold)
    faults = (graded.timeouts, graded.errors, graded.undecided)
    if kept is not None:
        kept += zip(texts, flat, graded.rewards, strict=True)
    lengths = [(len(completion.token_ids), completion.truncated) for completion in flat]
    votes = (
        read_votes(readable.reward, texts, graded.rewards, samples, rewards, think=readable.think) if readable else []
    )
    cut = {str(budget): list(graded.rewards) for budget in budgets}
    for budget in budgets:
        longer = [place for place, (tokens, _) in enumerate(lengths) if tokens > budget]
        begun = [policy.decode(flat[place].token_ids[:budget]) for place in longer]
        regraded = rewards.score(begun, [gold[place] for place in longer]).rewards if longer else []
        for place, reward in zip(longer, regraded, strict=True):
            cut[str(budget)][place] = reward
    return Answers(lengths, list(graded.rewards), faults, votes, cut)


def joined(parts: Sequence[Answers]) -> Answers:
    """The answers of several ranks to a portion, in order."""
    return Answers(
        [response for part in parts for response in part.responses],
        [reward for part in parts for reward in part.rewards],
        tuple(map(sum, zip(*(part.faults for part in parts), strict=True))),
        [vote for part in parts for vote in part.votes],
        {budget: [score for part in parts for score in part.at_budgets[budget]] for budget in parts[0].at_budgets},
    )


def summarise(
    answered: Sequence[Answers], prompts: PromptSet, *, cap: int, samples: int, top_p: float = 1.0
) -> Evaluation:
    """The figures of a set of problems from the portions in which it was answered, in order."""
    responses = [response for part in answered for response in part.responses]
    scores = [reward for part in answered for reward in part.rewards]
    votes = [vote for part in answered for vote in part.votes]
    right = [reward >= 1 for reward in scores]
    lengths = [length for length, _ in responses]
    hits = hits_by_problem(answered, samples)
    each = [sum(lengths[start : start + samples]) / samples for start in range(0, len(lengths), samples)]
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
        reward_timeouts=sum(part.faults[0] for part in answered),
        reward_errors=sum(part.faults[1] for part in answered),
        reward_undecided=sum(sum(part.faults[2:]) for part in answered),  # none in the file of an older version
        accuracy_half=half_width([hit / samples for hit in hits]),
        tokens_half=half_width(each),
        top_p=top_p,
        maj_at_k={str(k): _mean(_majorities(votes, right, samples, k)) for k in counts} if votes else None,
        without_answer=votes.count(NO_VOTE) if votes else None,
        budgets={
            budget: _at_budget(int(budget), lengths, [score for part in answered for score in part.at_budgets[budget]],
                               [truncated for _, truncated in responses], samples)
            for budget in answered[0].at_budgets
        },
    )  # fmt: skip


def _majorities(votes: Sequence[int], right: Sequence[bool], samples: int, k: int) -> list[float]:
    return [
        majority_at_k(votes[start : start + samples], right[start : start + samples], k)
        for start in range(0, len(votes), samples)
    ]


def _at_budget(
    budget: int, lengths: Sequence[int], scores: Sequence[float], truncated: Sequence[bool], samples: int
) -> dict[str, float | None]:
    right = [score >= 1 for score in scores]
    shares = [sum(right[start : start + samples]) / samples for start in range(0, len(right), samples)]
    return {
        "accuracy": sum(right) / len(right),
        "accuracy_half": half_width(shares),
        "tokens_mean": sum(min(length, budget) for length in lengths) / len(lengths),
        "truncation_rate": sum(n > budget or (cut and n == budget) for n, cut in zip(lengths, truncated, strict=True))
        / len(lengths),
    }


def hits_by_problem(answered: Sequence[Answers], samples: int) -> list[int]:
    """How many of the responses to each problem are right."""
    right = [reward >= 1 for part in answered for reward in part.rewards]
    return [sum(right[start : start + samples]) for start in range(0, len(right), samples)]


def paired_difference(now: Sequence[float], before: Sequence[float]) -> tuple[float, float | None]:
    """Mean difference of two models' accuracies on the same problems, and half the width of its 95 % interval: what is
    hard or easy for both does not blur it."""
    differences = [value - value_before for value, value_before in zip(now, before, strict=True)]
    return sum(differences) / len(differences), half_width(differences)


def pass_at_k(n: int, right: int, k: int) -> float:
    """Unbiased chance that one of k draws without replacement from n responses, `right` of them right, is right
    (arXiv 2107.03374)."""
    return 1.0 - comb(n - right, k) / comb(n, k)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
