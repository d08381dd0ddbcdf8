"""Sharded training over gloo: the same parameters after three steps on 1, 2, 3 and 4 ranks."""

import gc
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from siri_kernels import chunked

from siri import cli
from siri.model.fsdp import full, shard
from siri.model.policy import checkpoint_activations
from siri.runtime.ranks import ALONE, Ranks, join_ranks, leave_ranks
from siri.runtime.stopwatch import Stopwatch
from siri.store.checkpoint import whole_moments
from tests.support import warm
from tests.support.processes import UNREPORTED
from tests.support.tiny import save_tiny, tiny_policy
from tests.support.update import update_policy
from tests.unit.train.test_update import config, make_samples

PATIENCE_S = 1200
"""Within which the ranks of a test finish, also on a machine that others use."""
AGGREGATIONS = ("token_mean", "seq_mean", "seq_sum", "seq_mean_fixed")


def train(
    ranks: Ranks, aggregation: str, budget: int, *, tied: bool = False, vocab: int = 96, **options
) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Three rollout batches of two optimizer steps each, of the same samples in an order of their own."""
    settings = config(aggregation=aggregation, grad_clip=0.5, **options)
    policy = tiny_policy(tie_word_embeddings=tied, vocab_size=vocab)
    if ranks.size > 1:
        shard(policy.model, ranks, compute_dtype=torch.float32, vocab_parallel=settings.vocab_parallel)
    checkpoint_activations(policy.model, settings.checkpointing)
    # eps keeps Adam from blowing up the rounding of gradients that are nearly zero
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-2, eps=1e-3)
    metrics = []
    for step in range(3):
        samples = make_samples(step, count=13)
        batches = [samples[:7], samples[7:]]
        batches = [random.Random(budget + step).sample(batch, len(batch)) for batch in batches]
        metrics.append(
            update_policy(
                policy,
                optimizer,
                batches,
                settings,
                watch=Stopwatch(torch.device("cpu")),
                token_budget=budget,
                ranks=ranks,
            )
        )
    return {name: full(value.detach()).clone() for name, value in policy.model.named_parameters()}, metrics


def join(rank: int, world: int, port: int) -> Ranks:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1")
    os.environ["LOCAL_WORLD_SIZE"] = str(world)  # all on one node
    os.environ.update(MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0")
    torch.set_num_threads(1)
    return join_ranks(torch.device("cpu"))[0]


def worker(rank: int, world: int, port: int, results) -> None:
    everybody = join(rank, world, port)
    cases = [(size, aggregation, False) for size in (2, 3, 4) for aggregation in AGGREGATIONS] + [
        (2, "token_mean", True)
    ]
    for size, aggregation, tied in cases:
        mesh = dist.DeviceMesh("cpu", list(range(size)))  # a collective: ranks outside take part in making it
        if rank < size:
            budget = {2: 60, 3: 150, 4: 52}[size]
            learnt = train(Ranks(rank, size, mesh, mesh.get_group()), aggregation, budget, tied=tied)
            if rank == 0:
                results[size, aggregation, tied] = learnt
    os.environ["LOCAL_WORLD_SIZE"] = "2"  # two nodes of two
    hybrid, _ = join_ranks(torch.device("cpu"))
    assert hybrid.mesh.mesh_dim_names == ("replicate", "shard") and hybrid.mesh.shape == (2, 2)
    learnt = train(hybrid, "token_mean", 60)
    if rank == 0:
        results["hybrid"] = learnt
    for level in ("selective", "full"):
        learnt = train(hybrid, "token_mean", 60, checkpointing=level)
        if rank == 0:
            results[level] = learnt
    few = make_samples(0, count=2)  # fewer sequences than ranks: two of them run one masked token
    policy = tiny_policy()
    shard(policy.model, everybody, compute_dtype=torch.float32)
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=1.0)
    update_policy(
        policy,
        optimizer,
        [few],
        config(grad_clip=1e9),
        watch=Stopwatch(torch.device("cpu")),
        token_budget=99,
        ranks=everybody,
    )
    parameters = {name: full(value.detach()).clone() for name, value in policy.model.named_parameters()}
    if rank == 0:
        results["few"] = parameters
    with torch.no_grad():  # as the check of an engine after a sync, which a checkpoint may follow
        policy.call(lambda model: None)
    left = {name: hasattr(value, "to_local") for name, value in policy.model.named_parameters()}
    if rank == 0:
        results["left"] = left
    for chunks in ("one chunk", "many chunks"):
        if chunks == "many chunks":
            chunked.BUDGET["cpu"]["fast"] = 1  # as few rows at a time as there may be
            chunked.MIN_ROWS = 2
        counts = count_collectives(Ranks(rank, world, dist.init_device_mesh("cpu", (world,))))
        if rank == 0:
            results[chunks] = counts
    assert everybody.gather(rank) == list(range(world))
    assert everybody.broadcast(f"from {rank}") == "from 0"
    arrays = everybody.gather_arrays({"n": np.arange(rank, dtype=np.int32), "x": np.full((2, rank), 0.1, np.float32)})
    assert [part["n"].tolist() for part in arrays] == [list(range(other)) for other in range(world)]
    assert all(part["x"].shape == (2, r) and part["x"].dtype == np.float32 for r, part in enumerate(arrays))
    told = everybody.broadcast_arrays({"costs": np.array([[0.1, 1 / 3]])} if rank == 0 else None)
    assert told["costs"].tolist() == [[0.1, 1 / 3]]
    covered = [i for part in everybody.gather(everybody.share(10)) for i in range(10)[part]]
    assert covered == list(range(10))
    leave_ranks()


@contextmanager
def collectives():
    """Counts how often FSDP2 gathers and reduces, under the names that torch had (2.11) and has (2.13)."""
    counts, inside = Counter(), []

    def counting(kind, function):
        def counted(*args, **options):
            if not inside:  # the newer may be made of the older
                counts[kind] += 1
            inside.append(kind)
            try:
                return function(*args, **options)
            finally:
                inside.pop()

        return counted

    with pytest.MonkeyPatch.context() as patch:
        for kind in ("all_gather", "reduce_scatter"):
            for name in (f"{kind}_single", f"{kind}_into_tensor", f"{kind}_tensor"):
                if hasattr(dist, name):
                    patch.setattr(dist, name, counting(kind, getattr(dist, name)))
        yield counts


def count_collectives(ranks: Ranks) -> dict:
    """One optimizer step of several micro-steps: what each rank sent, and how many chunks the head took."""
    policy = tiny_policy()
    shard(policy.model, ranks, compute_dtype=torch.float32)
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=1.0)
    sizes = []
    rows = chunked.chunk_rows

    def noted(impl, hidden, vocab, budget, *rest, **options):
        sizes.append(-(-hidden.shape[0] // rows(impl, hidden, vocab, budget, *rest, **options)))
        return rows(impl, hidden, vocab, budget, *rest, **options)

    chunked.chunk_rows = noted
    try:
        with collectives() as counts:
            metrics = update_policy(
                policy, optimizer, [make_samples(1, count=24)], config(), watch=Stopwatch(torch.device("cpu")),
                token_budget=60, ranks=ranks,
            )  # fmt: skip
    finally:
        chunked.chunk_rows = rows
    return {"micro_steps": metrics["micro_steps"], "chunks": max(sizes), **counts}


PRELOADED = ["tests.runs.test_distributed", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor"]
PRELOADED += ["transformers.models.qwen2.modeling_qwen2", "transformers.models.llama.modeling_llama"]
"""What nearly every worker imports, which takes longer than what it then does."""


def in_environment(rank: int, environment: dict[str, str], worker, *arguments) -> None:
    """A worker's process has the environment that its test has now, not that of the process which it was forked off."""
    os.environ.clear()
    os.environ.update(environment)
    gc.freeze()  # what was imported is no garbage: to look for some in it takes a second at the interpreter's end
    worker(rank, *arguments)


def spawn(worker, ranks: int, *arguments) -> dict:
    """What the worker(rank, ranks, port, results, *arguments) of each process put into results. The processes are
    forked off one that has imported torch, and that has no threads and nothing of this process."""
    # held here, as by torchrun's agent: a port that is only looked up may be taken by the time the ranks meet there
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with context.Manager() as manager:
        results = manager.dict()
        each = (dict(os.environ), worker, ranks, store.port, results, *arguments)
        running = mp.start_processes(in_environment, each, nprocs=ranks, join=False, start_method="forkserver")
        deadline = time.monotonic() + PATIENCE_S
        try:
            while not running.join(timeout=5):
                assert time.monotonic() < deadline, f"{ranks} ranks have not finished after {PATIENCE_S} s"
        finally:
            for process in running.processes:  # ranks that wait for one another do not end by themselves
                process.kill()
        return dict(results)


@pytest.fixture(scope="module")
def sharded():
    return spawn(worker, 4)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_any_number_of_ranks_learns_the_same(sharded, aggregation):
    reference, alone = train(ALONE, aggregation, 10**6)
    start = dict(tiny_policy().model.named_parameters())
    moved = max(float((reference[name] - start[name].detach()).abs().max()) for name in reference)
    assert moved > 1e-2, "three steps must change something"
    for size in (2, 3, 4):
        parameters, metrics = sharded[size, aggregation, False]
        assert_same(parameters, reference)
        for row_alone, row in zip(alone, metrics, strict=True):
            assert row["tokens"] == row_alone["tokens"] and row["micro_steps"] >= row_alone["micro_steps"]
            for name in ("loss", "grad_norm", "entropy", "approx_kl", "ratio_max", "mismatch_k3"):
                assert row[name] == pytest.approx(row_alone[name], rel=1e-3, abs=1e-6), (size, name)


def assert_same(parameters: dict, reference: dict) -> None:
    assert parameters.keys() == reference.keys()
    for name, value in reference.items():
        torch.testing.assert_close(parameters[name], value, rtol=0, atol=1e-6)


def test_what_is_sent_does_not_depend_on_the_chunks_of_the_head_and_gradients_go_once_a_step(sharded):
    whole, chunked = sharded["one chunk"], sharded["many chunks"]
    micro_steps, layers = whole["micro_steps"], 2
    assert micro_steps >= 3 and whole["chunks"] == 1 and chunked["chunks"] > 10
    assert whole["all_gather"] == chunked["all_gather"], "no chunk of the head gathers anything"
    # root and layers once in the forward, the layers once more in the backward
    assert whole["all_gather"] == micro_steps * (1 + 2 * layers)
    assert whole["reduce_scatter"] == chunked["reduce_scatter"] == 1 + layers, "in the last micro-step alone"


def test_tied_embeddings(sharded):
    reference, _ = train(ALONE, "token_mean", 10**6, tied=True)
    parameters, _ = sharded[2, "token_mean", True]
    assert "lm_head.weight" not in parameters
    assert_same(parameters, reference)


def test_sharded_inside_nodes_and_replicated_across(sharded):
    assert_same(sharded["hybrid"][0], train(ALONE, "token_mean", 10**6)[0])


@pytest.mark.parametrize("level", ["selective", "full"])
def test_activations_computed_anew_in_a_sharded_model_are_the_same(sharded, level):
    for name, value in sharded["hybrid"][0].items():
        assert torch.equal(sharded[level][0][name], value), name


def test_more_ranks_than_sequences(sharded):
    policy = tiny_policy()
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=1.0)
    update_policy(
        policy,
        optimizer,
        [make_samples(0, count=2)],
        config(grad_clip=1e9),
        watch=Stopwatch(torch.device("cpu")),
        token_budget=99,
    )
    assert_same(sharded["few"], {name: value.detach() for name, value in policy.model.named_parameters()})


def test_what_runs_without_a_backward_leaves_the_parameters_sharded(sharded):
    assert len(sharded["left"]) > 2 and all(sharded["left"].values()), sharded["left"]


@pytest.mark.parametrize(("kind", "backend"), [("cpu", "gloo"), ("cuda", "nccl")])
def test_ranks_are_patient_with_one_that_samples_or_downloads(kind, backend, monkeypatch):
    """The longest of them wait, in collectives of all ranks, for more than the 10 minutes that torch gives NCCL."""
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    joined = []

    def join(*arguments, **options):
        joined.append((arguments, options))
        raise InterruptedError

    monkeypatch.setattr(dist, "init_process_group", join)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    with pytest.raises(InterruptedError):
        join_ranks(torch.device(kind))
    assert joined[0][0] == (backend,) and joined[0][1]["timeout"].total_seconds() >= 3600


def torchrun(ranks: int, *arguments: str) -> subprocess.CompletedProcess:
    options = ["--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", UNREPORTED, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return warm.run(command, capture_output=True, text=True, timeout=900, env=environment)


def test_torchrun_trains_and_resumes_with_another_number_of_ranks(tmp_path):
    run = tmp_path / "run"
    # a reward for brevity and a cap that cuts few: of equal score is then only a group of equal lengths
    options = ["train", "demo", "--run-dir", str(run), "--prompts-per-step", "6", "--group-size", "4", "--cycle", "4"]
    options += ["--length-reward", "kimi", "--l-min", "80"]
    options += ["--eval-problems", "10", "--eval-temperature", "0", "--save-every", "1", "--mini-batch-prompts", "3"]
    first = torchrun(2, *options, "--steps", "2", "--vocab-parallel", "--optimizer-offload")
    assert first.returncode == 0, first.stderr[-2000:]
    assert first.stdout.count("siri-low-1") >= 1 and "rank" not in first.stderr.lower()
    second = torchrun(3, *options, "--steps", "3", "--resume")
    assert second.returncode == 0, second.stderr[-2000:]
    assert cli.main([*options, "--steps", "4", "--resume", "--quiet"]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all(row["responses"] == 24 and row["skipped_updates"] == 0 for row in rows)
    evals = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    assert [row["name"] for row in evals] == ["base", "siri-low-1", "final", "siri-high-1"]
    alone = tmp_path / "alone"
    single = torchrun(1, *options[:2], *options[4:], "--steps", "1", "--run-dir", str(alone), "--quiet")
    assert single.returncode == 0, single.stderr[-2000:]
    base = json.loads((alone / "eval.jsonl").read_text().splitlines()[0])
    assert base == evals[0], "greedy answers of the base model do not depend on how it was loaded"

    moments, moments_resumed = (whole_moments(run / "checkpoints" / f"step_00000{step}") for step in (3, 4))
    assert moments.keys() == moments_resumed.keys() and any("exp_avg_sq" in key for key in moments)
    (steps,) = {float(value) for key, value in moments_resumed.items() if key.endswith(".step")}
    assert steps == 8, "two mini-batches a step, none of them without an advantage"


@pytest.mark.parametrize("fault", ["no data", "no weights"])
def test_bad_input_is_one_line_under_torchrun_too(tmp_path, fault):
    """On all ranks at once, and on rank 0 alone, which reads the weights."""
    given, said = ("--data", str(tmp_path / "none.json")), "none.json: no such file"
    if fault == "no weights":
        folder = save_tiny(tmp_path / "model", hidden_size=16, vocab_size=600)
        (folder / "model.safetensors").unlink()
        given, said = ("--model", str(folder)), "holds no weights; copy model.safetensors"
    result = torchrun(2, "train", "demo", "--run-dir", str(tmp_path / "run"), *given)
    assert result.returncode != 0
    assert result.stderr.count("siri: ") == 1 and said in result.stderr and "siri (" not in result.stderr
    assert "loop.py" not in result.stderr, "torchrun prints a traceback of its own, not ours"
    assert not (tmp_path / "run").exists()
