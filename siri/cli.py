"""The commands of siri, as a table, and what a shell sees of them. Only what a command needs is imported, so that help
is instant."""

import errno
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from siri.config.parse import HELP, nearest, parse
from siri.config.recipe import RecipeOptions, recipe_names, resolve
from siri.config.settings import Declared, declared
from siri.errors import InputError
from siri.runtime.heap import lasting
from siri.runtime.threads import wait_passively
from siri.text import printable, tolerant_streams

ALIKE_S = 20
"""Seconds that another rank waits for rank 0 to say what is wrong."""


@dataclass(frozen=True)
class Command:
    """One command: what `siri --help` says of it, and where it is."""

    arguments: str
    """What it takes by position, in the user's words."""
    flags: str
    """The options that `siri --help` shows."""
    summary: str
    module: str
    options: str
    """The dataclass of its arguments and options, in the module."""
    function: str
    """Takes the options and returns the exit code."""
    needs: str = ""
    """What is missing where an argument is, if its name does not say it."""

    def load(self) -> tuple[type, Callable[[Any], int]]:
        if self.module in sys.modules:
            module = sys.modules[self.module]
        else:
            with lasting():
                module = import_module(self.module)
        return getattr(module, self.options), getattr(module, self.function)


A_RECIPE = "a recipe: {recipes}, or a .toml file"
COMMANDS = {
    "train": Command(
        "RECIPE",
        "[--KEY VALUE ...] [--run-dir DIR] [--resume]",
        "train; siri train --help lists the keys",
        "siri.commands.train",
        "TrainOptions",
        "run_train",
        needs=A_RECIPE,
    ),
    "branch": Command(
        "RUN@STEP",
        "[--run-dir DIR] [--KEY VALUE ...]",
        "train on from a checkpoint of another run",
        "siri.commands.train",
        "BranchOptions",
        "run_train",
        needs="a checkpoint: siri branch RUN@STEP, as in siri branch runs/demo@80",
    ),
    "eval": Command(
        "MODEL ...",
        "--data FILE ... [--cap N] [--samples K]",
        "accuracy (avg@k), pass@k, maj@k, tokens of models",
        "siri.commands.evaluate",
        "EvalOptions",
        "run_evaluation",
        needs="a model: siri eval MODEL --data FILE ...",
    ),
    "plan": Command(
        "RECIPE",
        "[--gpus N] [--gpu h100] [--KEY VALUE ...]",
        "GPU memory and GPU-hours that a run needs",
        "siri.commands.plan",
        "PlanOptions",
        "run_plan",
        needs=A_RECIPE,
    ),
    "report": Command(
        "RUN",
        "[--beside RUN] [--live [--port N]]",
        "draw the report of a run, or follow it in a browser",
        "siri.commands.report",
        "ReportOptions",
        "run_report",
    ),
    "look": Command(
        "RUN",
        "[--step N] [--wrong] [--cut] [--longest]",
        "responses of a run, to be read",
        "siri.commands.look",
        "LookOptions",
        "run_look",
        needs="a run folder: siri look RUN",
    ),
    "report --paper": Command(
        "BASE.json LOW.json ...",
        "",
        "results of siri eval beside the paper's table",
        "siri.commands.report",
        "PaperOptions",
        "run_paper",
        needs="result files of siri eval --out, the base's with base in its name",
    ),
    "study": Command(
        "STUDY.toml",
        "[--jobs N] [--limit N] [--draw]",
        "arms x seeds, resumable; their table and pictures",
        "siri.commands.study",
        "StudyOptions",
        "run_study",
        needs="a study: siri study STUDY.toml",
    ),
    "compare": Command(
        "RUN RUN ...",
        "[--out DIR]",
        "the same for runs at hand",
        "siri.commands.compare",
        "CompareOptions",
        "run_compare",
        needs="two runs at least: siri compare RUN RUN ...",
    ),
    "export": Command(
        "CHECKPOINT FOLDER",
        "[--merge | --adapter] [--dtype T] [--push REPO]",
        "a model folder with its card, or an adapter",
        "siri.commands.export",
        "ExportOptions",
        "run_export",
    ),
    "replay": Command(
        "BUNDLE",
        "",
        "run the update of a post-mortem again",
        "siri.commands.replay",
        "ReplayOptions",
        "run_replay",
    ),
    "bench": Command(
        "",
        "[--compare A.json B.json] [--plot A.json]",
        "benchmark results side by side, or drawn",
        "siri.commands.bench",
        "BenchOptions",
        "run_bench",
    ),
    "bench calibrate": Command(
        "RECIPE",
        "[--out FILE]",
        "cost of attention here, for the packing plan",
        "siri.commands.calibrate",
        "CalibrateOptions",
        "run_calibrate",
        needs=A_RECIPE,
    ),
    "completion": Command(
        "SHELL",
        "",
        "completion for bash, zsh or fish, to standard output",
        "siri.commands.completion",
        "CompletionOptions",
        "run_completion",
        needs="a shell: bash, zsh, fish",
    ),
    "doctor": Command(
        "",
        "",
        "what this machine has, and what is missing",
        "siri.commands.doctor",
        "DoctorOptions",
        "run_doctor",
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 done, 2 bad input (one line on stderr), 75 stopped by a signal with the
    state saved; 130 and 141, as in shells, where Ctrl-C or the closed end of a pipe cut it short."""
    tolerant_streams()
    wait_passively()  # here, because commands import torch
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
        culprit = printable(error.filename or "a file")
        print(f"siri: {culprit}: {error.strerror}; {way_out}", file=sys.stderr, flush=True)
        return 2


def overview() -> str:
    """What `siri --help` prints."""
    calls = {
        " ".join(filter(None, ("siri", name, command.arguments, command.flags))): command.summary
        for name, command in COMMANDS.items()
    }
    width = max(map(len, calls))
    lines = [f"  {call:{width}}  {summary}" for call, summary in calls.items()]
    title = "siri: reinforcement learning with an oscillating length cap (arXiv 2509.25176)"
    return "\n".join([title, "", *lines, "", f"recipes: {', '.join(recipe_names())}"]) + "\n"


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in (*HELP, "help"):
        print(overview(), end="")
        return 0
    if arguments[0] == "--version":
        from siri import __version__

        print(__version__)
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise InputError(f"unknown command {name!r}{nearest(name, list(COMMANDS))}; see siri --help")
    for place, word in enumerate(rest):
        if f"{name} {word}" in COMMANDS and (place == 0 or word.startswith("--")):
            name, rest = f"{name} {word}", rest[:place] + rest[place + 1 :]
            break
    options, function = COMMANDS[name].load()
    return function(read_options(name, options, rest))


def read_options(name: str, options: type, arguments: list[str]) -> Any:
    """The options of a command from what stands behind its name; SystemExit after help."""
    command = COMMANDS[name]
    usage = f"siri {name} {command.arguments}".rstrip()
    given, rest = take_positional(options, arguments)
    complete = all(
        len(words) >= (each.meaning.least or 1) for each, words in zip(_positional(options), given, strict=True)
    )
    if not complete and set(HELP) & set(arguments):
        parse(options, ["--help"], prog=usage)
    if not complete and command.needs:
        raise InputError(f"siri {name} needs {command.needs.format(recipes=', '.join(recipe_names()))}")
    keyless = len(_positional(options)) == len(list(declared(options)))
    if not complete or (keyless and rest and not set(HELP) & set(rest)):
        raise InputError(f"usage: {usage}")
    if issubclass(options, RecipeOptions):
        (recipe,) = given[0]
        options.check_recipe(recipe)
        read = resolve(recipe, options, rest, prog=f"siri {name} {recipe}")
    else:
        default = options.defaults(given, rest) if hasattr(options, "defaults") else None
        read = parse(options, rest, default=default, prog=usage)
    values = {
        each.name: tuple(words) if isinstance(each.default, tuple) else words[0]
        for each, words in zip(_positional(options), given, strict=True)
    }
    return replace(read, **values)


def take_positional(options: type, arguments: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """The words of each positional setting, and what is left: words before the first --KEY, in order, or those with the
    suffix that the setting asks for."""
    given, rest = [], list(arguments)
    for each in _positional(options):
        if each.meaning.suffix:
            words = [word for word in rest if word.endswith(each.meaning.suffix)]
            rest = [word for word in rest if word not in words]
        else:
            leading = next((place for place, word in enumerate(rest) if word.startswith("-")), len(rest))
            count = leading if isinstance(each.default, tuple) else min(leading, 1)
            words, rest = rest[:count], rest[count:]
        given.append(words)
    return given, rest


def _positional(options: type) -> list[Declared]:
    return [each for each in declared(options) if each.meaning.positional]
