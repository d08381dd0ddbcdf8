"""`siri eval MODEL --data FILE ...`: accuracy, pass@k and tokens of a model, as a table and a file."""

import json
import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siri.config import Config
from siri.config.sections import DeviceSettings, GradingSettings, PromptSettings, RolloutSettings, Workload
from siri.config.settings import names, setting
from siri.data.content import digests
from siri.data.problems import short_names
from siri.errors import InputError
from siri.store.jsonl import MetricsLog, efficiency_score, write_atomic
from siri.text import encoded, printable, say

if TYPE_CHECKING:
    from siri.data.prompts import PromptSet
    from siri.train.evaluate import Answers

PORTION = 2048
"""Responses after which `siri eval` puts down what it has: enough to fill an engine, minutes to lose."""


@dataclass(frozen=True)
class EvalOptions(PromptSettings, RolloutSettings, GradingSettings, DeviceSettings):
    """What is measured, and where the figures go."""

    model: str = setting("", positional=True)
    """Model to measure: a folder, a hub name, a checkpoint, or siri:demo/model for the one in the package."""
    data: tuple[str, ...] = setting((), everyday=True)
    """Problems: .json, .jsonl, .parquet files or hub data sets; paper = AIME24, AIME25, AMC, MATH500 from the hub."""
    cap: int = setting(16384, least=1, everyday=True)
    """Longest response, tokens."""
    samples: int = setting(64, least=1, everyday=True)
    """Responses to each problem."""
    temperature: float = setting(0.6, least=0, everyday=True)
    """Sampling temperature; 0 = greedy."""
    problems: int = setting(0, least=0, everyday=True)
    """Only the first so many problems of each file; 0 = all."""
    base: str = setting("", everyday=True)
    """Result file (--out) of the base model; adds changes and the efficiency score."""
    out: str = setting("", everyday=True)
    """Write the figures to this JSON file."""
    instruction: str = "Let's think step by step and output the final answer within \\boxed{}."
    rollout_memory: float = 0.85

    def config(self) -> Config:
        """What a run would call these settings."""
        sections = (PromptSettings, RolloutSettings, GradingSettings, DeviceSettings)
        shared = ["model", *(name for section in sections for name in names(section))]
        return Config(**{name: getattr(self, name) for name in shared})

    def workload(self) -> Workload:
        return Workload(
            model=self.model,
            tokens=self.max_prompt_tokens + self.cap,
            responses=None,
            temperature=self.temperature,
            recurring=False,
            offload=False,
        )


def run_evaluation(options: EvalOptions) -> int:
    """Measure the model on every file of `options.data`, print a table, write `options.out`."""
    if not options.data:
        raise InputError("siri eval needs problems; give --data FILE ..., or --data paper for the paper's four sets")
    import torch
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import MofNCompleteColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    from siri.model.policy import pick_device
    from siri.report.paper import expand
    from siri.rewards.pool import RewardPool
    from siri.rollout.engines import engine_for, make_engine
    from siri.train.collect import derive_seed
    from siri.train.evaluate import answer, average, summarise
    from siri.train.setup import Source, prepare
    from siri.train.thinking import ThinkingCheck

    options = replace(options, data=expand(options.data))
    base = _read_results(options.base, options) if options.base else None
    if options.out and not Path(options.out).absolute().parent.is_dir():
        raise InputError(f"--out {options.out}: no such folder; make it first")
    device = pick_device(options.device)
    vllm = engine_for(options, device) != "local"
    setup = prepare(
        options.config(),
        # weights that leave for vLLM need not lie on its GPU as well
        device=torch.device("cpu") if vllm else device,
        sources=[Source(name, options.cap, options.problems) for name in options.data],
        training=False,
    )
    policy, sets = setup.policy, dict(zip(options.data, setup.problems, strict=True))
    for line in setup.notes():
        say(line)
    for name, prompts in sets.items():
        if base and base["benchmarks"][name]["problems"] != len(prompts.ids):
            raise InputError(
                f"--base {options.base}: {base['benchmarks'][name]['problems']} problems of {name}, here "
                f"{len(prompts.ids)}; give both the same --problems and --max-prompt-tokens"
            )
    kept = options.out or f"siri-eval-{os.getpid()}"  # evaluations side by side must not share a folder
    engine = make_engine(options, policy, device=device, folder=Path(f"{kept}.weights") if vllm else None)
    partial = Partial(Path(f"{options.out}.partial.jsonl") if options.out else None, options, sets)
    pool = RewardPool(
        options.reward,
        workers=options.reward_workers,
        timeout_s=options.reward_timeout_s,
        think=options.think,
        memory_bytes=int(options.reward_memory_gb * 2**30),
    )
    results = {}
    thinking = ThinkingCheck(options.reward, options.think)
    columns = (*Bar.get_default_columns(), TimeElapsedColumn(), MofNCompleteColumn())
    with closing(engine), pool, Bar(*columns, console=Console(stderr=True)) as bar:
        engine.sync()
        for note in filter(None, [*engine.notes, pool.cell()]):
            say(note)
        for number, (name, prompts) in enumerate(sets.items()):
            task = bar.add_task(escape(printable(short_names(sets)[name])), total=len(prompts.ids) * options.samples)
            answered: list[Answers] = []
            for start in range(0, len(prompts.ids), partial.problems):
                answers = partial.known(name, start)
                if answers is None:
                    answers = answer(
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
                        thinking=thinking,
                    )
                    if line := thinking.line():
                        say(line)
                    partial.add(name, start, answers)
                else:
                    bar.advance(task, len(answers[0]))
                answered.append(answers)
            results[name] = summarise(answered, prompts, cap=options.cap, samples=options.samples)
    row = {"model": options.model, "temperature": options.temperature, "seed": options.seed, "threads": setup.threads}
    row |= average(results)
    row.setdefault("benchmarks", {name: asdict(result) for name, result in results.items()})
    if base:
        pairs = [
            {name: (figures["accuracy"], figures["tokens_mean"]) for name, figures in measured["benchmarks"].items()}
            for measured in (row, base)
        ]
        row |= {"base": base["model"], "efficiency_score": efficiency_score(*pairs)}
    Console().print(results_table(row, base))
    if row["reward_errors"]:
        say(f"warning: grading failed on {row['reward_errors']} answers, the first time with: {pool.first_error}")
    if row["reward_timeouts"]:
        print(f"note: {row['reward_timeouts']} answers could not be graded in time, and score 0")
    if row["reward_undecided"]:
        print(f"note: {row['reward_undecided']} answers were too close to the gold answer to call, and score 0")
    if options.out:
        write_atomic(options.out, encoded(json.dumps(row, indent=1) + "\n"))
        partial.remove()
    return 0


class Partial:
    """The answers so far, in a file beside the result: the same command continues where a kill cut it off.

    Problems are done in portions, each with seeds of its own, so that it does not matter where that was.
    """

    def __init__(self, path: Path | None, options: EvalOptions, sets: "Mapping[str, PromptSet]") -> None:
        """InputError when the file holds the answers of another evaluation, or of problems that changed since."""
        self.problems = max(1, PORTION // options.samples)
        self.log = MetricsLog(path) if path else None
        self.rows: dict[tuple[str, int], Answers] = {}
        keys = ("model", "data", "cap", "samples", "temperature", "problems", "prompt_key", "answer_key", "template")
        keys += ("instruction", "max_prompt_tokens", "reward", "think", "seed", "rollout")
        head = json.loads(json.dumps({key: getattr(options, key) for key in keys}))
        rows = b"".join(digest for prompts in sets.values() for digest in digests(prompts))
        head["problems_sha256"] = sha256(rows).hexdigest()
        if not path or not self.log:
            return
        known = self.log.rows() if path.exists() else []
        if known:  # an older release did not say which problems
            known[0].setdefault("problems_sha256", head["problems_sha256"])
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
            say(f"continuing with {path}: {len(self.rows)} portions of {self.problems} problems are done")
        else:
            self.log.append(head)

    def known(self, data: str, start: int) -> "Answers | None":
        """The answers to the portion that starts there, if they are in the file."""
        return self.rows.get((data, start))

    def add(self, data: str, start: int, answers: "Answers") -> None:
        """Keep the answers to a portion."""
        if self.log:
            responses, rewards, faults = answers
            row = {"data": data, "start": start, "responses": responses, "rewards": rewards, "faults": faults}
            self.log.append(row)

    def remove(self) -> None:
        """The result is written, so this is of no more use."""
        if self.log:
            self.log.path.unlink(missing_ok=True)


def results_table(row: dict[str, Any], base: dict[str, Any] | None) -> Any:
    from rich.markup import escape
    from rich.table import Table

    from siri.report.format import percent

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
    table = Table(*headings, title=escape(printable(row["model"])))

    def change(name: str, key: str) -> list[str]:
        if base is None:
            return []
        before = base["benchmarks"][name][key]
        return [percent(figures[name][key] / before - 1 if before else None, signed=True)]

    short = short_names(figures)
    for name, result in figures.items():
        accuracy = [percent(result["accuracy"]), *change(name, "accuracy"), percent(result["pass_at_k"][best])]
        length = [f"{result['tokens_mean']:,.1f}", *change(name, "tokens_mean"), percent(result["truncation_rate"])]
        table.add_row(escape(printable(short[name])), str(result["problems"]), *accuracy, *length)
    if base:
        score = row["efficiency_score"]
        table.caption = f"efficiency score against {escape(printable(base['model']))}: " + (
            "none, the base got nothing right somewhere" if score is None else f"{score:.2f}"
        )
    return table


def _read_results(path: str, options: EvalOptions) -> dict[str, Any]:
    """The base's results, which must be of the same benchmarks at the same cap: both figures depend on it."""
    try:
        row = json.loads(Path(path).read_bytes())
        keys = ("accuracy", "tokens_mean", "problems", "cap")
        results = {name: {key: result[key] for key in keys} for name, result in row["benchmarks"].items()}
        model = row["model"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--base {path}: not a result file of siri eval --out ({type(error).__name__})") from None
    if results.keys() != set(options.data):
        raise InputError(f"--base {path} holds the benchmarks {', '.join(sorted(results))}; give --data the same names")
    if any(result["cap"] != options.cap for result in results.values()):
        raise InputError(
            f"--base {path} was measured at another cap than {options.cap}; measure both at the same --cap"
        )
    return {"model": model, "benchmarks": results}
