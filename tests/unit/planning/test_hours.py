"""GPU-hours by hand, and that whatever was assumed is said beside them."""

from dataclasses import replace

import numpy as np
import pytest

from siri.commands.plan import PlanOptions, run_plan
from siri.config import Config
from siri.config.recipe import resolve
from siri.errors import InputError
from siri.packing.flops import training_flops
from siri.planning.hours import LAYER_S, PROMPT_TOKENS, QUANTILES, Rates, response_lengths, run_hours, step_hours
from siri.planning.memory_plan import Machine, memory_plan
from tests.support.tiny import save_tiny
from tests.unit.planning.test_memory import R1_1_5B, R1_7B, qwen2

CONFIG = Config(checkpointing="full", schedule="constant", l_max=16384, steps=10)
RATES = Rates(flops=0.4 * 989e12, bandwidth=3.35e12, tokens_per_s=5000.0)


def plan_of(config=CONFIG, settings=R1_1_5B, gpus=8, rollout="colocated"):
    model = qwen2(**settings)
    return model, memory_plan(model, config, Machine(gpus, 80 * 10**9), rollout=rollout)


def test_lengths_are_the_lognormal_that_is_stated():
    lengths = response_lengths(16384)
    assert np.median(lengths) == pytest.approx(0.45 * 16384, rel=0.01)
    assert lengths.max() == 16384 and np.mean(lengths == 16384) == pytest.approx(0.127, abs=0.005)
    draws = np.random.default_rng(0).lognormal(np.log(0.45 * 16384), 0.7, 200_000).clip(1, 16384)
    assert lengths.mean() == pytest.approx(draws.mean(), rel=0.01)
    assert (lengths**2).mean() == pytest.approx((draws**2).mean(), rel=0.01)


def test_seconds_of_a_step_by_hand():
    model, plan = plan_of(replace(CONFIG, mini_batch_prompts=128))
    step = step_hours(model, plan, RATES, 16384)
    responses = response_lengths(16384)
    assert step.response_tokens == pytest.approx(2048 * responses.mean())
    assert step.rollout_s == pytest.approx(step.response_tokens / (8 * 5000))
    flops = 2048 * np.mean([training_flops(model, [n + PROMPT_TOKENS], [n], [True]) for n in responses])
    assert step.train_s == pytest.approx(flops / (8 * 0.4 * 989e12))
    two = step_hours(*plan_of(), RATES, 16384)
    assert two.train_s == pytest.approx(step.train_s * 3.5 / 3, rel=1e-3), "half of it scores old log-probs as well"
    assert len(responses) == QUANTILES


def test_a_run_is_the_sum_of_its_steps_under_the_schedule():
    model, plan = plan_of()
    hours = run_hours(model, plan, RATES)
    step = step_hours(model, plan, RATES, 16384)
    assert hours.training == pytest.approx(8 * 10 * step.train_s / 3600)
    assert hours.total == pytest.approx(8 * 10 * (step.train_s + step.rollout_s) / 3600)
    stair = replace(CONFIG, schedule="stair", cycle=10, l_min=8192)
    low = step_hours(model, plan, RATES, 8192)
    both = run_hours(*plan_of(stair), RATES)
    assert both.rollout == pytest.approx(8 * 5 * (step.rollout_s + low.rollout_s) / 3600)
    assert [name for name, _ in both.steps] == ["L_max", "L_min"]


def test_decoding_reads_weights_and_cache():
    model, plan = plan_of()
    step = step_hours(model, plan, replace(RATES, tokens_per_s=0.0), 16384)
    slower = step_hours(model, plan, replace(RATES, tokens_per_s=0.0, bandwidth=RATES.bandwidth / 2), 16384)
    assert slower.tokens_per_s == pytest.approx(step.tokens_per_s / 2)
    big = step_hours(*plan_of(settings=R1_7B, gpus=16), replace(RATES, tokens_per_s=0.0), 16384)
    assert big.tokens_per_s < step.tokens_per_s / 2
    responses = response_lengths(16384)
    context = PROMPT_TOKENS + (responses**2).sum() / responses.sum() / 2
    count = min(256, plan.phases[0].cache_tokens / context)
    read = 2 * plan.parameters + count * context * 28_672
    assert step.tokens_per_s == pytest.approx(count * 0.25 * 3.35e12 / read)


def test_engines_have_prices_of_their_own():
    """The embedded engine samples in waves, and launches a kernel at a time: at a long cap many times as long."""
    model, plan = plan_of(rollout="local")
    rates = replace(RATES, tokens_per_s=0.0)
    embedded, vllm = (step_hours(model, plan_of(rollout=kind)[1], rates, 16384) for kind in ("local", "colocated"))
    assert embedded.rollout_s > 3 * vllm.rollout_s and embedded.train_s == vllm.train_s
    at_once = plan.phases[0].cache_tokens // (PROMPT_TOKENS + 16384)
    waves = -(-16 * 16 // min(256, at_once))
    assert embedded.rollout_s > waves * 0.8 * 16384 * 28 * LAYER_S
    assert step_hours(model, plan, RATES, 16384).tokens_per_s == 5000, "a speed that is given counts for all"


def test_servers_sample_elsewhere():
    step = step_hours(*plan_of(rollout="served"), RATES, 16384)
    assert step.rollout_s == step.tokens_per_s == 0 and step.train_s > 0


def siri_plan(*arguments: str) -> int:
    """The exit code of `siri plan siri-1.5b ARGUMENTS`."""
    return run_plan(resolve("siri-1.5b", PlanOptions, list(arguments), prog="siri plan siri-1.5b"))


def test_the_command_says_what_it_assumes(tmp_path, capsys):
    folder = str(save_tiny(tmp_path / "model"))
    assert siri_plan("--model", folder, "--assumed-mfu", "0.35", "--assumed-tokens-per-s", "1234") == 0
    out = capsys.readouterr().out
    for part in ("GPU-hours for 1,920 steps", "Assumed, not measured", "35% MFU", "346 TFLOP/s", "1,234 tokens/s"):
        assert part in out, part
    assert max(map(len, out.splitlines())) <= 80
    assert siri_plan("--model", folder, "--rollout", "local") == 0
    assert "25% of 3.35 TB/s" in capsys.readouterr().out
    assert siri_plan("--model", folder, "--gpu", "80e9") == 0
    assert "GPU-hours" not in capsys.readouterr().out, "nothing is known of the speed of such a GPU"
    for arguments in (["--assumed-mfu", "0"], ["--assumed-mfu", "40"], ["--assumed-tokens-per-s", "-1"]):
        with pytest.raises(InputError, match=r"assumed_\w+ is"):
            siri_plan("--model", folder, *arguments)
