"""siri, whose ranks note what they sample ahead: python -m tests.support.ahead_worker siri's arguments...

Each rank appends to RUN/../rank-N.jsonl: {"step", "places"} for each batch that it sends, and {"ready"} when
its share of a step is there, all with its "process".
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from siri.cli import main
from siri.report import view
from siri.runtime.ranks import Ranks
from siri.train.ahead import Ahead
from siri.train.batches import Batch
from tests.support.unreported import draw_nothing

FOLDER = Path(sys.argv[sys.argv.index("--run-dir") + 1]).parent


def note(ranks: Ranks, **row: Any) -> None:
    with (FOLDER / f"rank-{ranks.rank}.jsonl").open("a") as file:
        file.write(json.dumps({**row, "process": os.getpid()}) + "\n")


def send(ahead: Ahead, batch: Batch) -> None:
    note(ahead.ranks, step=batch.step, places=list(batch.prompts))
    real_send(ahead, batch)


def arrive(ranks: Ranks) -> Callable[[], bool]:
    note(ranks, ready=True)
    return real_arrive(ranks)


if __name__ == "__main__":
    real_send, real_arrive = Ahead._send, Ranks.arrive
    Ahead._send, Ranks.arrive, view.write_report = send, arrive, draw_nothing
    sys.exit(main(sys.argv[1:]))
