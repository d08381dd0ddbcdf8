"""leaving_worker.py FOLDER ROUNDS RANKS: start ranks and let them leave in every way; prints how often each ended how.

The ranks are forked from this process, which has imported all that they need, and end as the `siri` command does:
main's exit code, and then the interpreter's own end. gloo's threads run when hardly anybody else wants the processor,
so that they are still busy with the last collective when their rank leaves it, as they may be on any busy machine.
"""

import atexit
import contextlib
import gc
import json
import os
import signal
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist

from siri import cli
from siri.errors import InputError
from siri.model.fsdp import shard
from siri.runtime.ranks import join_ranks, leave_ranks
from siri.runtime.signals import Stop
from siri.store.saver import Saver
from tests.support.tiny import tiny_policy

WAYS = {"end": 0, "stop": 75, "input": 2, "interrupt": 130, "error": 1, "saving": 1, "early": 2, "alone": 1}
"""Ways out and their exit codes."""
PATIENCE_S = 420
"""For one round, on a machine that others use."""


def threads() -> dict[int, str]:
    """This process's threads and their names, without what ends while they are read, as a saver's may."""
    names = {}
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            names[int(task)] = Path(f"/proc/self/task/{task}/comm").read_text().strip()
    return names


def tell() -> None:
    """The last that the interpreter does before it ends."""
    if any("gloo" in name for name in threads().values()):
        print(f"left behind: {threads()}", file=sys.stderr, flush=True)


def command(arguments: list[str]) -> int:
    """A run in small: join, shard, save, say goodbye and leave in one of the ways."""
    way, folder = arguments
    if way == "early":
        raise InputError("refused before anybody joined")
    ranks, _ = join_ranks(torch.device("cpu"))
    if way == "alone" and ranks.rank == 1:  # the others learn of it by their closed connections
        raise RuntimeError("one rank fails by itself")
    with Stop() as stop:
        policy = tiny_policy()
        shard(policy.model, ranks, compute_dtype=torch.float32)
        optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-3)
        policy.call(lambda model: None)
        saver = Saver(Path(folder), keep=1, ranks=ranks)
        saver.save(1, policy, optimizer, {"train_tokens": 0})
        if way == "saving":
            raise RuntimeError("while a checkpoint is written")
        saver.wait()
        if way == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        for task, name in threads().items():
            if "gloo_run" in name:
                os.setpriority(os.PRIO_PROCESS, task, 19)
        stopped = any(ranks.gather(bool(stop)))
    if way == "input":
        raise InputError("refused by all ranks")
    if way == "interrupt":
        raise KeyboardInterrupt
    if way == "error":
        raise RuntimeError("an exception")
    del policy, optimizer, saver  # as train() does by returning
    leave_ranks()
    return 75 if stopped else 0


def rank_main(way: str, folder: Path, rank: int, ranks: int, port: int) -> None:
    log = os.open(folder / f"rank{rank}.log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    cli.ALIKE_S = 0
    cli._run = lambda arguments: command(arguments[1:])
    sys.exit(cli.main(["leave", way, str(folder / "checkpoints")]))


def start_store() -> tuple[int, int]:
    """A process that holds the store where the ranks meet, as torchrun's agent does, and its port. Its threads must not
    be inherited by the ranks."""
    reading, writing = os.pipe()
    agent = os.fork()
    if not agent:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(writing, str(store.port).encode())
        signal.pause()
    os.close(writing)
    port = int(os.read(reading, 16))
    os.close(reading)
    return agent, port


def one_round(way: str, folder: Path, ranks: int) -> tuple[list[int], str]:
    """Exit codes of the ranks, and what they said."""
    folder.mkdir()
    agent, port = start_store()
    running = {}
    for rank in range(ranks):
        pid = os.fork()
        if not pid:
            rank_main(way, folder, rank, ranks, port)
        running[pid] = rank
    codes, deadline = [0] * ranks, time.monotonic() + PATIENCE_S
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in running:
            codes[running.pop(pid)] = os.waitstatus_to_exitcode(status)
        elif time.monotonic() > deadline:
            for pid in running:
                os.kill(pid, signal.SIGKILL)
            deadline += PATIENCE_S
        else:
            time.sleep(0.01)
    os.kill(agent, signal.SIGKILL)
    os.waitpid(agent, 0)
    return codes, "".join((folder / f"rank{rank}.log").read_text() for rank in range(ranks))


if __name__ == "__main__":
    atexit.register(tell)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tiny_policy()
    gc.freeze()  # what was imported is no garbage: to look for some in it takes a second at each rank's end
    place, rounds, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    codes_by_way: dict[str, Counter] = {way: Counter() for way in WAYS}
    said = []
    for number in range(rounds):
        way = list(WAYS)[number % len(WAYS)]
        began = time.monotonic()
        codes, text = one_round(way, place / str(number), size)
        print(f"{way} {codes} {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
        codes_by_way[way].update(map(str, codes))
        if "left behind" in text or codes != [WAYS[way]] * size:
            said.append(f"{way} {codes}: {text[-2000:]}")
    print(json.dumps({"codes": codes_by_way, "said": said}))
