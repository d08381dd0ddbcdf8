"""Two nodes on one machine: the launch script, its rendezvous, and what happens when a rank dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from siri import cli
from siri.store.checkpoint import newest_good, steps_done

SETTINGS = ["demo", "--eval-problems", "8", "--prompts-per-step", "4", "--save-every", "1"]
NODE = Path(__file__).parents[2] / "launch" / "node.sh"


def start_nodes(run: Path, meeting: dist.TCPStore, *options: str) -> list[subprocess.Popen]:
    environment = {
        **os.environ,
        "NODES": "2",
        "HEAD": "127.0.0.1",
        "PORT": str(meeting.port),
        "GPUS": "1",
        "OMP_NUM_THREADS": "1",
    }
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = [str(NODE), *SETTINGS, "--run-dir", str(run), *options]
    return [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        for _ in range(2)
    ]


def workers(node: subprocess.Popen) -> list[int]:
    """The processes that train on a node: torchrun's, which is the script's."""
    torchruns = subprocess.run(["ps", "-o", "pid=", "--ppid", str(node.pid)], capture_output=True, text=True)
    parents = ",".join(torchruns.stdout.split())
    children = subprocess.run(["ps", "-ww", "-o", "pid=,args=", "--ppid", parents], capture_output=True, text=True)
    return [int(line.split()[0]) for line in children.stdout.splitlines() if "siri train" in line or "-m siri" in line]


@pytest.fixture
def nodes():
    running: list[subprocess.Popen] = []
    yield running
    for node in running:
        if node.poll() is None:
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()


def test_two_nodes_train_a_dead_rank_ends_both_and_one_rank_alone_goes_on(tmp_path, nodes):
    run = tmp_path / "run"
    # torchrun meets at a store that is there already, so no other process can take the port before it does
    meeting = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    started = time.monotonic()
    nodes += start_nodes(run, meeting, "--steps", "500")
    deadline = started + 900
    while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text().splitlines()) < 2:
        assert all(node.poll() is None for node in nodes), [node.communicate()[1][-1500:] for node in nodes]
        assert time.monotonic() < deadline, "no second step in a quarter of an hour"
        time.sleep(0.5)
    victim = workers(nodes[1])[0]
    os.kill(victim, signal.SIGKILL)
    died = time.monotonic()
    outputs = [node.communicate(timeout=900) for node in nodes]
    left = time.monotonic() - died
    assert left < max(60, 2 * (died - started)), "all ranks leave within a minute, on a busy machine soon after"
    assert all(node.returncode not in (0, None) for node in nodes)
    assert "Signal 9 (SIGKILL)" in outputs[1][1] and f"pid: {victim}" in outputs[1][1].replace(
        "pid        :", "pid:"
    ).replace("  ", " ")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(len(rows)))
    saved, damaged = newest_good(run / "checkpoints")
    assert saved is not None and not damaged, "what was saved before is still there"

    steps = steps_done(saved) + 1
    arguments = ["train", *SETTINGS, "--run-dir", str(run), "--steps", str(steps), "--resume", "--quiet"]
    assert cli.main(arguments) == 0
    again = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in again] == list(range(steps)) and again[:-1] == rows[: steps - 1]


BROKEN_RANK = """
import os
if os.environ.get("RANK") == "1" and os.environ.get("TORCHELASTIC_ERROR_FILE"):
    from siri.train.learner import Learner
    whole, calls = Learner.update, []

    def update(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of luck")
        return whole(*arguments, **options)

    Learner.update = update
"""


def test_a_rank_that_raises_ends_the_job_with_its_name_and_traceback(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BROKEN_RANK)  # Python runs it at the start of every process
    paths = [str(tmp_path), str(NODE.parent.parent), str(NODE.parent.parent / "kernels")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "siri", "train"]
    run = tmp_path / "run"
    started = time.monotonic()
    process = subprocess.Popen(
        [*command, *SETTINGS, "--run-dir", str(run), "--steps", "500"], env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = started + 900
        while not (run / "metrics.jsonl").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        began = time.monotonic()  # the first step is done, the second fails
        told = process.communicate(timeout=900)[1]
        left = time.monotonic() - began
        assert left < max(60, 2 * (began - started)), "all ranks leave within a minute, on a busy machine soon after"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode not in (0, None)
    summary = told[told.index("Root Cause") :]
    assert "rank      : 1" in summary and "RuntimeError: out of luck" in summary
    assert "in train" in summary and "in learn" in summary, "the traceback leads to the place"
