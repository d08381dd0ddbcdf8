"""The commands of siri. Only what a command needs is imported, so that help is instant."""

import errno
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from siri.config import Config
from siri.config.parse import nearest, parse
from siri.config.recipe import load_recipe, recipe_names, resolve
from siri.config.sections import check_rollout
from siri.errors import InputError

ALIKE_S = 5
"""Seconds that another rank waits for rank 0 to say what is wrong."""
HELP = """\
siri: reinforcement learning with an oscillating length cap (arXiv 2509.25176)

  siri train RECIPE [--KEY VALUE ...] [--run-dir DIR] [--resume]   train; siri train --help lists the keys
  siri eval MODEL --data FILE ... [--cap N] [--samples K]          accuracy (avg@k), pass@k, tokens of a model
  siri plan RECIPE [--gpus N] [--gpu h100] [--KEY VALUE ...]       GPU memory and GPU-hours that a run needs
  siri report RUN                                                  draw the pictures and report.html of a run
  siri report --paper BASE.json LOW.json ...                       results of siri eval beside the paper's table
  siri study STUDY.toml [--jobs N] [--limit N] [--draw]            arms x seeds, resumable; their table and pictures
  siri compare RUN RUN ... [--out DIR]                             the same for runs at hand
  siri export CHECKPOINT FOLDER                                    a model folder for transformers and vLLM
  siri replay BUNDLE                                               run the update of a post-mortem again
  siri bench [--compare A.json B.json] [--plot A.json]             benchmark results side by side, or drawn
  siri bench calibrate RECIPE [--out FILE]                         cost of attention here, for the packing plan
  siri doctor                                                      what this machine has, and what is missing

recipes: {recipes}
"""


@dataclass(frozen=True)
class TrainOptions(Config):
    run_dir: str = ""
    """Folder of the run; default runs/RECIPE."""
    resume: bool = False
    """Continue the run in --run-dir from its newest good checkpoint."""
    auto_resume: bool = False
    """Start the run, or continue it if the folder holds one."""
    quiet: bool = False
    """Show nothing but errors."""
    dry_run: bool = False
    """Resolve everything, print what the run would be, and stop before anything is allocated or written."""

    def __post_init__(self) -> None:
        """Nothing: a recipe may need the command line to make sense, so only the Config of both is checked."""


@dataclass(frozen=True)
class EvalOptions:
    data: tuple[str, ...] = ()
    """Problems: .json, .jsonl, .parquet files or hub data sets; paper = AIME24, AIME25, AMC, MATH500 from the hub."""
    cap: int = 16384
    """Longest response, tokens."""
    samples: int = 64
    """Responses to each problem."""
    temperature: float = 0.6
    """Sampling temperature; 0 = greedy."""
    problems: int = 0
    """Only the first so many problems of each file; 0 = all."""
    prompt_key: str = ""
    """Column of the problem; empty = recognised."""
    answer_key: str = ""
    """Column of the answer; empty = recognised."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """Chat template or plain text; auto = chat where there is a template."""
    instruction: str = "Let's think step by step and output the final answer within \\boxed{}."
    """Text added to every problem that does not hold it already."""
    max_prompt_tokens: int = 1024
    """Longer prompts are left out and counted."""
    reward: str = "math"
    """math, exact, or module:function."""
    think: bool = True
    """Grade only the text after </think>."""
    reward_workers: int = 4
    """Killable processes that grade."""
    reward_timeout_s: float = 10.0
    """Seconds after which an answer that is still being graded scores 0."""
    rollout: Literal["auto", "local", "vllm"] = "auto"
    """Engine: local = embedded; vllm = vLLM here, or behind rollout_servers; auto = vllm where it runs, else local."""
    rollout_servers: tuple[str, ...] = ()
    """Addresses of `vllm serve` processes; they need not hold the model's weights, they are sent."""
    rollout_memory: float = 0.85
    """Share of the GPU's memory for vLLM."""
    rollout_sync_dir: str = ""
    """Folder that this machine and the servers see, for the weights."""
    rollout_timeout_s: float = 120.0
    """Seconds without a new token after which a server counts as hanging."""
    rollout_tokens: int | Literal["auto"] = "auto"
    """Room for keys and values in the embedded engine, in tokens."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    seed: int = 0
    """Seed of sampling."""
    base: str = ""
    """Result file (--out) of the base model; adds changes and the efficiency score."""
    out: str = ""
    """Write the figures to this JSON file."""

    def __post_init__(self) -> None:
        for name in ("cap", "samples", "max_prompt_tokens", "reward_workers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("temperature", "problems", "seed"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        check_rollout(self)


def train_command(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        if "--help" in arguments or "-h" in arguments:
            parse(TrainOptions, ["--help"], prog="siri train RECIPE")
        raise InputError(f"siri train needs a recipe: {', '.join(recipe_names())}, or a .toml file")
    recipe = arguments[0]
    load_recipe(recipe)  # an unknown recipe is named before anything else
    options = resolve(recipe, TrainOptions, arguments[1:], prog=f"siri train {recipe}")
    name = Path(recipe).stem if recipe.endswith(".toml") else recipe
    config = Config(**{field.name: getattr(options, field.name) for field in fields(Config)})
    for key in ("model", "data"):
        if not getattr(config, key):
            raise InputError(f"{key} is not set; give --{key}")
    from siri.report.paper import expand
    from siri.runtime.ranks import leave_ranks, recorded
    from siri.train.loop import train

    resume = "auto" if options.auto_resume else "must" if options.resume else "never"
    run_dir = Path(options.run_dir or f"runs/{name}")
    config = replace(config, eval_data=expand(config.eval_data))
    if options.dry_run:
        from siri.commands.dry_run import dry_run

        return dry_run(config, run_dir, recipe=name, resume=resume)
    code = recorded(lambda: train(config, run_dir, recipe=name, resume=resume, quiet=options.quiet))
    leave_ranks()
    return code


def eval_command(arguments: list[str]) -> int:
    if arguments and arguments[0] in ("--help", "-h"):
        parse(EvalOptions, ["--help"], prog="siri eval MODEL")
    if not arguments or arguments[0].startswith("-"):
        raise InputError("siri eval needs a model: siri eval MODEL --data FILE ...")
    options = parse(EvalOptions, arguments[1:], prog="siri eval MODEL")
    if not options.data:
        raise InputError("siri eval needs problems; give --data FILE ..., or --data paper for the paper's four sets")
    from siri.report.paper import expand
    from siri.train.evaluate import run_evaluation

    run_evaluation(arguments[0], replace(options, data=expand(options.data)))
    return 0


def plan_command(arguments: list[str]) -> int:
    from siri.planning.tables import PlanOptions, run_plan

    if arguments and arguments[0] in ("--help", "-h"):
        parse(PlanOptions, ["--help"], prog="siri plan RECIPE")
    if not arguments or arguments[0].startswith("-"):
        raise InputError(f"siri plan needs a recipe: {', '.join(recipe_names())}, or a .toml file")
    return run_plan(arguments[0], arguments[1:])


def report_command(arguments: list[str]) -> int:
    if "--paper" in arguments:
        return _paper_command([argument for argument in arguments if argument != "--paper"])
    (run,) = _positional(arguments, "siri report RUN")
    from siri.report.html import write_report

    print(write_report(Path(run)))
    return 0


def _paper_command(arguments: list[str]) -> int:
    from siri.report.paper import PaperOptions, print_paper

    files = [argument for argument in arguments if argument.endswith(".json")]
    options = parse(PaperOptions, [one for one in arguments if one not in files], prog="siri report --paper")
    if not files:
        raise InputError("siri report --paper needs result files of siri eval --out, the base's with base in its name")
    print_paper(files, options)
    return 0


def study_command(arguments: list[str]) -> int:
    from siri.study.report import StudyOptions, run_study

    if arguments and arguments[0] in ("--help", "-h"):
        parse(StudyOptions, ["--help"], prog="siri study STUDY.toml")
    if not arguments or arguments[0].startswith("-"):
        raise InputError("siri study needs a study: siri study STUDY.toml")
    return run_study(arguments[0], parse(StudyOptions, arguments[1:], prog="siri study STUDY.toml"))


def compare_command(arguments: list[str]) -> int:
    from siri.study.report import CompareOptions, run_compare

    if arguments and arguments[0] in ("--help", "-h"):
        parse(CompareOptions, ["--help"], prog="siri compare RUN RUN ...")
    count = next((i for i, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    if count < 2:
        raise InputError("siri compare needs two runs at least: siri compare RUN RUN ...")
    return run_compare(arguments[:count], parse(CompareOptions, arguments[count:], prog="siri compare RUN RUN ..."))


def export_command(arguments: list[str]) -> int:
    source, target = _positional(arguments, "siri export CHECKPOINT FOLDER")
    from siri.store.checkpoint import export

    print(export(Path(source), Path(target)))
    return 0


def replay_command(arguments: list[str]) -> int:
    (bundle,) = _positional(arguments, "siri replay BUNDLE")
    from siri.commands.replay import run_replay

    return run_replay(Path(bundle))


def bench_command(arguments: list[str]) -> int:
    if arguments[:1] == ["calibrate"]:
        from siri.commands.calibrate import CalibrateOptions, run_calibrate

        if arguments[1:] and arguments[1] in ("--help", "-h"):
            parse(CalibrateOptions, ["--help"], prog="siri bench calibrate RECIPE")
        if not arguments[1:] or arguments[1].startswith("-"):
            raise InputError(f"siri bench calibrate needs a recipe: {', '.join(recipe_names())}, or a .toml file")
        return run_calibrate(arguments[1:])
    from siri.commands.bench import BenchOptions, run_bench

    return run_bench(parse(BenchOptions, arguments, prog="siri bench"))


def doctor_command(arguments: list[str]) -> int:
    from siri.commands.doctor import collect, run_doctor

    if arguments == ["--json"]:
        print(json.dumps(collect(), indent=1))
        return 0
    _positional(arguments, "siri doctor")
    return run_doctor()


def _positional(arguments: list[str], usage: str) -> list[str]:
    if "--help" in arguments or "-h" in arguments:
        print(next(line.strip() for line in HELP.splitlines() if line.strip().startswith(usage)))
        raise SystemExit(0)
    if len(arguments) != len(usage.split()) - 2 or any(argument.startswith("-") for argument in arguments):
        raise InputError(f"usage: {usage}")
    return arguments


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train_command,
    "eval": eval_command,
    "plan": plan_command,
    "report": report_command,
    "study": study_command,
    "compare": compare_command,
    "export": export_command,
    "replay": replay_command,
    "bench": bench_command,
    "doctor": doctor_command,
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 done, 2 bad input (one line on stderr), 75 stopped by a signal with the
    state saved; 130 and 141, as in shells, where Ctrl-C or the closed end of a pipe cut it short."""
    try:
        try:
            code = _run(sys.argv[1:] if arguments is None else arguments)
        except SystemExit as stop:  # after help
            code = int(stop.code or 0)
        sys.stdout.flush()
        return code
    except InputError as error:
        rank, who = os.environ.get("RANK", "0"), "siri"
        if rank != "0":
            # under torchrun the ranks mostly fail alike: rank 0 says it, and torchrun ends the others. Whoever is not
            # ended (or is the first to wake, on another node) has a fault that rank 0 does not know of
            time.sleep(ALIKE_S + int(os.environ.get("LOCAL_RANK", rank)))
            who = f"siri (rank {rank})"
        print(f"{who}: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # siri train --help | head; what is left in the buffer must not be tried again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a disk may fill wherever something is written
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        way_out = "make room or make the folder writable, then give the same command again (a run with --resume)"
        print(f"siri: {error.filename or 'a file'}: {error.strerror}; {way_out}", file=sys.stderr, flush=True)
        return 2


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(HELP.format(recipes=", ".join(recipe_names())), end="")
        return 0
    if arguments[0] == "--version":
        from siri import __version__

        print(__version__)
        return 0
    if arguments[0] not in COMMANDS:
        raise InputError(f"unknown command {arguments[0]!r}{nearest(arguments[0], list(COMMANDS))}; see siri --help")
    return COMMANDS[arguments[0]](arguments[1:])
