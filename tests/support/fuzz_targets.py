"""What reads files that others wrote, each as a function of bytes: only InputError, in one line, may come out.

`python -m tests.support.fuzz_targets NAME SECONDS` runs one of them under the coverage-guided fuzzer (see
`make torture`).
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from unittest.mock import patch

from siri.errors import InputError

EVIL = ("pickle.find_class", "os.system", "os.exec", "os.fork", "subprocess.Popen", "socket.connect", "os.posix_spawn")
done: list[str] = []
"""What the loaders did that no loader may do."""


def watch() -> None:
    """From now on note whatever executes data."""
    sys.addaudithook(lambda event, arguments: done.append(event) if event in EVIL else None)


@cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


def _only_input_errors(function: Callable[[], object]) -> None:
    try:
        function()
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 2100, error
    assert not done, done


def _file(name: str, data: bytes) -> Path:
    path = folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def problems(data: bytes, suffix: str) -> None:
    """Problems from a file, and their prompts as tokens."""
    from siri.data.problems import load_problems
    from siri.data.prompts import render_prompts

    def load() -> None:
        problem_set = load_problems(_file(f"problems.{suffix}", data))
        render_prompts(problem_set.problems, _tokenizer(), max_prompt_tokens=10**6)

    _only_input_errors(load)


@cache
def _tokenizer():
    from tests.support.tiny import bpe_tokenizer

    return bpe_tokenizer(["the answer is not known </think>"])


def recipe(data: bytes) -> None:
    """A recipe, resolved to a configuration."""
    from siri.commands.train import TrainOptions
    from siri.config.recipe import resolve

    def load() -> None:
        options = resolve(str(_file("recipe.toml", data)), TrainOptions, ["--model", "m", "--data", "d"])
        json.dumps(options.config().to_json(), allow_nan=False)

    _only_input_errors(load)


def run_folder(data: bytes) -> None:
    """config.json, metrics.jsonl, eval.jsonl of a run that is resumed, and the report's reading of them."""
    from siri.config import Config
    from siri.store.jsonl import read_run
    from siri.store.run_folder import RunFolder

    which = ("config.json", "metrics.jsonl", "eval.jsonl")[len(data) % 3]
    run = folder() / "run"
    shutil.rmtree(run, ignore_errors=True)
    config = Config(model="m", data="d")
    _file("run/config.json", json.dumps(config.to_json()).encode())
    _file("run/metrics.jsonl", b'{"step": 0}\n')
    _file("run/eval.jsonl", b'{"step": 0}\n')
    _file(f"run/{which}", data)

    def load() -> None:
        held = RunFolder(run, config, "demo", "must")
        held.finished()
        held.create()

    # fsync is most of the time, and finds nothing; git, which says where the run was started, is no work of the data's
    with patch.object(os, "fsync"), patch("siri.store.run_folder.origin", dict):
        _only_input_errors(load)
    _only_input_errors(lambda: read_run(run))


def checkpoint(data: bytes) -> None:
    """A checkpoint's manifest, state or config: what is wrong is said in words."""
    from siri.store.checkpoint import MANIFEST, newest_good, verify

    steps = folder() / "checkpoints"
    shutil.rmtree(steps, ignore_errors=True)
    which = (MANIFEST, "state.json", "config.json")[len(data) % 3]
    _file("checkpoints/step_000001/config.json", b"{}")
    _file("checkpoints/step_000001/state.json", b'{"steps_done": 1, "train_tokens": 0}')
    _file(f"checkpoints/step_000001/{which}", data)
    assert isinstance(verify(steps / "step_000001"), str)
    _only_input_errors(lambda: newest_good(steps))


TARGETS: dict[str, Callable[[bytes], None]] = {
    "json": lambda data: problems(data, "json"),
    "jsonl": lambda data: problems(data, "jsonl"),
    "parquet": lambda data: problems(data, "parquet"),
    "recipe": recipe,
    "run_folder": run_folder,
    "checkpoint": checkpoint,
}


def seeds() -> dict[str, list[bytes]]:
    """Good files to start from."""
    import pyarrow
    import pyarrow.parquet

    from siri.config import Config

    rows = [{"problem": "1+1 =", "answer": "2"}, {"problem": "2+2 =", "answer": "4"}]
    verl = [{"prompt": [{"role": "user", "content": "hi"}], "reward_model": {"ground_truth": ["1/2", "0.5"]}}]
    table = folder() / "seed.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    lines = [b"\n".join(json.dumps(row).encode() for row in some) for some in (rows, verl)]
    return {
        "json": [json.dumps(rows).encode(), json.dumps({"data": verl}).encode()],
        "jsonl": lines,
        "parquet": [table.read_bytes()],
        "recipe": [b'base = "demo"\nl_max = 64\nlr = 1e-3\nstages = [[0, 8192], [320, 16384]]\neval_data = ["a"]\n'],
        "run_folder": [json.dumps(Config(model="m", data="d").to_json()).encode(), b'{"step": 3, "loss": null}\n'],
        "checkpoint": [b'{"state.json": {"bytes": 38, "sha256": "00"}}', b'{"steps_done": 1}', b"{}"],
    }


def main(name: str, seconds: int) -> None:
    import atheris

    with atheris.instrument_imports(include=["siri", "tomllib", "json"]):
        import siri.cli
        import siri.data.problems
        import siri.store.checkpoint
        import siri.store.run_folder  # noqa: F401

    corpus = folder() / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds()[name]):
        (corpus / str(number)).write_bytes(seed)
    TARGETS[name](seeds()[name][0])  # whatever is imported late
    watch()
    print(f"fuzzing {name} for {seconds} s", time.strftime("%H:%M:%S"), flush=True)
    limits = [f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=8000", f"-artifact_prefix={folder()}/"]
    atheris.Setup([sys.argv[0], *limits, str(corpus)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
