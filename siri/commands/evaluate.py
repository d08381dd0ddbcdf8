"""`siri eval MODEL ... --data FILE ...`: accuracy, pass@k, maj@k and tokens of models, as tables and files."""

import gc
import json
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siri.commands.evaluation_file import Partial, differences, read_results
from siri.commands.evaluation_table import budgets_table, lengths_table, results_table, side_by_side
from siri.config import Config
from siri.config.recipe import refuse_code
from siri.config.sections import DeviceSettings, GradingSettings, PromptSettings, RolloutSettings, Workload
from siri.config.settings import names, setting
from siri.config.watching import check_budgets
from siri.data.places import short_names
from siri.errors import InputError
from siri.sources import check_sources
from siri.store.about import ABOUT, PROTOCOL, differing, protocols
from siri.store.files import check_target
from siri.store.jsonl import efficiency_score, write_atomic
from siri.text import encoded, printable, say

if TYPE_CHECKING:
    import torch

    from siri.runtime.ranks import Ranks
    from siri.train.evaluate import Answers

PORTION = 2048
"""Responses after which `siri eval` puts down what it has: enough to fill an engine, minutes to lose."""
ANSWERS = ("data", "cap", "samples", "temperature", "problems", "prompt_key", "answer_key", "template", "template_args")
ANSWERS += ("instruction", "max_prompt_tokens", "reward", "think", "seed", "rollout", "top_p", "budgets")
"""What the answers of a model depend on."""
SAID = ("reward", "think", "template", "instruction", "cap")
"""What is said of a model's own protocol."""


@dataclass(frozen=True)
class EvalOptions(PromptSettings, RolloutSettings, GradingSettings, DeviceSettings):
    """What is measured, and where the figures go."""

    models: tuple[str, ...] = setting((), positional=True, least=1)
    """Models to measure, side by side: folders, hub names, checkpoints, or siri:demo/model for the one in the package.
    Reward, template, instruction, cap and the like are by default those that a checkpoint or export was trained
    with."""
    data: tuple[str, ...] = setting((), everyday=True)
    """Problems: .json, .jsonl, .csv, .parquet files, folders, patterns or hub data sets, each measured by itself;
    paper = AIME24, AIME25, AMC, MATH500 from the hub."""
    cap: int = setting(16384, least=1, everyday=True)
    """Longest response, tokens."""
    samples: int = setting(64, least=1, everyday=True)
    """Responses to each problem."""
    temperature: float = setting(0.6, least=0, everyday=True)
    """Sampling temperature; 0 = greedy."""
    top_p: float = setting(1.0, above=0, most=1, everyday=True)
    """Sample only from the likeliest tokens that together have this share of the probability; 1 = from all."""
    budgets: tuple[int, ...] = setting((), everyday=True)
    """Fewer tokens at which the same responses are judged as well: accuracy under several caps from one sampling."""
    problems: int = setting(0, least=0, everyday=True)
    """Only the first so many problems of each file; 0 = all."""
    base: str = setting("", everyday=True)
    """Result file (--out) of the base model; adds changes and the efficiency score."""
    out: str = setting("", everyday=True)
    """Write the figures to this JSON file; those of several models to one beside it each, with the model's name."""
    instruction: str = "Let's think step by step and output the final answer within \\boxed{}."
    rollout_memory: float = 0.85

    def check(self) -> None:
        check_sources("data", self.data, weighted=False)
        check_budgets("budgets", self.budgets, self.cap)

    @classmethod
    def defaults(cls, given: Sequence[Sequence[str]], rest: Sequence[str]) -> "EvalOptions":
        """What is measured where nothing is said: as the models were in their runs. given, rest: of the command line.
        InputError where they were measured differently, or by code that a file alone may not choose."""
        models = tuple(given[0])
        named = {word.split("=")[0][2:].removeprefix("no-").replace("-", "_") for word in rest if word[:2] == "--"}
        settings: dict[str, Any] = {}
        whose: dict[str, str] = {}
        for model, held in protocols(models).items():
            for name, value in held.items():
                if name in named:
                    continue
                if settings.setdefault(name, value) != value:
                    raise InputError(
                        f"{whose[name]} was trained with {name} {settings[name]!r}, {model} with {value!r}; give "
                        f"--{name.replace('_', '-')}, so that both are measured alike"
                    )
                whose.setdefault(name, model)
        if "reward" in settings:
            refuse_code(settings["reward"], f"{whose['reward']}: {ABOUT}")
        return cls(**settings)

    @property
    def model(self) -> str:
        """The first of the models; "" where there is none."""
        return self.models[0] if self.models else ""

    def config(self) -> Config:
        """What a run would call these settings."""
        sections = (PromptSettings, RolloutSettings, GradingSettings, DeviceSettings)
        shared = ["model", *(name for section in sections for name in names(section))]
        return Config(**{name: getattr(self, name) for name in shared})

    def workload(self) -> Workload:
        return Workload(
            model=self.model,
            tokens=self.max_prompt_tokens + self.cap,
            cap=self.cap,
            responses=None,
            temperature=self.temperature,
            recurring=False,
            offload=False,
        )


def run_evaluation(options: EvalOptions) -> int:
    """Measure each model on every source of `options.data`, print tables, write `options.out`. Under torchrun every
    rank samples its share of the problems, and rank 0 prints and writes."""
    if not options.data:
        raise InputError("siri eval needs problems; give --data FILE ..., or --data paper for the paper's four sets")
    if len(set(options.models)) < len(options.models):
        raise InputError("siri eval names a model twice")
    if options.base and len(options.models) > 1:
        raise InputError("--base is for one model; of several the first is what the others are compared with")
    from siri.model.policy import pick_device
    from siri.report.paper import expand
    from siri.runtime.ranks import ALONE, join_ranks, leave_ranks

    options = replace(options, data=expand(options.data))
    base = read_results(options.base, options.data, options.cap) if options.base else None
    outs = out_files(options)
    for out in filter(None, outs):
        check_target(out, "--out")
    ranks, device = ALONE, pick_device(options.device)
    if "RANK" in os.environ:  # a process on its own needs no group, and holds the model whole
        ranks, device = join_ranks(device)
    if ranks.main:
        for line in protocol_lines(options):
            say(line)
    rows: list[dict[str, Any]] = []
    for model, out in zip(options.models, outs, strict=True):
        row = measure(replace(options, models=(model,), out=out), ranks, device, base or (rows[0] if rows else None))
        rows.append(row)
        gc.collect()
    if len(rows) > 1 and ranks.main:
        from rich.console import Console

        Console().print(side_by_side(rows))
    if ranks.size > 1:
        ranks.gather(None)
        leave_ranks()
    return 0


def out_files(options: EvalOptions) -> list[str]:
    """Where the figures of each model go."""
    if len(options.models) == 1 or not options.out:
        return [options.out] * len(options.models)
    path = Path(options.out)
    shorts = [short.replace("/", "-").replace(":", "-") for short in short_names(options.models).values()]
    if len(set(shorts)) < len(shorts):
        shorts = [f"{number}-{short}" for number, short in enumerate(shorts, start=1)]
    return [str(path.with_name(f"{path.stem}-{short}{path.suffix}")) for short in shorts]


def protocol_lines(options: EvalOptions) -> list[str]:
    """What is taken from the models themselves, and what is not."""
    lines = []
    for model, held in protocols(options.models).items():
        here = {name: getattr(options, name) for name in held}
        said = ", ".join(f"{name} {here[name]!r}" for name in SAID if name in here)
        changed = differing(held, here)
        lines.append(f"{model}: measured as it says itself ({said})" if not changed else
                     f"{model}: trained and measured with another {', '.join(changed)} than here")  # fmt: skip
    return lines


def measure(
    options: EvalOptions, ranks: "Ranks", device: "torch.device", base: dict[str, Any] | None
) -> dict[str, Any]:
    """The figures of one model, on every rank; rank 0 prints them and writes `options.out`. base: what they are
    compared with."""
    import torch
    from rich.console import Console

    from siri.rewards.pool import RewardPool
    from siri.rollout.engines import engine_for, make_engine
    from siri.train.evaluate import average
    from siri.train.setup import Source, prepare

    def tell(line: str) -> None:
        if ranks.main:
            say(line)

    vllm = engine_for(options, device) != "local"
    setup = prepare(
        options.config(),
        # weights that leave for vLLM need not lie on its GPU as well
        device=torch.device("cpu") if vllm and ranks.size == 1 else device,
        ranks=ranks,
        sources=[Source((name,), options.cap, options.problems) for name in options.data],
        training=False,
    )
    policy, sets = setup.policy, dict(zip(options.data, setup.problems, strict=True))
    for line in setup.notes():
        tell(line)
    for name, prompts in sets.items():
        if base and (other := base["benchmarks"][name]["problems"]) != len(prompts.ids):
            who = f"--base {options.base}" if options.base else base["model"]
            raise InputError(
                f"{who}: {other} problems of {name}, here {len(prompts.ids)}; give both the same --problems and "
                "--max-prompt-tokens"
            )
    kept = options.out or f"siri-eval-{os.getpid()}"  # evaluations side by side must not share a folder
    kept = ranks.broadcast(kept)
    folder = Path(f"{kept}.weights") if vllm else None
    engine = make_engine(options, policy, device=device, ranks=ranks, folder=folder)
    box: list[Partial] = []
    ranks.on_main(lambda: box.append(_partial(options, sets, ranks)))
    pool = RewardPool(
        options.reward,
        workers=options.reward_workers,
        timeout_s=options.reward_timeout_s,
        think=options.think,
        memory_bytes=int(options.reward_memory_gb * 2**30),
    )
    with closing(engine), pool:
        engine.sync()
        for note in filter(None, [*engine.notes, pool.cell()]):
            tell(note)
        results, hits = _answered(options, setup, engine, pool, sets, ranks, box[0] if box else None)
    row = {"model": options.model, "temperature": options.temperature, "seed": options.seed, "threads": setup.threads}
    row["protocol"] = {name: getattr(options, name) for name in (*PROTOCOL, "samples", "seed")}
    row |= average(results)
    row.setdefault("benchmarks", {name: asdict(result) for name, result in results.items()})
    for name, figures in row["benchmarks"].items():
        figures["right_by_problem"] = hits[name]
    if base:
        pairs = [
            {name: (figures["accuracy"], figures["tokens_mean"]) for name, figures in measured["benchmarks"].items()}
            for measured in (row, base)
        ]
        row |= {"base": base["model"], "efficiency_score": efficiency_score(*pairs)}
        row["differences"] = differences(row["benchmarks"], base["benchmarks"])
        if changed := differing(row["protocol"], base.get("protocol", {})):
            changed = [name for name in changed if name != "seed"]
        if changed:
            tell(f"warning: {base['model']} was measured with another {', '.join(changed)}; the two do not compare")
    if ranks.main:
        for table in filter(None, (results_table(row, base), lengths_table(row, base), budgets_table(row))):
            Console().print(table)
        for line in _faults(row, options, pool.first_error):
            say(line)
        if options.out:
            write_atomic(options.out, encoded(json.dumps(row, indent=1) + "\n"))
            box[0].remove()
    return row


def _partial(options: EvalOptions, sets: Any, ranks: "Ranks") -> Partial:
    settings = {"model": options.model} | {key: getattr(options, key) for key in ANSWERS} | {"ranks": ranks.size}
    path = Path(f"{options.out}.partial.jsonl") if options.out else None
    return Partial(path, settings, sets, problems=max(1, PORTION // options.samples) * ranks.size)


def _answered(
    options: EvalOptions, setup: Any, engine: Any, pool: Any, sets: Any, ranks: "Ranks", partial: Partial | None
) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """The figures of each benchmark, and how many responses to each of its problems are right. partial: rank 0's."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    from siri.train import evaluate
    from siri.train.collect import derive_seed
    from siri.train.thinking import ThinkingCheck

    results: dict[str, Any] = {}
    hits: dict[str, list[int]] = {}
    thinking = ThinkingCheck(options.reward, options.think)
    columns = (*Progress.get_default_columns(), TimeElapsedColumn(), MofNCompleteColumn())
    portion = ranks.broadcast(partial.problems if partial else 0)
    with Progress(*columns, console=Console(stderr=True), disable=not ranks.main) as bar:
        for number, (name, prompts) in enumerate(sets.items()):
            total = len(prompts.ids)
            task = bar.add_task(escape(printable(short_names(sets)[name])), total=total * options.samples)
            answered: list[Answers] = []
            for start in range(0, total, portion):
                answers = ranks.broadcast(partial.known(name, start) if partial else None)
                if answers is None:
                    share = ranks.share(min(portion, total - start))
                    mine = evaluate.answer(
                        setup.policy,
                        engine,
                        pool,
                        prompts,
                        slice(start + share.start, start + share.stop),
                        cap=options.cap,
                        samples=options.samples,
                        temperature=options.temperature,
                        seed=derive_seed(options.seed, number, start, *ranks.seed_path),
                        progress=lambda count, task=task: bar.advance(task, count),
                        thinking=thinking,
                        top_p=options.top_p,
                        budgets=options.budgets,
                        readable=evaluate.Readable(options.reward, options.think),
                    )
                    answers = evaluate.joined(ranks.gather(mine))
                    if (line := thinking.line()) and ranks.main:
                        say(line)
                    if partial:
                        partial.add(name, start, answers)
                answered.append(answers)
                bar.update(task, completed=sum(len(part.responses) for part in answered))
            results[name] = evaluate.summarise(
                answered, prompts, cap=options.cap, samples=options.samples, top_p=options.top_p
            )
            hits[name] = evaluate.hits_by_problem(answered, options.samples)
    return results, hits


def _faults(row: dict[str, Any], options: EvalOptions, first_error: str) -> list[str]:
    """Lines on what could not be read or graded."""
    lines = []
    total = sum(figures["problems"] * figures["samples"] for figures in row["benchmarks"].values())
    without = row["without_answer"]
    if without == total:
        looked = "the text after </think>" if options.think else "the response"
        looked = f"a \\boxed{{}} in {looked}" if options.reward == "math" else looked
        lines.append(
            f"warning: in none of {total:,} responses an answer could be read (the reward {options.reward} looks for "
            f"{looked}); see --reward, --think, --template and --instruction"
        )
    elif without and without > total / 2:
        lines.append(f"note: in {without:,} of {total:,} responses no answer could be read")
    if row["reward_errors"]:
        lines.append(f"warning: grading failed on {row['reward_errors']} answers, the first time with: {first_error}")
    if row["reward_timeouts"]:
        lines.append(f"note: {row['reward_timeouts']} answers could not be graded in time, and score 0")
    if row["reward_undecided"]:
        lines.append(f"note: {row['reward_undecided']} answers were too close to the gold answer to call, and score 0")
    return lines
