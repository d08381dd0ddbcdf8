"""Vocabulary shards and FSDP2 over two gloo processes (see distributed_worker.py)."""

import subprocess
import sys
from pathlib import Path


def test_two_processes(tmp_path):
    worker = Path(__file__).with_name("distributed_worker.py")
    command = [sys.executable, str(worker)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=200)[0].decode() for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(o[-3000:] for o in outputs)
