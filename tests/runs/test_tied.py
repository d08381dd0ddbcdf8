"""A tied head, and files that disagree with their configuration, on 1 to 4 ranks: from the folder to the engine's copy
and the checkpoint."""

import pytest
import torch
import torch.distributed as dist

from siri.config import Config
from siri.errors import InputError
from siri.model.fsdp import full
from siri.rollout import Request
from siri.rollout.engines import make_engine
from siri.runtime.ranks import ALONE, Ranks, leave_ranks
from siri.runtime.stopwatch import Stopwatch
from siri.train.setup import prepare, read_policy
from tests.runs.test_distributed import assert_same, join, spawn
from tests.support.saving import save_now
from tests.support.update import update_policy
from tests.unit.model.test_tied import HEAD, folder_of
from tests.unit.train.test_update import config, make_samples

CPU = torch.device("cpu")
FOLDERS = {"tied": (True, None), "untied": (False, "its own"), "a head": (True, "its own"), "none": (False, None)}
"""What config.json says, and the head that the files hold."""
CASES = [(size, kind, False) for size in (2, 3, 4) for kind in ("tied", "a head")]
CASES += [(3, "untied", False), (3, "tied", True), (3, "a head", True)]
"""Ranks, folder, whether the head is cut."""


def learn(root, ranks: Ranks, kind: str, cut: bool) -> dict:
    """One optimizer step of the model in a folder, as a run sets it up; its parameters, which the engine has, too."""
    settings = Config(model=str(root / kind), rollout="local", vocab_parallel=cut)
    setup = prepare(settings, device=CPU, ranks=ranks)
    engine = make_engine(settings, setup.policy, ranks=ranks)
    optimizer = torch.optim.AdamW(setup.policy.model.parameters(), lr=1e-2, eps=1e-3)
    update_policy(
        setup.policy, optimizer, [make_samples(1, count=9)], config(vocab_parallel=cut), token_budget=99, ranks=ranks,
        watch=Stopwatch(CPU),
    )  # fmt: skip
    engine.sync()
    learnt = {name: full(value.detach()).clone() for name, value in setup.policy.model.named_parameters()}
    held = dict(engine.policy.model.named_parameters())
    assert held.keys() == learnt.keys() and all(torch.equal(held[name], learnt[name]) for name in learnt)
    assert engine.generate([Request([5, 6, 7], 4, 2)], temperature=1.0, seed=1)
    path = save_now(root / f"checkpoints-{ranks.size}-{kind}-{cut}", 1, setup.policy, optimizer, {}, ranks=ranks)
    return {"parameters": learnt, "notes": setup.notes(), "checkpoint": path}


def worker(rank: int, world: int, port: int, results, root) -> None:
    everybody = join(rank, world, port)
    meshes = {size: dist.DeviceMesh("cpu", list(range(size))) for size in (2, 3, 4)}
    for size, kind, cut in CASES:
        if rank < size:
            learnt = learn(root, Ranks(rank, size, meshes[size], meshes[size].get_group()), kind, cut)
            if rank == 0:
                results[size, kind, cut] = learnt
    with pytest.raises(InputError, match=r"hold no lm_head\.weight"):
        prepare(Config(model=str(root / "none")), device=CPU, ranks=everybody)
    results["refused", rank] = True
    leave_ranks()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for kind, (says, head) in FOLDERS.items():
        folder_of(folder / kind, says, head, "shards")
    return folder


@pytest.fixture(scope="module")
def learnt(root):
    return spawn(worker, 4, root)


@pytest.fixture(scope="module")
def alone(root):
    return {kind: learn(root, ALONE, kind, False) for kind in FOLDERS if kind != "none"}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_number_of_ranks_has_the_same_model(learnt, alone, case):
    """Also the checkpoint, which one process reads."""
    _, kind, _ = case
    outcome, reference = learnt[case], alone[kind]
    assert (HEAD in reference["parameters"]) == (kind != "tied")
    assert_same(outcome["parameters"], reference["parameters"])
    assert outcome["notes"] == reference["notes"] and len(reference["notes"]) == (kind == "a head")
    policy = read_policy(str(outcome["checkpoint"]), CPU)
    held = dict(policy.model.named_parameters())
    assert held.keys() == outcome["parameters"].keys() and policy.notes == ()
    assert all(torch.equal(held[name], value) for name, value in outcome["parameters"].items())


def test_every_rank_refuses_a_head_that_is_not_there(learnt):
    assert all(learnt["refused", rank] for rank in range(4))
