"""The whole update on fake CUDA tensors: where every tensor is, what the host reads, and the peak of memory that `siri
plan` predicts. What is not covered: kernels, streams, NCCL, fragmentation."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch

OPTIONS = ("plain", "vocab_parallel", "sync_every_micro_step", "optimizer_offload", "tied", "bias", "liger")
MACHINES = ((1, 1), (8, 1), (8, 2))
GRID = [
    {"gpus": gpus, "nodes": nodes, "checkpointing": level, "option": option}
    for (gpus, nodes), level, option in product(MACHINES, ("none", "selective", "full"), OPTIONS)
]
LARGE = [
    {"size": size, "layers": 28, "checkpointing": level, "option": option, "gpus": 8}
    for size in ("1.5b", "7b")
    for level, option in product(("none", "selective", "full"), ("plain", "liger"))
]
WITHIN = 0.03
"""The plan and the update differ by less, of the update's peak."""
CAUGHT = {
    "mask on the host": "mask is on cpu",
    "rows on the host": "Fault: a CPU tensor among those of the GPU",
    "an index on the host": "Fault: a CPU tensor among those of the GPU",
    "a hidden read": "Fault: the host reads a tensor's data",
    "a CPU tensor in a collective": "Fault: a CPU tensor in a collective",
    "old log-probs on the host": "found at least two devices, cpu and cuda",
    "gathered weights that stay": "is no fp32 tensor on the GPU",
    "head in fp32": "the same dtype|float32",
}
SEEN = ("activations that stay", "logits beside the head", "a reduction every micro-step")
"""Faults that run, and show in what is counted."""
IDLE = [
    {"gpus": 8, "option": option, "fault": fault}
    for option, fault in (("plain", ""), ("score_all", ""), ("score_all", "an idle backward"))
]
FAULTS = [{"gpus": 8, "checkpointing": "full", "fault": fault} for fault in ("", *CAUGHT, *SEEN)]


@cache
def shim() -> str:
    """The library that lets a CPU build of torch take tensors on "cuda"."""
    if torch.version.cuda is not None or torch.version.hip is not None:
        pytest.skip("torch is built for GPUs; the shim is for its CPU build")
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler here (g++ or c++), which the shim is built with")
    from torch.utils.cpp_extension import include_paths

    source, libraries = Path(__file__).with_name("guard.cpp"), Path(torch.__file__).parent / "lib"
    built = Path(os.environ.get("TMPDIR", "/tmp")) / f"siri-fake-cuda-{torch.__version__}-{os.getuid()}"
    library = built / f"{source.stat().st_mtime_ns}.so"
    if not library.exists():
        built.mkdir(exist_ok=True)
        part = library.with_suffix(f".{os.getpid()}")
        flags = ["-O1", "-shared", "-fPIC", "-std=c++20", *(f"-I{path}" for path in include_paths())]
        link = [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lc10", "-ltorch_cpu"]
        done = subprocess.run([compiler, *flags, str(source), "-o", str(part), *link], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        part.rename(library)
    return str(library)


def updates(*parts: list[dict]) -> list[dict]:
    """What each case came to, a process for each part, side by side."""
    environment = os.environ | {"SIRI_FAKE_CUDA": shim(), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.fake_cuda.update"]
    rows: list[dict] = []
    with ExitStack() as stack:
        running = []
        for cases in parts:
            told = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2)]
            streams = dict(zip(("stdout", "stderr"), told, strict=True))
            process = subprocess.Popen(
                [*command, json.dumps(cases)], env=environment, cwd=Path(__file__).parents[2], **streams
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            running.append((process, *told))
        for process, said, errors in running:
            process.wait()
            for stream in (said, errors):
                stream.seek(0)
            lines = [line for line in errors.read().splitlines() if "registered at" not in line]
            assert process.returncode == 0, "\n".join(lines)[-3000:]
            rows += [json.loads(line) for line in said if line.startswith("{")]
    return rows


def named(row: dict) -> str:
    return f"{row['nodes']} x {row['gpus']}, {row['checkpointing']}, {row['option']}, {row['size']}"


def check(rows: list[dict]) -> None:
    wrong = [f"{named(row)}: {row['ratio']}" for row in rows if not abs(row["ratio"] - 1) < WITHIN]
    assert not wrong, wrong
    for row in rows:
        # a GPU alone has nobody to reduce with: FSDP2 lays its gradients out all the same
        alone = row["gpus"] * row["nodes"] == 1
        operator = "fsdp.chunk_cat.default" if alone else "c10d._reduce_scatter_base_.default"
        sharded = row["collectives"].get(operator, 0)
        # two optimizer steps, of two micro-steps and one, over the layers and the root
        times = 3 if row["option"] == "sync_every_micro_step" else 2
        assert sharded == times * (row["layers"] + 1), (named(row), row["collectives"])
        assert row["micro_steps"] == 3


@pytest.fixture(scope="module")
def every():
    """All of them in two processes, whose start is a good part of the time; what is broken comes last."""
    half = (len(GRID) + len(IDLE) + len(FAULTS)) // 2
    return updates(GRID[:half], [*GRID[half:], *IDLE, *FAULTS])


@pytest.fixture(scope="module")
def grid(every):
    return every[: len(GRID)]


def test_every_way_to_lay_out_an_update_runs_on_the_device_and_peaks_as_planned(grid):
    assert len(grid) == len(GRID)
    check(grid)


def test_between_updates_nothing_is_held_but_the_state(grid):
    """Shards, moments where they are not on the host, and rotary frequencies: no gathered weight, no activation."""
    for row in grid:
        less = {key: row[key] for key in ("gpus", "nodes", "option")}
        left = {other["left"] for other in grid if {key: other[key] for key in less} == less}
        assert max(left) - min(left) < 2**20, (named(row), left)
        assert row["left"] < row["peak"] / 2


@pytest.fixture(scope="module")
def broken(every):
    return {row["fault"]: row for row in every[-len(FAULTS) :]}


@pytest.mark.parametrize("fault", [*CAUGHT, *SEEN])
def test_planted_faults_are_caught(fault, broken):
    row = broken[fault]
    check([broken[""]])
    if fault in CAUGHT:
        assert any(words in row.get("caught", "") for words in CAUGHT[fault].split("|")), row
        return
    with pytest.raises(AssertionError):
        check([row])
        assert row["left"] - broken[""]["left"] < 2**20, "what stays between updates"


def test_what_teaches_nothing_runs_forward_only(every):
    """Twice the responses, half of them without an advantage: as many backward passes, and the same peak."""
    plain, both, mixed = every[len(GRID) : len(GRID) + len(IDLE)]
    check([plain])
    assert (plain["micro_steps"], both["micro_steps"], mixed["micro_steps"]) == (3, 6, 6)
    assert both["collectives"]["c10d._reduce_scatter_base_.default"] == 2 * (both["layers"] + 1)
    backward = [row["calls"]["backward"] for row in (plain, both, mixed)]
    assert backward[0] <= backward[1] < 1.01 * backward[0] < 1.4 * backward[0] < backward[2], "mixed, for comparison"
    assert both["calls"]["forward"] > 1.4 * plain["calls"]["forward"], "the others do run"
    assert both["peak"] < plain["peak"] + 2**24, "a forward pass without a backward keeps nothing"


@pytest.mark.torture
@pytest.mark.parametrize("case", LARGE, ids=lambda case: f"{case['size']}-{case['checkpointing']}-{case['option']}")
def test_whole_models_peak_as_planned(case, torture, long):
    if not torture:
        pytest.skip("28 layers take a minute or more; make torture runs them")
    if LARGE.index(case) >= long(1, len(LARGE)):
        pytest.skip("not in the share of make torture that is tried")
    check(updates([case]))
