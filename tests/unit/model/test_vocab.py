"""The head cut by vocabulary rows: the same parameters after three steps as with a whole head, on 2 and 4 ranks."""

import os

import pytest
import torch
import torch.distributed as dist
from siri_kernels import chunked
from transformers import AutoModelForCausalLM

from siri.errors import InputError
from siri.model.fsdp import full, shard
from siri.model.split_head import HeadCut, cut_head
from siri.rollout import Request
from siri.rollout.local import LocalRollout
from siri.rollout.proof import fixed_prompts, gaps
from siri.runtime.ranks import ALONE, Ranks, join_ranks, leave_ranks
from siri.runtime.stopwatch import Stopwatch
from siri.store.checkpoint import restore
from siri.store.export import export
from tests.runs.test_distributed import assert_same, join, spawn, train
from tests.support.saving import save_now
from tests.support.tiny import tiny_model, tiny_policy
from tests.support.update import update_policy
from tests.unit.train.test_update import config, make_samples

CASES = [
    # ranks, tied, vocabulary, settings; 97 rows make parts of different sizes
    (2, False, 97, {}),
    (2, True, 97, {"aggregation": "seq_mean"}),
    (4, False, 96, {"loss": "gspo", "entropy_coef": 0.01, "aggregation": "seq_sum"}),
    (4, False, 97, {"aggregation": "seq_mean_fixed", "score_all": False}),
    (4, True, 96, {}),
]


def settings_of(case) -> tuple[str, dict]:
    _, tied, vocab, settings = case
    settings = dict(settings)
    return settings.pop("aggregation", "token_mean"), {"tied": tied, "vocab": vocab, **settings}


def worker(rank: int, world: int, port: int, results, folder) -> None:
    join(rank, world, port)
    # chunks of eight rows: ranks with parts of different sizes have to agree on them
    chunked.BUDGET["cpu"]["fast"], chunked.MIN_ROWS = 1, 8
    for number, case in enumerate(CASES):
        size = case[0]
        mesh = dist.DeviceMesh("cpu", list(range(size)))
        if rank < size:
            aggregation, options = settings_of(case)
            learnt = train(Ranks(rank, size, mesh, mesh.get_group()), aggregation, 60, vocab_parallel=True, **options)
            if rank == 0:
                results[number] = learnt
    os.environ["LOCAL_WORLD_SIZE"] = "2"  # two nodes of two: each node holds a whole head, in two parts
    hybrid, _ = join_ranks(torch.device("cpu"))
    for tied in (False, True):
        learnt = train(hybrid, "token_mean", 60, vocab_parallel=True, tied=tied, vocab=97)
        if rank == 0:
            results["hybrid", tied] = learnt
    results["parts", rank] = parts(hybrid)
    results["gap", rank] = fingerprint(hybrid)
    held = saved(hybrid, folder)
    if rank == 0:
        results["saved"] = held
    leave_ranks()


def parts(ranks: Ranks) -> tuple:
    """Rows of an untied head that this rank holds, and whether FSDP2 has any say in them."""
    model = tiny_model(vocab_size=97)
    whole = model.lm_head.weight.detach().clone()
    shard(model, ranks, compute_dtype=torch.float32, vocab_parallel=True)
    weight = model.lm_head.weight
    state = model._get_fsdp_state()
    managed = [parameter._module_info.param_name for parameter in state._fsdp_param_group.fsdp_params]
    assert torch.equal(full(weight.detach()), whole)
    assert torch.equal(weight.to_local(), whole[HeadCut.of(ranks).rows(97)])
    return tuple(weight.to_local().shape), len(managed), HeadCut.of(ranks).first


def fingerprint(ranks: Ranks) -> float:
    """How far the answers that a whole model scored are from what the cut one says of them, at most."""
    policy = tiny_policy(vocab_size=97)
    answers = [
        (prompt, completion, 1.0)
        for prompt in fixed_prompts(policy)
        for completion in LocalRollout(policy, cache_tokens=999).generate(
            [Request(prompt, 9)], temperature=1.0, seed=1
        )[0]
    ]
    shard(policy.model, ranks, compute_dtype=torch.float32, vocab_parallel=True)
    return gaps(policy, {"engine": answers})["engine"].max


def saved(ranks: Ranks, folder) -> dict[str, torch.Tensor]:
    """One step with a cut head, a checkpoint of it, and what every parameter and moment of the head then is."""
    policy = tiny_policy(vocab_size=97)
    shard(policy.model, ranks, compute_dtype=torch.float32, vocab_parallel=True)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-2)
    update_policy(
        policy, optimizer, [make_samples(1, count=9)], config(vocab_parallel=True), token_budget=99, ranks=ranks,
        watch=Stopwatch(torch.device("cpu")),
    )  # fmt: skip
    save_now(folder, 1, policy, optimizer, {}, ranks=ranks)
    held = {name: full(value.detach()) for name, value in policy.model.named_parameters()}
    moments = optimizer.state[policy.model.lm_head.weight]
    return held | {name: full(moments[name]) for name in ("exp_avg", "exp_avg_sq")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def cut(folder):
    return spawn(worker, 4, folder)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_a_cut_head_learns_the_same(cut, number):
    aggregation, options = settings_of(CASES[number])
    reference, alone = train(ALONE, aggregation, 10**6, **options)
    parameters, metrics = cut[number]
    assert_same(parameters, reference)
    assert ("lm_head.weight" in parameters) is not CASES[number][1]
    for row_alone, row in zip(alone, metrics, strict=True):
        assert row["tokens"] == row_alone["tokens"], "each token counts once, though every rank sees it"
        for name in ("loss", "grad_norm", "entropy", "approx_kl", "ratio_max", "mismatch_k3"):
            assert row[name] == pytest.approx(row_alone[name], rel=1e-3, abs=1e-6), name


def test_a_rollout_engine_is_compared_with_a_cut_head(cut):
    assert all(cut["gap", rank] < 1e-4 for rank in range(4))


@pytest.mark.parametrize("tied", [False, True])
def test_cut_inside_nodes_and_replicated_across(cut, tied):
    assert_same(cut["hybrid", tied][0], train(ALONE, "token_mean", 10**6, tied=tied, vocab=97)[0])


def test_an_untied_head_is_held_in_parts_that_nobody_gathers(cut):
    # 97 rows in two parts; the root's other parameters, embedding and last norm, are FSDP2's
    assert [cut["parts", rank] for rank in range(4)] == [
        ((49, 32), 2, 0),
        ((48, 32), 2, 0),
        ((49, 32), 2, 2),
        ((48, 32), 2, 2),
    ]


def test_a_checkpoint_of_a_cut_head_is_that_of_any_other(cut, folder, tmp_path):
    held = cut["saved"]
    policy = tiny_policy(vocab_size=97, seed=9)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-2)
    restore(folder / "step_000001", policy, optimizer)
    for name, value in policy.model.named_parameters():
        assert torch.equal(value, held[name]), name
    moments = optimizer.state[policy.model.lm_head.weight]
    assert all(torch.equal(moments[name], held[name]) for name in ("exp_avg", "exp_avg_sq"))
    exported = AutoModelForCausalLM.from_pretrained(export(folder / "step_000001", tmp_path / "model"))
    assert torch.equal(exported.lm_head.weight, held["lm_head.weight"])


def test_more_ranks_than_parts_of_the_vocabulary():
    class Mesh:
        shape, ndim = (4,), 1

        def get_local_rank(self, dim):
            return 0

        def get_group(self, dim):
            return None

    with pytest.raises(InputError, match="9 rows of vocabulary leave some of 4 ranks without any"):
        cut_head(tiny_model(vocab_size=9), Ranks(0, 4, Mesh()))
    assert HeadCut.of(ALONE) is None
