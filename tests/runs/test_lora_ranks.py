"""An adapter on several ranks over gloo: FSDP2 with a frozen model, its checkpoints, and the sync to an engine."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from siri.config.learning import TARGETS
from siri.errors import InputError
from siri.model.adapters import Adapter, add_adapter, base_parameters, initialise, trained_parameters
from siri.model.fsdp import full, shard
from siri.model.policy import allocate, hollow_copy
from siri.planning.formulas import adapter_shapes, parameter_shapes, sharded_bytes
from siri.rollout import local
from siri.rollout.local import LocalRollout
from siri.runtime.ranks import ALONE, Ranks, leave_ranks
from siri.runtime.stopwatch import Stopwatch
from siri.store.checkpoint import restore
from tests.runs.test_distributed import assert_same, join, spawn
from tests.support.processes import UNREPORTED, finish, lasting, start
from tests.support.saving import save_now, tensors
from tests.support.tiny import save_tiny, tiny_policy
from tests.support.update import update_policy
from tests.unit.train.test_update import config, make_samples

CPU = torch.device("cpu")


def made(base: str, ranks: Ranks, dtype: torch.dtype = torch.float32):
    policy = tiny_policy()
    adapter = Adapter(base, 4, 8.0, (*TARGETS, "lm_head"))
    add_adapter(policy.model, adapter)
    if ranks.size > 1:
        shard(policy.model, ranks, compute_dtype=dtype)
    initialise(policy.model, 1)
    trained = [parameter for _, parameter in trained_parameters(policy.model)]
    # eps keeps Adam from blowing up the rounding of gradients that are nearly zero
    return replace(policy, adapter=adapter), torch.optim.AdamW(trained, lr=1e-2, eps=1e-3)


def learn(policy, optimizer, ranks: Ranks, steps: range, budget: int) -> list[dict]:
    metrics = []
    for step in steps:
        samples = make_samples(step, count=13)
        options = {"watch": Stopwatch(CPU), "token_budget": budget, "ranks": ranks}
        metrics.append(update_policy(policy, optimizer, [samples[:7], samples[7:]], config(grad_clip=0.5), **options))
    return metrics


def values(policy) -> dict[str, torch.Tensor]:
    return {name: full(value.detach()).clone() for name, value in trained_parameters(policy.model)}


def frozen(model):
    """What verl#7495 sent: the base."""
    for name, parameter in base_parameters(model):
        yield name, full(parameter.detach())


def worker(rank: int, world: int, port: int, results, folder: str, base: str) -> None:
    ranks = join(rank, world, port)
    policy, optimizer = made(base, ranks)
    learn(policy, optimizer, ranks, range(2), 60)
    save_now(Path(folder), 2, policy, optimizer, {}, ranks=ranks)
    metrics = learn(policy, optimizer, ranks, range(2, 3), 60)
    learnt = values(policy)
    untouched = {name: full(value.detach()).clone() for name, value in base_parameters(policy.model)}
    copy = hollow_copy(policy)
    allocate(copy.model, CPU)
    engine = LocalRollout(copy, cache_tokens=4096, trained=policy)
    engine.sync()
    gap = engine.metrics()["fingerprint_gap_mean"]
    merged = {name: value.detach().clone() for name, value in copy.model.named_parameters()}
    faults = []
    right = local.merged_parameters
    for wrong in (frozen, lambda model: ((n, t * (1 + (rank == 1) * 1e-3)) for n, t in right(model))):
        local.merged_parameters = wrong
        try:
            engine.sync()
        except InputError as error:
            faults.append(str(error))
    half, their = made(base, ranks, torch.bfloat16)
    kept = {str(value.dtype) for _, value in base_parameters(half.model)}
    trained = {str(value.dtype) for _, value in trained_parameters(half.model)}
    lower = learn(half, their, ranks, range(2), 60)
    results[rank] = {
        "learnt": learnt,
        "base": untouched,
        "gap": gap,
        "merged": merged,
        "faults": faults,
        "metrics": metrics[-1]["loss"],
        "kept": kept,
        "trained": trained,
        "lower": lower[-1]["loss"],
        "flops": metrics[-1]["training_flops"],
        "bytes": sum(value.to_local().nbytes for value in half.model.parameters()),
    }
    leave_ranks()


def test_two_ranks_learn_save_and_sync_what_one_does(tmp_path):
    base = str(save_tiny(tmp_path / "base"))
    alone, optimizer = made(base, ALONE)
    metrics = learn(alone, optimizer, ALONE, range(2), 10**6)
    save_now(tmp_path / "one", 2, alone, optimizer, {})
    half_way = metrics[-1]["loss"]
    metrics = learn(alone, optimizer, ALONE, range(2, 3), 10**6)
    reference = values(alone)
    first_rank, second_rank = (part for part in spawn(worker, 2, str(tmp_path / "two"), base).values())
    assert_same(first_rank["learnt"], reference)
    assert first_rank["metrics"] == pytest.approx(metrics[-1]["loss"], rel=1e-5)
    start = dict(tiny_policy().model.named_parameters())
    assert all(torch.equal(tensor, start[name]) for name, tensor in first_rank["base"].items()), "the base is frozen"
    saved, lone = tensors(tmp_path / "two" / "step_000002"), tensors(tmp_path / "one" / "step_000002")
    assert saved.keys() == lone.keys() and all("lora_" in name for name in saved)
    # the checkpoint of two goes on with one
    resumed, optimizer = made(base, ALONE)
    restore(tmp_path / "two" / "step_000002", resumed, optimizer)
    learn(resumed, optimizer, ALONE, range(2, 3), 10**6)
    assert_same(values(resumed), reference)
    # the engine's copy is the base with the adapter in it
    assert first_rank["gap"] < 1e-5
    down, up = (reference[f"base_model.model.lm_head.lora_{side}.weight"] for side in "AB")
    torch.testing.assert_close(
        first_rank["merged"]["lm_head.weight"], start["lm_head.weight"] + 2.0 * up @ down, rtol=1e-4, atol=1e-5
    )
    # what one rank sends wrongly ends both, and neither waits for the other
    for part in (first_rank, second_rank):
        assert len(part["faults"]) == 2
        assert all("the engine was not sent the adapter" in fault for fault in part["faults"])
    assert first_rank["kept"] == {"torch.bfloat16"} and first_rank["trained"] == {"torch.float32"}
    shapes, adapter = parameter_shapes(alone.model.config), adapter_shapes(alone.model.config, 4, (*TARGETS, "lm_head"))
    assert first_rank["bytes"] == sharded_bytes(shapes, 2, 2) + sharded_bytes(adapter, 2), "as the memory plan has it"
    assert first_rank["flops"] == pytest.approx(metrics[-1]["training_flops"])
    assert first_rank["lower"] == pytest.approx(half_way, rel=0.1, abs=0.01)


def test_a_run_under_torchrun_resumes_on_one_process(tmp_path):
    options = ["train", "demo", "--lora-rank", "4", "--lr", "1e-2", "--prompts-per-step", "4", "--group-size", "4"]
    options += ["--mini-batch-prompts", "2", "--l-max", "48", "--l-min", "24", "--cycle", "4", "--eval-data"]
    run = tmp_path / "run"
    assert finish(start(run, [*options, "--steps", "2"], ranks=2, module=UNREPORTED)) == 0
    assert finish(start(run, [*options, "--steps", "3"], module=UNREPORTED)) == 0
    rows = lasting(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2] and all(row["fingerprint_gap_mean"] < 1e-4 for row in rows)
    assert rows[-1]["mismatch_abs_mean"] < 1e-4 and rows[-1]["loss"] != 0
