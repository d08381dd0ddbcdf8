"""The inside of a grading process: it imports the reward, closes its cell, and grades one answer after another.

What passes over the connection is JSON in frames of `multiprocessing.connection`. To the worker: [response, answer,
columns]. From it: {"error": text, ...}, first with "layers" (what holds it in) and "columns" (what its parameters ask
for), then with "reward" (a finite number), "undecided" and "retire" (it has nearly used up its processor time, and
wants to be replaced).
"""

import contextlib
import faulthandler
import inspect
import json
import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from types import MappingProxyType
from typing import IO, Any

from siri.errors import InputError, parse_json
from siri.rewards import BUILT_IN, Reward, resolve_reward, sandbox
from siri.rewards.answers import doubts

# Past its deadline the pool kills a worker. A worker whose pool is gone ends itself, this much later.
ORPHAN_GRACE_S = 3.0
# A worker says little; whatever is longer is not from our code.
MAX_MESSAGE_BYTES = 1 << 16
MAX_ERROR_CHARS = 500
# Processor time that a shut-in worker has for answers: it asks to be replaced after half of it.
CPU_SECONDS = 3600

COMMAND = (
    "import json, sys; path, *arguments = json.loads(sys.argv[1]); sys.path[:] = path; "
    "from siri.rewards.worker import worker_main; worker_main(*arguments)"
)
"""What a worker's interpreter runs."""


def read_message(frame: bytes, *, first: bool) -> dict[str, Any] | None:
    """A frame of a worker's, `first` = what it says when it has started; None for what our code does not write."""
    try:
        message = parse_json(frame)
    except ValueError:
        return None
    if not isinstance(message, dict) or not isinstance(message.get("error"), str):
        return None
    if message["error"]:
        return {"error": message["error"], "retire": message.get("retire") is True}
    if first:
        layers = message.get("layers")
        if not isinstance(layers, list) or not all(layer in ("memory", *sandbox.LAYERS) for layer in layers):
            return None
        columns = message.get("columns", [[], []])
        if not isinstance(columns, list) or len(columns) != 2 or not all(map(_are_names, columns)):
            return None
        return {"error": "", "layers": layers, "columns": columns}
    reward, flags = message.get("reward"), [message.get("undecided"), message.get("retire")]
    number = finite(reward)
    if not all(isinstance(flag, bool) for flag in flags) or number is None:
        return None
    return {"error": "", "reward": number, "undecided": flags[0], "retire": flags[1]}


def finite(value: Any) -> float | None:
    """A value of JSON as a double, if it is a number that one holds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    with contextlib.suppress(OverflowError):
        if math.isfinite(value):
            return float(value)
    return None


def worker_main(descriptor: int, name: str, think: bool, timeout_s: float, memory_bytes: int) -> None:
    """One worker: imports the reward and says so, then answers requests until its connection closes."""
    # A supervisor's signal to every process is the trainer's to handle, which may still want this step's rewards before
    # it saves. Not SIG_IGN: that would be inherited by programs which a reward starts.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    connection = Connection(descriptor)
    patience_s = timeout_s + ORPHAN_GRACE_S
    with contextlib.suppress(ConnectionError, EOFError), open(os.devnull, "w") as nowhere:
        try:
            reward = resolve_reward(name, think=think)
        except InputError as error:
            connection.send_bytes(json.dumps({"error": str(error)}).encode())
            return
        layers = ["memory"] if memory_bytes and sandbox.limit_memory(memory_bytes) else []
        cpu_seconds = max(CPU_SECONDS, int(4 * patience_s))
        if name == "math":
            _warm_up()
            # the kernel's own action at an alarm: it ends a worker whose pool is gone, whatever that is stuck in
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            begun = time.process_time()  # what the start took on a busy machine is not the answers'
            layers += sandbox.shut_in(math.ceil(begun) + cpu_seconds)
            alarm: Callable[[float], Any] = _alarm_of_the_kernel
        else:
            cpu_seconds, begun = 0, 0.0
            alarm = partial(_alarm_of_a_thread, nowhere)
        asked = parameters(reward) if name not in BUILT_IN else [[], []]
        connection.send_bytes(json.dumps({"error": "", "layers": layers, "columns": asked}).encode())
        while True:
            response, answer, columns = json.loads(connection.recv_bytes())
            alarm(patience_s)
            message = call(reward, response, answer, columns)
            alarm(0)
            message["retire"] = bool(cpu_seconds) and time.process_time() - begun > cpu_seconds / 2
            connection.send_bytes(json.dumps(message).encode())


def _alarm_of_the_kernel(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _alarm_of_a_thread(nowhere: IO[str], seconds: float) -> None:
    """It needs no interpreter lock, and leaves the signal to a function of the user's."""
    if seconds:
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
    else:
        faulthandler.cancel_dump_traceback_later()


def _warm_up() -> None:
    """Import mpmath and math-verify and build our grammar, so that the first answer is as fast as others, and nothing
    is left to be read in the cell."""
    for warm, gold in (
        ("\\sqrt{2+\\sqrt{3}}", "\\frac{\\sqrt{6}+\\sqrt{2}}{2}"),
        ("\\int_0^1 x dx", "\\frac{1}{2}"),
        ("\\lim_{x\\to0}\\frac{\\sin x}{x}", "1"),
    ):
        BUILT_IN["math"](f"\\boxed{{{warm}}}", gold, think=False)


def parameters(reward: Reward) -> list[list[str]]:
    """The names of the parameters beyond response and answer: those that have no default, and those that have one."""
    try:
        taken = list(inspect.signature(reward).parameters.values())
    except (TypeError, ValueError):  # of a function that is not written in Python
        return [[], []]
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    leading = sum(each.kind in (inspect.Parameter.POSITIONAL_ONLY, kinds[0]) for each in taken[:2])
    further = [each for each in taken[leading:] if each.kind in kinds]
    return [[each.name for each in further if (each.default is each.empty) == bare] for bare in (True, False)]


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def call(
    reward: Reward, response: str, answer: str, columns: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """The message about one answer, but for "retire"."""
    doubted = doubts.count
    try:
        value = float(reward(response, answer, **columns))
    except (Exception, SystemExit) as error:  # a user's function may raise anything
        text = f"{type(error).__name__}: {_text(error)}"[:MAX_ERROR_CHARS]
        return {"error": text.encode(errors="replace").decode()}
    if not math.isfinite(value):
        return {"error": f"the reward returned {value}"}
    return {"error": "", "reward": value, "undecided": doubts.count > doubted and value == 0}


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as another:  # an exception that cannot say what it is
        return f"({type(another).__name__})"
