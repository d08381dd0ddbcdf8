"""Vocabulary shards and FSDP2 over two gloo processes (see vocabulary_shards_worker.py)."""

import subprocess
import sys

import pytest
import torch
from siri_kernels import linear_grpo_loss
from siri_kernels.sharding import plan_columns

from tests.support import warm
from tests.support.kernel_cases import make_case


def test_two_processes(tmp_path):
    command = [sys.executable, "-m", "tests.support.vocabulary_shards_worker"]
    ranks = [
        warm.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=900)[0].decode() for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(o[-3000:] for o in outputs)


def test_all_ranks_count_with_the_same_columns(monkeypatch):
    """What no rank can find out alone it is told: shards of 50, 50 and 37 tokens need the whole size of 137."""
    starts, sizes = (0, 50, 100), (50, 50, 37)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda _: 3)
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda _, rank=rank: rank)
        assert plan_columns("group", starts[rank], sizes[rank], 137) == 46
        assert plan_columns("group", 50 * rank, 50, None) == 50
    assert plan_columns(None, 0, 50, None) == 50
    monkeypatch.setattr(torch.distributed, "get_rank", lambda _: 2)
    with pytest.raises(ValueError, match="pass vocab_size"):
        plan_columns("group", 100, 37, None)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"vocab_size": 61}, "pass the group"), ({"group": "x", "vocab_size": 60, "vocab_start": 4}, "at least 65")],
)
def test_bad_vocabularies(options, words):
    case = make_case(0)
    with pytest.raises(ValueError, match=words):
        linear_grpo_loss(case.hidden, case.weight, case.target_ids, torch.ones(65), **options)
