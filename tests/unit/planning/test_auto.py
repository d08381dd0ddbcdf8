"""What is left to the memory plan: the first that fits, said in a line, and the same in the plan and in the trainer."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from siri.config import Config
from siri.config.recipe import resolve
from siri.planning.memory_plan import MOST_SHARE, Machine, memory_plan
from siri.planning.tables import print_plan
from siri.runtime.ranks import Ranks
from siri.train import setup
from siri.train.setup import settle_memory
from tests.support.tiny import tiny_policy
from tests.unit.planning.test_memory import R1_1_5B, R1_7B, qwen2

GPU = torch.device("cuda", 0)


def plan_of(config, memory=80 * 10**9, gpus=8, settings=R1_1_5B, rollout="colocated"):
    return memory_plan(qwen2(**settings), config, Machine(gpus, memory), rollout=rollout)


@pytest.mark.parametrize(("memory", "level"), [(141, "none"), (80, "selective"), (24, "full")])
def test_checkpointing_is_the_first_that_fits(memory, level, capsys):
    plan = plan_of(Config(checkpointing="auto"), memory=memory * 10**9)
    assert plan.config.checkpointing == level
    fitting = [
        each
        for each in ("none", "selective", "full")
        if plan_of(Config(checkpointing=each), memory=memory * 10**9).update_fits
    ]
    assert fitting[:1] == ([level] if plan.update_fits else [])
    (line,) = plan.chosen
    assert line.startswith(f"checkpointing auto: {level}, ") and ("that fits" in line) == plan.update_fits
    print_plan(plan)
    assert line in capsys.readouterr().out.replace("\n", " ").replace("  ", " ")


def test_flex_is_not_asked_to_be_kept():
    assert plan_of(Config(checkpointing="auto", attention="flex")).config.checkpointing == "full"


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("settings", [R1_1_5B, R1_7B])
def test_vllm_gets_what_is_left(settings, offload):
    config = Config(checkpointing="full", rollout_memory="auto", optimizer_offload=offload)
    plan = plan_of(config, settings=settings)
    share = plan.config.rollout_memory
    assert plan.rollout_bytes + plan.reserve <= plan.machine.memory
    more = plan_of(replace(config, rollout_memory=min(share + 0.02, 0.99)), settings=settings)
    assert share == MOST_SHARE or more.rollout_bytes + more.reserve > more.machine.memory
    assert plan.chosen == (f"rollout_memory auto: {share:g} of each GPU for vLLM while it samples",)
    assert plan_of(config, settings=settings, rollout="served").chosen == (), "nobody uses it"


def test_the_recipes_leave_both_to_the_plan_and_run_nothing_idle():
    for name in ("siri-1.5b", "siri-7b", "fixed-high"):
        config = resolve(name, Config, [])
        assert (config.checkpointing, config.rollout_memory, config.score_all) == ("auto", "auto", False)
    assert Config().score_all and resolve("demo", Config, []).score_all, "on a CPU every figure stays what it was"


def test_the_trainer_chooses_what_the_plan_does(monkeypatch):
    gpu = SimpleNamespace(total_memory=80 * 10**9, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr("siri.rollout.engines.installed", lambda: "0.32.0")
    policy = tiny_policy()
    policy.model.config = qwen2(**R1_1_5B)
    ranks = Ranks(0, 8, SimpleNamespace(shape=(8,)))
    config = Config(checkpointing="auto", rollout_memory="auto")
    settled, lines = settle_memory(config, policy, ranks, GPU)
    plan = plan_of(config)
    assert (settled, lines) == (plan.config, plan.chosen) and len(lines) == 2
    named = Config(checkpointing="full")
    assert settle_memory(named, policy, ranks, GPU) == (named, ()), "what is named is not planned"
    on_cpu, lines = settle_memory(config, policy, Ranks(), torch.device("cpu"))
    assert (on_cpu.checkpointing, on_cpu.rollout_memory, lines) == ("none", 0.6, ())


@pytest.mark.parametrize("checkpointing", ["auto", "selective"])
def test_a_run_is_planned_with_the_backend_that_attends(monkeypatch, checkpointing):
    planned = []

    def settle(config, *_):
        planned.append(config.attention)
        return settle_memory(config, *_)

    monkeypatch.setattr(setup, "settle_memory", settle)
    config = resolve("demo", Config, ["--checkpointing", checkpointing])
    prepared = setup.prepare(config, device=torch.device("cpu"), weights="none")
    assert planned == [prepared.backend] == ["sdpa"] and prepared.config.attention == "auto"
