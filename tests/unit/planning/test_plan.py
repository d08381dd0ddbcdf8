"""The memory plan: what can be counted on a CPU is counted, the rest has to move the right way."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from siri import cli
from siri.commands.plan import PlanOptions, run_plan
from siri.config import Config
from siri.config.recipe import resolve
from siri.errors import InputError
from siri.planning.formulas import RESERVE, embedded_cache_tokens
from siri.planning.memory_plan import (
    VLLM_WORKSPACE,
    Machine,
    memory_plan,
    update_peak,
)
from siri.planning.models import load_model_config
from siri.planning.tables import find_gpu, print_plan
from siri.rollout.engines import engine_for
from siri.rollout.local import held_bytes
from siri.runtime.ranks import Ranks
from siri.train.edges import plan_memory
from tests.support.tiny import save_tiny, tiny_model, tiny_policy
from tests.unit.planning.test_memory import R1_1_5B, R1_7B, VARIANTS, qwen2


@pytest.fixture
def small():
    return qwen2(**R1_1_5B)


def plan_of(model_config, config=None, gpus=8, memory=80 * 10**9, rollout="local", **options):
    config = config or Config(model="m", data="d", checkpointing="full")
    return memory_plan(model_config, config, Machine(gpus, memory, **options), rollout=rollout)


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_gradients_and_moments_are_those_of_a_step(variant):
    kind, settings = VARIANTS[variant]
    model = tiny_model(kind, **settings)
    model(torch.arange(8)[None]).logits.sum().backward()
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()
    plan = plan_of(model.config, Config(model="m", data="d", l_max=64, l_min=32), gpus=1)
    parameters = list(model.parameters())
    assert plan.parameters == sum(tensor.numel() for tensor in parameters)
    assert plan.weights == sum(tensor.nbytes for tensor in parameters)
    assert plan.gradients == sum(tensor.grad.nbytes for tensor in parameters)
    moments = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    assert plan.optimizer == sum(tensor.nbytes for tensor in moments)


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        # embedding and head, 28 layers of q, k, v with biases, o, three MLP matrices and two norms, the last norm
        (R1_1_5B, 2 * 151936 * 1536 + 28 * (2 * 1536**2 + 1536 + 2 * 256 * 1537 + 3 * 1536 * 8960 + 2 * 1536) + 1536),
        (R1_7B, 2 * 152064 * 3584 + 28 * (2 * 3584**2 + 3584 + 2 * 512 * 3585 + 3 * 3584 * 18944 + 2 * 3584) + 3584),
    ],
)
def test_r1_distill(settings, parameters):
    plan = plan_of(qwen2(**settings))
    assert plan.parameters == parameters
    assert parameters == {1536: 1_777_088_000, 3584: 7_615_616_512}[settings["hidden_size"]]
    assert plan.weights == pytest.approx(4 * parameters / 8, rel=1e-6)
    assert plan.cache_token == {1536: 28_672, 3584: 57_344}[settings["hidden_size"]]


def test_peak_grows_with_tokens_and_shrinks_with_shards(small):
    by_tokens = [plan_of(small, Config(token_budget=budget)).update_bytes for budget in (20000, 30000, 60000)]
    assert by_tokens == sorted(by_tokens) and by_tokens[0] < by_tokens[-1]
    by_gpus = [plan_of(small, gpus=gpus) for gpus in (1, 2, 4, 8)]
    for more, fewer in zip(by_gpus[1:], by_gpus, strict=False):
        assert more.update_bytes < fewer.update_bytes
        assert more.phases[0].cache_tokens > fewer.phases[0].cache_tokens
        assert more.phases[0].largest_micro_step > fewer.phases[0].largest_micro_step
    replicated = plan_of(small, gpus=8, gpus_per_node=2)
    assert (replicated.shards, replicated.update_bytes) == (2, by_gpus[1].update_bytes)
    across = Config(checkpointing="full", shard_across_nodes=True)
    assert plan_of(small, across, gpus=8, gpus_per_node=2).update_bytes == by_gpus[3].update_bytes


def test_largest_micro_step_is_the_largest(small):
    plan = plan_of(small)
    config = Config(checkpointing="full")
    largest = plan.phases[0].largest_micro_step
    assert plan_of(small, replace(config, token_budget=largest)).fits
    assert not plan_of(small, replace(config, token_budget=largest + 1)).fits


def test_phases_follow_the_schedule(small):
    top, bottom = plan_of(small).phases
    assert (top.cap, bottom.cap) == (16384, 8192)
    assert (top.sequence_tokens, bottom.sequence_tokens) == (17408, 9216)
    assert top.cache_tokens == bottom.cache_tokens, "the memory stays"
    assert bottom.sequences_in_flight > 1.8 * top.sequences_in_flight, "the plan follows the cap"
    few = Config(l_max=64, l_min=32, max_prompt_tokens=16, prompts_per_step=2, mini_batch_prompts=2, group_size=4)
    top, bottom = plan_of(small, few).phases
    assert (top.micro_step_tokens, bottom.micro_step_tokens) == (8 * 80, 8 * 48), "no more than the whole step"
    assert top.sequences_in_flight == 4, "the responses to one prompt, of which two ranks of 8 have one"
    stages = Config(schedule="steps", stages=((0, 8192), (320, 16384)))
    assert [(phase.name, phase.cap) for phase in plan_of(small, stages).phases] == [
        ("from step 0", 8192),
        ("from step 320", 16384),
    ]
    assert [phase.cap for phase in plan_of(small, Config(schedule="constant")).phases] == [16384]
    assert plan_of(small, Config(rollout_tokens=40000)).phases[0].cache_tokens == 40000


def test_the_recipe_fits_only_with_checkpointing(small, capsys):
    config = Config(checkpointing="none")
    plan = plan_of(small, config)
    assert not plan.fits
    assert plan.advice[1:] == ("--checkpointing selective",)
    budget = int(plan.advice[0].removeprefix("--token-budget "))
    assert budget % 1024 == 0 and plan_of(small, replace(config, token_budget=budget)).fits
    assert not plan_of(small, replace(config, token_budget=budget + 1024)).fits
    assert plan_of(small, replace(config, checkpointing="selective")).fits
    print_plan(plan)
    out = capsys.readouterr().out
    assert "does not fit" in out and "--checkpointing selective" in out and "7 % less" in out.replace("\n", " ")
    assert "Attention is planned as varlen keeps it." in out


def test_advice_for_a_model_that_is_too_large():
    big = qwen2(**R1_7B)
    lone = plan_of(big, gpus=1)
    assert lone.phases[0].largest_micro_step == 0 and lone.phases[0].sequences_in_flight == 0
    eight = plan_of(big, gpus=8)
    assert eight.advice == ("--token-budget 18432", "--sync-every-micro-step")
    assert plan_of(big, Config(checkpointing="full", sync_every_micro_step=True), gpus=8).fits
    often = Config(checkpointing="full", sync_every_micro_step=True)
    assert plan_of(big, often, gpus=2).advice == ("--optimizer-offload", "4 of these GPUs")
    assert plan_of(big, replace(often, optimizer_offload=True), gpus=2).fits and plan_of(big, often, gpus=4).fits
    nodes = plan_of(big, often, gpus=4, gpus_per_node=1).advice
    assert "--shard-across-nodes" in nodes and not any("these GPUs" in line for line in nodes)
    assert "larger GPUs" in plan_of(big, gpus=1, memory=10 * 10**9).advice[0]


def test_the_last_resort_is_enough():
    big = qwen2(**R1_7B)
    (both,) = plan_of(big, gpus=1, memory=42 * 10**9).advice
    gpus = int(both.split()[0])
    assert "--checkpointing full --sync-every-micro-step --optimizer-offload --token-budget 17408" in both
    config = Config(
        checkpointing="full",
        token_budget=17408,
        sync_every_micro_step=True,
        optimizer_offload=True,
        shard_across_nodes=True,
    )
    assert plan_of(big, config, gpus=gpus, memory=42 * 10**9).fits
    assert not plan_of(big, config, gpus=gpus // 2, memory=42 * 10**9).fits


def test_gradients_stay_whole_until_the_last_micro_step(small):
    """FSDP2 keeps their fp32 sum unsharded; with one micro-step, one shard or a reduction each time there is none."""
    config = Config(checkpointing="full")
    plan = plan_of(small, config)
    assert plan.accumulated == pytest.approx(4 * plan.parameters * 7 / 8, rel=1e-6)
    often = plan_of(small, replace(config, sync_every_micro_step=True))
    assert often.accumulated == 0 and plan.update_bytes - often.update_bytes == plan.accumulated
    assert plan_of(small, config, gpus=1).accumulated == 0
    few = replace(config, prompts_per_step=8, mini_batch_prompts=1, group_size=16)
    assert plan_of(small, few).accumulated == 0, "16 sequences are one micro-step of 8 GPUs"


def test_offloaded_moments_only_visit(small):
    from siri.model.offload import CHUNK_BYTES

    config = Config(checkpointing="full", optimizer_offload=True)
    plan, held = plan_of(small, config), plan_of(small)
    assert plan.optimizer == 0 and held.optimizer == 2 * held.weights
    head = 2 * 4 * 151936 * 1536 // 8
    assert plan.moments["optimizer"] == 1.5 * max(CHUNK_BYTES, head)
    assert plan.phases[0].cache_tokens > held.phases[0].cache_tokens, "what is not held has room for the cache"


def test_a_head_cut_by_vocabulary(small):
    plan, whole = plan_of(small, Config(checkpointing="full", vocab_parallel=True)), plan_of(small)
    rows, matrix = 151936 // 8, 151936 * 1536
    assert plan.gathered == whole.gathered - 2 * matrix + 2 * rows * 1536
    assert plan.weights == whole.weights and plan.accumulated == whole.accumulated - 4 * matrix * 7 // 8
    assert whole.moments["backward"] - plan.moments["backward"] == 2 * 7 * rows * 1536 + 4 * matrix * 7 // 8
    tied = qwen2(**R1_1_5B)
    tied.tie_word_embeddings = True
    both = [plan_of(tied, Config(checkpointing="full", vocab_parallel=cut)) for cut in (True, False)]
    assert both[0].gathered == both[1].gathered, "a tied head is gathered for the embedding"


def test_vllm_takes_its_share_while_it_samples_and_none_in_the_update(small):
    config = Config(checkpointing="full", rollout_memory=0.5)
    plan, local = plan_of(small, config, rollout="colocated"), plan_of(small, config)
    assert plan.engine == 0 and local.update_bytes - plan.update_bytes == local.engine == 2 * plan.parameters
    room = 40 * 10**9 - 2 * plan.parameters - VLLM_WORKSPACE
    assert plan.phases[0].cache_tokens == room // 28_672
    assert plan.rollout_bytes == plan.weights + plan.optimizer + 40 * 10**9
    greedy = plan_of(small, replace(config, rollout_memory=0.95), rollout="colocated")
    assert not greedy.fits and any(line.startswith("--rollout-memory") for line in greedy.advice)
    share = float(next(line for line in greedy.advice if "--rollout-memory" in line).split()[1])
    assert plan_of(small, replace(config, rollout_memory=share), rollout="colocated").fits
    served = plan_of(small, config, rollout="served")
    assert served.rollout_bytes == served.weights + served.optimizer
    assert served.phases[0].sequences_in_flight == 256


def test_the_engine_of_a_configuration(monkeypatch):
    """`siri plan` takes the engine that a run on GPUs would take with the vLLM that is installed, if it is."""

    def engine(**options) -> str:
        return engine_for(Config(**options), torch.device("cuda"))

    monkeypatch.setattr("siri.rollout.engines.installed", lambda: None)
    assert engine(l_max=1024, l_min=512) == engine(rollout="local") == "local"
    assert engine(rollout="vllm") == "colocated"
    assert engine(rollout_servers=("http://a:1",)) == "served"
    monkeypatch.setattr("siri.rollout.engines.installed", lambda: "0.32.0")
    assert engine() == "colocated"


@pytest.mark.parametrize("offload", [False, True])
def test_trainer_and_plan_give_the_engine_the_same_cache(offload):
    """Real models on both sides: the trained one in fp32, the engine's copy in bf16."""
    trained, copied = tiny_model(), tiny_model(dtype=torch.bfloat16)
    held = held_bytes(copied, trained, offload)
    memory = 10 * held
    config = Config(l_max=64, l_min=32, max_prompt_tokens=8, optimizer_offload=offload)
    plan = plan_of(trained.config, config, gpus=1, memory=memory)
    assert plan.phases[0].cache_tokens == embedded_cache_tokens(copied.config, memory=memory, held=held) > 0
    assert held_bytes(copied, None, offload) == sum(parameter.nbytes for parameter in copied.parameters())


def test_the_trainer_prints_the_plan_of_its_gpus(monkeypatch, capsys):
    gpu = SimpleNamespace(total_memory=80 * 10**9, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    policy, ranks = tiny_policy(), Ranks(0, 4, SimpleNamespace(shape=(2, 2)))
    config = Config(l_max=64, l_min=32, max_prompt_tokens=8)
    predicted = plan_memory(config, policy, ranks, quiet=False)
    assert predicted == plan_of(policy.model.config, config, gpus=4, gpus_per_node=2)
    out = capsys.readouterr().out
    assert "Each of 4 GPUs of 80 GB" in out and "in 2 shards" in out and "It fits." in out
    assert plan_memory(config, policy, ranks, quiet=True) == predicted and not capsys.readouterr().out


def test_the_backend_that_attends_is_planned_with(small):
    config = Config(model="m", data="d", checkpointing="none")
    names = ("auto", "varlen", "flash3", "sdpa", "flex")
    plans = {name: plan_of(small, replace(config, attention=name)) for name in names}
    head = {name: plan.moments["head"] for name, plan in plans.items()}
    tokens = 28 * max(phase.micro_step_tokens for phase in plans["sdpa"].phases)
    assert head["auto"] == head["varlen"]
    assert head["sdpa"] - head["flash3"] == tokens * 2 * 1536
    assert head["flex"] - head["flash3"] == tokens * 4 * (1536 - 256), "six queries to a key are no power of two"


def test_the_peak_of_a_step_follows_what_was_packed(small):
    for config in (Config(checkpointing="full"), Config(checkpointing="full", optimizer_offload=True)):
        plan = plan_of(small, config)
        budget = plan.config.token_budget
        assert update_peak(small, plan, budget, several=True) == plan.update_bytes
        assert update_peak(small, plan, budget, several=False) == plan.update_bytes - plan.accumulated
        assert update_peak(small, plan, budget // 2, several=True) < plan.update_bytes
        assert update_peak(small, plan, 0, several=False) > plan.always, "the optimizer's own moment"


def test_cache_of_the_embedded_engine(small):
    memory, held = 80 * 10**9, 20 * 10**9
    tokens = embedded_cache_tokens(small, memory=memory, held=held)
    room = memory - int(RESERVE * memory) - held
    assert 2 * tokens * 28_672 <= room < 2 * (tokens + 1) * 28_672
    plan = plan_of(small)
    held = plan.weights + plan.optimizer + plan.engine
    assert plan.phases[0].cache_tokens == embedded_cache_tokens(small, memory=memory, held=held)
    assert embedded_cache_tokens(small, memory=memory, held=memory) == 0
    too_many = plan_of(small, Config(checkpointing="full", rollout_tokens=10**7))
    assert not too_many.fits and "--rollout-tokens auto" in too_many.advice


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gpus": 0}, "gpus is 0"),
        ({"gpus": 12}, "a multiple of the 8 of a node"),
        ({"memory": 0}, "0 bytes"),
        ({"reserve": 1.0}, "1.0 in reserve"),
        ({"config": Config(token_budget=5000)}, "token_budget is 5000, but the longest prompt and cap make 17408"),
    ],
)
def test_bad_input(small, options, says):
    with pytest.raises(InputError, match=says):
        plan_of(small, **options)


def test_numbers_of_gpus_are_refused_before_the_model_is_looked_up(capsys):
    assert cli.main(["plan", "siri-1.5b", "--gpus", "0"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("siri: gpus is 0") and said.err.count("\n") == 1


def test_an_unknown_architecture_is_named():
    from transformers import GPT2Config

    with pytest.raises(InputError, match="architecture 'gpt2' cannot be planned"):
        plan_of(GPT2Config())


@pytest.mark.parametrize(
    ("name", "expected"),
    [("h100", 80), ("H200", 141), ("a100-40", 40), ("a100-80", 80), ("rtx4090", 24), ("24e9", 24), ("48000000000", 48)],
)
def test_gpu_names(name, expected):
    gpu = find_gpu(name)
    assert gpu.memory == expected * 10**9
    assert gpu.multiprocessors == (108 if name.startswith("a100") else 128 if name == "rtx4090" else 132)
    assert bool(gpu.flops) == bool(gpu.bandwidth) == (name.lower()[0] in "har")


@pytest.mark.parametrize("name", ["v100", "80", "-5e9", "inf", "nan"])
def test_bad_gpu_names(name):
    with pytest.raises(InputError, match="gpu '"):
        find_gpu(name)


def siri_plan(*arguments: str) -> int:
    """The exit code of `siri plan siri-1.5b ARGUMENTS`."""
    return run_plan(resolve("siri-1.5b", PlanOptions, list(arguments), prog="siri plan siri-1.5b"))


def test_command(tmp_path, capsys):
    folder = save_tiny(tmp_path / "model")
    assert siri_plan("--model", str(folder), "--gpus", "2", "--gpu", "a100-40") == 0
    out = capsys.readouterr().out
    assert "Each of 2 GPUs of 40 GB" in out and "It fits." in out and "16,384" in out and "8,192" in out
    assert siri_plan("--model", str(folder), "--gpu", "1e8", "--checkpointing", "none") == 1
    assert "does not fit" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"unknown key 'gpuz'.*did you mean --gpu"):
        siri_plan("--gpuz", "3")


def test_a_model_that_cannot_be_had_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"give --model a folder with config\.json") as missing:
        load_model_config(str(tmp_path / "nothing"))
    assert "\n" not in str(missing.value)
    from transformers import AutoConfig

    def offline(*_, **options):
        raise OSError("We couldn't connect to the hub.\nCheck your connection.")

    monkeypatch.setattr(AutoConfig, "from_pretrained", offline)
    with pytest.raises(InputError, match=r"model org/name: no configuration to be had \(We couldn't connect") as hub:
        load_model_config("org/name")
    assert "\n" not in str(hub.value)


@pytest.mark.parametrize("answer", ["y", ""])
def test_a_plan_neither_asks_nor_runs_what_a_folder_brings(tmp_path, answer, monkeypatch):
    canary = tmp_path / "canary"
    (tmp_path / "evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    asked = []
    monkeypatch.setattr("builtins.input", lambda *question: asked.append(question) or answer)
    with pytest.raises(InputError, match="no configuration to be had"):
        load_model_config(str(tmp_path))
    assert not asked and not canary.exists()
