"""Two nodes on one machine, each with a network, a host name and a hosts file of its own: they meet by name over a link
between network namespaces, one of them is lost, and both together go on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from siri.store.checkpoint import newest_good, steps_done

NODE = Path(__file__).parents[2] / "launch" / "node.sh"
SETTINGS = ["demo", "--eval-problems", "8", "--prompts-per-step", "4", "--save-every", "1"]
ADDRESSES = ("10.213.77.1", "10.213.77.2")
INSIDE = 'mount --bind "$1" /etc/hosts && hostname "$2" && shift 2 && exec "$@"'
"""In a namespace for mounts and one for the host name, which end with the process."""


def ip(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["ip", *words], capture_output=True, text=True)


class Nodes:
    """Two network namespaces that are linked."""

    def __init__(self, folder: Path) -> None:
        self.names = [f"siri-{os.getpid()}-{place}" for place in range(2)]
        self.ends = [f"siri{os.getpid() % 10**6}-{place}" for place in range(2)]
        self.hosts = folder / "hosts"
        self.hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{at} node{i}\n" for i, at in enumerate(ADDRESSES)))
        self.running: list[subprocess.Popen] = []

    def set_up(self) -> str:
        """Why it cannot be done; "" = it was."""
        steps = [("netns", "add", name) for name in self.names]
        steps += [("link", "add", self.ends[0], "netns", self.names[0], "type", "veth",
                   "peer", "name", self.ends[1], "netns", self.names[1])]  # fmt: skip
        for name, end, address in zip(self.names, self.ends, ADDRESSES, strict=True):
            steps += [("-n", name, "address", "add", f"{address}/24", "dev", end)]
            steps += [("-n", name, "link", "set", device, "up") for device in ("lo", end)]
        for step in steps:
            done = ip(*step)
            if done.returncode:
                return f"ip {' '.join(step)}: {done.stderr.strip()}"
        command = self._inside(0, "true")
        done = subprocess.run(command, capture_output=True, text=True)
        return done.stderr.strip() if done.returncode else ""

    def _inside(self, place: int, *command: str) -> list[str]:
        unshared = ["ip", "netns", "exec", self.names[place], "unshare", "--mount", "--uts"]
        return [*unshared, "sh", "-c", INSIDE, "sh", str(self.hosts), f"node{place}", *command]

    def start(self, run: Path, *options: str) -> list[subprocess.Popen]:
        environment = {**os.environ, "NODES": "2", "HEAD": "node0", "GPUS": "1", "OMP_NUM_THREADS": "1"}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        command = [str(NODE), *SETTINGS, "--run-dir", str(run), *options, "--auto-resume"]
        nodes = [
            subprocess.Popen(
                self._inside(place, *command),
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            for place in range(2)
        ]
        self.running += nodes
        return nodes

    def lose(self, place: int) -> None:
        """All that runs on a node is gone at once."""
        for pid in ip("netns", "pids", self.names[place]).stdout.split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue

    def tear_down(self) -> None:
        for place, name in enumerate(self.names):
            self.lose(place)
            ip("netns", "delete", name)  # and the link with it
        for process in self.running:
            process.wait()


@pytest.fixture
def nodes(tmp_path):
    missing = [tool for tool in ("ip", "unshare", "mount", "hostname") if shutil.which(tool) is None]
    if missing or sys.platform != "linux":
        pytest.skip(f"no network namespaces without {', '.join(missing) or 'Linux'}")
    both = Nodes(tmp_path)
    try:
        if fault := both.set_up():
            pytest.skip(f"network namespaces cannot be made here, which takes root: {fault}")
        yield both
    finally:
        both.tear_down()


def rows(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_two_nodes_train_lose_one_and_go_on_together(nodes, tmp_path):
    run = tmp_path / "run"
    first = nodes.start(run, "--steps", "500")
    deadline = time.monotonic() + 900
    while len(rows(run)) < 3:
        assert all(node.poll() is None for node in first), [node.communicate()[1][-1500:] for node in first]
        assert time.monotonic() < deadline, "no third step in a quarter of an hour"
        time.sleep(0.5)
    nodes.lose(1)
    told = [node.communicate(timeout=900) for node in first]
    assert first[0].returncode not in (0, None, 75) and first[1].returncode == -signal.SIGKILL
    for place, (_, words) in enumerate(told):
        assert f"gloo over {nodes.ends[place]}, NCCL over {nodes.ends[place]}" in words, (
            "each by its own end of the link"
        )
    before = rows(run)
    saved, damaged = newest_good(run / "checkpoints")
    assert saved is not None and not damaged
    done = steps_done(saved)
    assert done >= 1 and [row["step"] for row in before] == list(range(len(before)))

    again = nodes.start(run, "--steps", str(done + 2))
    told = [node.communicate(timeout=900) for node in again]
    assert [node.returncode for node in again] == [0, 0], [words[-1500:] for _, words in told]
    after = rows(run)
    assert [row["step"] for row in after] == list(range(done + 2)) and after[:done] == before[:done]
    config = json.loads((run / "config.json").read_text())
    assert config["steps"] == done + 2
    saved, damaged = newest_good(run / "checkpoints")
    assert saved is not None and not damaged and steps_done(saved) == done + 2
    shards = {path.name for path in (saved / "weights").iterdir()}
    assert sum("shard" in name for name in shards) == 2, "each node has written what it holds"
