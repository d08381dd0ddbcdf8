"""Evaluation at a given cap: accuracy (avg@k), pass@k, response tokens, truncation, and the efficiency score."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from math import comb
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from siri.data.prompts import PromptSet, load_prompts
from siri.errors import InputError
from siri.model.policy import Policy
from siri.rollout import Progress, Request, Rollout
from siri.runtime.ranks import ALONE, Ranks
from siri.runtime.signals import Stop
from siri.store.jsonl import MetricsLog, efficiency_score

PORTION = 2048
"""Responses after which `siri eval` puts down what it has: enough to fill an engine, minutes to lose."""


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


def average(results: Mapping[str, Evaluation]) -> dict[str, Any]:
    """One row of eval.jsonl: the mean over benchmarks, each counting the same; several are listed in `benchmarks`."""
    parts = [asdict(result) for result in results.values()]
    if len(parts) == 1:
        return parts[0]
    row: dict[str, Any] = {"cap": parts[0]["cap"], "samples": parts[0]["samples"]}
    row |= {
        key: sum(part[key] for part in parts) for key in ("problems", "left_out", "reward_timeouts", "reward_errors")
    }
    row |= {
        key: _mean([part[key] for part in parts])
        for key in ("accuracy", "reward_mean", "tokens_mean", "truncation_rate")
    }
    row["pass_at_k"] = {k: _mean([part["pass_at_k"][k] for part in parts]) for k in parts[0]["pass_at_k"]}
    return row | {"benchmarks": dict(zip(results, parts, strict=True))}


def evaluate(
    policy: Policy,
    engine: Rollout,
    rewards: Any,
    prompts: PromptSet,
    *,
    cap: int,
    samples: int,
    temperature: float,
    seed: int,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
    stop: Stop | None = None,
) -> Evaluation:
    """Sample `samples` responses of at most `cap` tokens to every problem and grade them with the reward pool; each
    rank does its share of the problems, all get the figures.

    A response that the cap cuts is graded on what it holds. Greedy decoding is temperature 0, with one sample. Raises
    Interrupted when `stop` asks for it.
    """
    own = ranks.share(len(prompts.ids))
    options = {"cap": cap, "samples": samples, "temperature": temperature, "seed": seed, "progress": progress}
    at_once = ranks.size == 1 or getattr(engine, "by_itself", False)
    part = (Stop() if stop is None else stop).heed(
        lambda: answer(policy, engine, rewards, prompts, own, **options), ranks=ranks, at_once=at_once
    )
    return summarise(ranks.gather(part), prompts, cap=cap, samples=samples)


Part = tuple[list[tuple[int, bool]], list[float], tuple[int, int]]
"""What is left of the answers to some problems: (tokens, truncated) and reward of each, and (timeouts, errors)."""


def answer(
    policy: Policy,
    engine: Rollout,
    rewards: Any,
    prompts: PromptSet,
    own: slice,
    *,
    cap: int,
    samples: int,
    temperature: float,
    seed: int,
    progress: Progress | None,
) -> Part:
    """Sample and grade the problems `own` of a set."""
    requests = [Request(ids, cap, samples) for ids in prompts.ids[own]]
    completions = engine.generate(requests, temperature=temperature, seed=seed, progress=progress)
    flat = [completion for answers in completions for completion in answers]
    texts = [policy.decode(completion.token_ids) for completion in flat]
    graded = rewards.score(texts, [answer for answer in prompts.answers[own] for _ in range(samples)])
    faults = (graded.timeouts, graded.errors)
    return [(len(one.token_ids), one.truncated) for one in flat], list(graded.rewards), faults


def summarise(parts: Sequence[Part], prompts: PromptSet, *, cap: int, samples: int) -> Evaluation:
    """The figures of a set of problems from the parts in which it was answered, in order."""
    responses = [response for part, _, _ in parts for response in part]
    scores = [reward for _, part, _ in parts for reward in part]
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
        reward_timeouts=sum(timeouts for _, _, (timeouts, _) in parts),
        reward_errors=sum(errors for _, _, (_, errors) in parts),
    )


def pass_at_k(n: int, right: int, k: int) -> float:
    """Unbiased chance that one of k draws without replacement from n responses, `right` of them right, is right
    (arXiv 2107.03374)."""
    return 1.0 - comb(n - right, k) / comb(n, k)


def run_evaluation(source: str, options: Any) -> None:
    """`siri eval`: measure the model `source` on every file of `options.data`, print a table, write `options.out`."""
    import torch
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    from siri.model.policy import check_context, load_policy, pick_device
    from siri.rewards.pool import RewardPool
    from siri.rollout.engines import choose, make_engine
    from siri.store.jsonl import write_atomic
    from siri.train.collect import derive_seed

    base = _read_results(options.base, options) if options.base else None
    if options.out and not Path(options.out).absolute().parent.is_dir():
        raise InputError(f"--out {options.out}: no such folder; make it first")
    device = pick_device(options.device)
    vllm = choose(options, device) != "local"
    policy = load_policy(source, torch.device("cpu") if vllm else device)
    sets = {name: load_prompts(name, policy.tokenizer, options, limit=options.problems) for name in options.data}
    for name, prompts in sets.items():
        for line in prompts.notes(name):
            print(line)
        if base and base["benchmarks"][name]["problems"] != len(prompts.ids):
            raise InputError(
                f"--base {options.base}: {base['benchmarks'][name]['problems']} problems of {name}, here "
                f"{len(prompts.ids)}; give both the same --problems and --max-prompt-tokens"
            )
        check_context(policy, prompts.longest, options.cap)
    settings = SimpleNamespace(**{**asdict(options), "model": source})
    kept = options.out or f"siri-eval-{os.getpid()}"  # evaluations side by side must not share a folder
    # weights that leave for vLLM need not lie on its GPU as well
    engine = make_engine(settings, policy, device=device, folder=Path(f"{kept}.weights") if vllm else None)
    partial = Partial(Path(f"{options.out}.partial.jsonl") if options.out else None, source, options)
    pool = RewardPool(
        options.reward, workers=options.reward_workers, timeout_s=options.reward_timeout_s, think=options.think
    )
    results = {}
    columns = (*Bar.get_default_columns(), TimeElapsedColumn(), MofNCompleteColumn())
    with closing(engine), pool, Bar(*columns, console=Console(stderr=True)) as bar:
        engine.sync()
        for note in engine.notes:
            print(note)
        for number, (name, prompts) in enumerate(sets.items()):
            task = bar.add_task(Path(name).stem, total=len(prompts.ids) * options.samples)
            parts: list[Part] = []
            for start in range(0, len(prompts.ids), partial.problems):
                part = partial.known(name, start)
                if part is None:
                    part = answer(
                        policy,
                        engine,
                        pool,
                        prompts,
                        slice(start, start + partial.problems),
                        cap=options.cap,
                        samples=options.samples,
                        temperature=options.temperature,
                        seed=derive_seed(options.seed, number, start),
                        progress=lambda count, task=task: bar.advance(task, count),
                    )
                    partial.add(name, start, part)
                else:
                    bar.advance(task, len(part[0]))
                parts.append(part)
            results[name] = summarise(parts, prompts, cap=options.cap, samples=options.samples)
    row = {"model": source, "temperature": options.temperature, "seed": options.seed, **average(results)}
    row.setdefault("benchmarks", {name: asdict(result) for name, result in results.items()})
    if base:
        pairs = [
            {name: (one["accuracy"], one["tokens_mean"]) for name, one in part["benchmarks"].items()}
            for part in (row, base)
        ]
        row |= {"base": base["model"], "efficiency_score": efficiency_score(*pairs)}
    Console().print(_results_table(row, base))
    if row["reward_errors"]:
        print(f"warning: grading failed on {row['reward_errors']} answers, the first time with: {pool.first_error}")
    if options.out:
        write_atomic(options.out, (json.dumps(row, indent=1) + "\n").encode())
        partial.remove()


class Partial:
    """The answers so far, in a file beside the result: the same command continues where a kill cut it off.

    Problems are done in portions, each with seeds of its own, so that it does not matter where that was.
    """

    def __init__(self, path: Path | None, source: str, options: Any) -> None:
        """InputError when the file holds the answers of another evaluation."""
        self.problems = max(1, PORTION // options.samples)
        self.log = MetricsLog(path) if path else None
        self.rows: dict[tuple[str, int], Part] = {}
        keys = ("data", "cap", "samples", "temperature", "problems", "prompt_key", "answer_key", "template")
        keys += ("instruction", "max_prompt_tokens", "reward", "think", "seed", "rollout")
        head = json.loads(json.dumps({"model": source, **{key: getattr(options, key) for key in keys}}))
        if not self.log:
            return
        known = self.log.rows() if path.exists() else []
        if known and known[0] != head:
            differing = [key for key in head if known[0].get(key) != head[key]]
            raise InputError(
                f"{path} holds an evaluation that was cut off, with another {', '.join(differing)}; give the same "
                "settings to continue it, or delete it"
            )
        for row in known[1:]:
            responses = [(tokens, truncated) for tokens, truncated in row["responses"]]
            self.rows[row["data"], row["start"]] = (responses, row["rewards"], tuple(row["faults"]))
        if known:
            print(f"continuing with {path}: {len(self.rows)} portions of {self.problems} problems are done")
        else:
            self.log.append(head)

    def known(self, data: str, start: int) -> Part | None:
        """The answers to the portion that starts there, if they are in the file."""
        return self.rows.get((data, start))

    def add(self, data: str, start: int, part: Part) -> None:
        """Keep the answers to a portion."""
        if self.log:
            responses, rewards, faults = part
            row = {"data": data, "start": start, "responses": responses, "rewards": rewards, "faults": faults}
            self.log.append(row)

    def remove(self) -> None:
        """The result is written, so this is of no more use."""
        if self.log:
            self.log.path.unlink(missing_ok=True)


def _results_table(row: dict[str, Any], base: dict[str, Any] | None) -> Any:
    from rich.table import Table

    from siri.report.terminal import percent

    figures = row["benchmarks"]
    best = max(next(iter(figures.values()))["pass_at_k"], key=int)
    versus = ["vs base"] if base else []
    headings = [
        "benchmark",
        "problems",
        f"avg@{row['samples']}",
        *versus,
        f"pass@{best}",
        "tokens",
        *versus,
        "truncated",
    ]
    table = Table(*headings, title=row["model"])

    def change(name: str, key: str) -> list[str]:
        if base is None:
            return []
        before = base["benchmarks"][name][key]
        return [percent(figures[name][key] / before - 1 if before else None, signed=True)]

    for name, one in figures.items():
        accuracy = [percent(one["accuracy"]), *change(name, "accuracy"), percent(one["pass_at_k"][best])]
        length = [f"{one['tokens_mean']:,.1f}", *change(name, "tokens_mean"), percent(one["truncation_rate"])]
        table.add_row(Path(name).name, str(one["problems"]), *accuracy, *length)
    if base:
        score = row["efficiency_score"]
        table.caption = f"efficiency score against {base['model']}: " + (
            "none, the base got nothing right somewhere" if score is None else f"{score:.2f}"
        )
    return table


def _read_results(path: str, options: Any) -> dict[str, Any]:
    """The base's results, which must be of the same benchmarks at the same cap: both figures depend on it."""
    try:
        row = json.loads(Path(path).read_text())
        known = ("accuracy", "tokens_mean", "problems", "cap")
        found = {name: {key: one[key] for key in known} for name, one in row["benchmarks"].items()}
        model = row["model"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--base {path}: not a result file of siri eval --out ({type(error).__name__})") from None
    if found.keys() != set(options.data):
        raise InputError(f"--base {path} holds the benchmarks {', '.join(sorted(found))}; give --data the same names")
    if any(one["cap"] != options.cap for one in found.values()):
        raise InputError(
            f"--base {path} was measured at another cap than {options.cap}; measure both at the same --cap"
        )
    return {"model": model, "benchmarks": found}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
