"""Two nodes on one machine: the launch script, its rendezvous, and what happens when a rank dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

NODE = Path(__file__).parent.parent / "launch" / "node.sh"


def start_nodes(run: Path, *options: str) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "NODES": "2",
        "HEAD": "127.0.0.1",
        "PORT": str(port),
        "GPUS": "1",
        "OMP_NUM_THREADS": "1",
    }
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = [str(NODE), "demo", "--run-dir", str(run), "--eval-problems", "8", "--prompts-per-step", "4", *options]
    return [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        for _ in range(2)
    ]


def workers(node: subprocess.Popen) -> list[int]:
    """The processes that train on a node."""
    found = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(node.pid)], capture_output=True, text=True)
    return [int(line.split()[0]) for line in found.stdout.splitlines() if "siri train" in line or "-m siri" in line]


@pytest.fixture
def nodes():
    running: list[subprocess.Popen] = []
    yield running
    for node in running:
        if node.poll() is None:
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()


def test_two_nodes_train_and_a_dead_rank_ends_both(tmp_path, nodes):
    run = tmp_path / "run"
    nodes += start_nodes(run, "--steps", "500", "--save-every", "1")
    deadline = time.monotonic() + 240
    while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text().splitlines()) < 2:
        assert all(node.poll() is None for node in nodes), [node.communicate()[1][-1500:] for node in nodes]
        assert time.monotonic() < deadline, "no second step in four minutes"
        time.sleep(0.5)
    victim = workers(nodes[1])[0]
    os.kill(victim, signal.SIGKILL)
    died = time.monotonic()
    outputs = [node.communicate(timeout=120) for node in nodes]
    assert time.monotonic() - died < 60, "all ranks leave within a minute"
    assert all(node.returncode not in (0, None) for node in nodes)
    assert "Signal 9 (SIGKILL)" in outputs[1][1] and f"pid: {victim}" in outputs[1][1].replace(
        "pid        :", "pid:"
    ).replace("  ", " ")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(len(rows)))
    assert any((run / "checkpoints").glob("step_*")), "what was saved before is still there"
