"""Order of rollouts: expected lengths, dealing, limits, and the simulation that says what they save."""

import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from siri.commands import splits
from siri.commands.evaluate import EvalOptions
from siri.config import Config
from siri.errors import InputError
from siri.rollout import engines
from siri.rollout.order import ExpectedLengths, longest_first, sequences_in_flight, spread
from siri.runtime.ranks import Ranks
from siri.train.collect import deal

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))
import rollout_order


def test_expected_lengths_follow_the_last_epoch_and_the_cap(tmp_path):
    path = tmp_path / "lengths.jsonl"
    lengths = ExpectedLengths(path)
    assert lengths([1, 2], 100) == 50, "nothing is known yet"
    lengths.record(lengths.row([[1, 2], [3]], [80, 20]))
    assert (lengths([1, 2], 100), lengths([1, 2], 60), lengths([3], 60)) == (80, 60, 20)
    assert lengths([9], 100) == 50 and lengths([9], 60) == 40, "an unknown prompt is like the others under this cap"
    lengths.record(lengths.row([[1, 2]], [30]))
    assert lengths([1, 2], 100) == 30, "the newest counts"
    with path.open("a") as file:
        file.write('{"torn')
    again = ExpectedLengths(path)
    assert again.means == lengths.means and len(again.means) == 2
    again.record(again.row([[4]], [7]), write=False)
    assert len(path.read_text().splitlines()) == 3 and again([4], 100) == 7


def test_longest_first_keeps_equals_together():
    assert longest_first([3, 9, 3, 9, 1]) == [1, 3, 0, 2, 4]


@given(st.lists(st.floats(1, 1e4), min_size=1, max_size=60), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_spread_deals_every_prompt_once_and_evenly(expected, parts):
    dealt = spread(expected, parts)
    assert sorted(index for share in dealt for index in share) == list(range(len(expected)))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    sums = [sum(expected[index] for index in share) for share in dealt]
    assert max(sums) - min(sums) <= 2 * max(expected)


def test_ranks_share_the_work_by_length_once_it_is_known():
    ranks = Ranks(rank=1, size=2)
    prompts = [[i] for i in range(5)]
    engine = SimpleNamespace(expected=lambda prompts, cap: None)
    assert deal(engine, prompts, 9, ranks) == [[0, 1], [2, 3, 4]]
    engine = SimpleNamespace(expected=lambda prompts, cap: [9.0, 8.0, 1.0, 2.0, 3.0])
    assert deal(engine, prompts, 9, ranks) == [[0, 3, 2], [1, 4]]


def test_compression_has_more_in_flight_for_the_same_cache():
    at = {cap: sequences_in_flight(1_500_000, 1024, cap, 1024) for cap in (8192, 16384)}
    assert at == {8192: 162, 16384: 86}
    assert sequences_in_flight(10, 1024, 8192, 1024) == 1 and sequences_in_flight(10**9, 10, 10, 64) == 64


def brute(ordered, limit) -> tuple[float, float, int]:
    """The simulation token by token."""
    waiting, running, seconds, busy, peak = list(ordered), [], 0.0, 0.0, 0
    while waiting or running:
        while waiting and len(running) < limit:
            running.append([waiting.pop(0), 0])
        resident = sum(rollout_order.PROMPT_TOKENS + done for _, done in running)
        spent = rollout_order.OVERHEAD_S
        spent += (rollout_order.WEIGHT_BYTES + resident * rollout_order.TOKEN_BYTES) / rollout_order.BANDWIDTH
        seconds, busy = seconds + spent, busy + spent * len(running)
        for sequence in running:
            sequence[1] += 1
        peak = max(peak, sum(rollout_order.PROMPT_TOKENS + done for _, done in running))
        running = [sequence for sequence in running if sequence[1] < sequence[0]]
    return seconds, busy, peak


@pytest.mark.parametrize("seed", range(4))
def test_the_simulation_is_that_of_single_tokens(seed):
    chance = random.Random(seed)
    lengths = [chance.randint(1, 40) for _ in range(chance.randint(1, 30))]
    limit = chance.randint(1, 10)
    assert rollout_order.run(lengths, limit) == pytest.approx(brute(lengths, limit), rel=1e-9)


def test_knowing_the_lengths_saves_time_at_both_caps():
    """What the README says of the simulation: last epoch's lengths save some, the true ones more."""
    for cap in (8192, 16384):
        for kind in ("goal", "paper"):
            seconds = {
                order: np.mean([rollout_order.batch(kind, cap, order, "mean length", seed)[0] for seed in range(8)])
                for order in ("arrival", "last epoch", "true lengths")
            }
            assert seconds["true lengths"] < seconds["last epoch"] < 0.97 * seconds["arrival"]


@pytest.mark.parametrize("seed", range(3))
def test_the_simulation_of_splits_is_the_same_for_one_engine(monkeypatch, seed):
    """In turn, on one server whose places are fewer than the responses: it has those that end together end late, by up
    to a 200th of a mean length."""
    monkeypatch.setattr(rollout_order, "PROMPT_TOKENS", splits.PROMPT_TOKENS)
    lengths = rollout_order.lengths("goal", 8192, np.random.default_rng(seed))[0][:, :1]
    engine = replace(rollout_order.H100S, count=1, cache_tokens=int(40 * (splits.PROMPT_TOKENS + lengths.mean())))
    ordered = sorted(lengths.flatten().tolist(), reverse=True)
    limit = engine.places(float(lengths.mean()))
    assert 8 < limit < len(ordered) / 2
    seconds, busy, _ = rollout_order.run(ordered, limit)
    step, waits, idle = splits.simulate(engine, [lengths] * 5, 7.0, 0)
    assert step - 7.0 - splits.SYNC_S == pytest.approx(seconds, rel=0.02)
    assert waits == pytest.approx(seconds / step, rel=0.03)
    assert 1 - idle == pytest.approx(busy / (limit * step), rel=0.03)


def test_the_table_of_splits():
    config = Config(model="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", prompts_per_step=32, mini_batch_prompts=8)
    head, _, *rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rollout_order.split_table(
        config, 4, [0, 2], [])]  # fmt: skip
    rows = [dict(zip(head, row, strict=True)) for row in rows]
    assert [(row["cap"], row["GPUs"], row["staleness"]) for row in rows] == [
        (cap, *way) for cap in ("8192", "16384") for way in (("colocated", "0"), ("in turn", "0"), ("overlapped", "2"))
    ]
    for _, in_turn, overlapped in (rows[:3], rows[3:]):
        assert int(overlapped["seconds a step"]) < int(in_turn["seconds a step"]), "nobody waits where both can work"
        assert int(overlapped["servers"]) + int(overlapped["trainers"]) == 4


# --- which engine ---


def test_auto_takes_vllm_only_where_it_works(monkeypatch):
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(engines, "installed", lambda: "0.32.0")
    assert engines.engine_for(Config(), gpu) == "colocated" and engines.engine_for(Config(), cpu) == "local"
    assert engines.engine_for(Config(rollout="vllm"), cpu) == "colocated"
    assert engines.engine_for(Config(rollout_servers=("http://a:1",)), cpu) == "served"
    assert engines.engine_for(Config(rollout="local"), gpu) == "local"
    for other in (None, "0.20.0", "0.40.0"):
        monkeypatch.setattr(engines, "installed", lambda other=other: other)
        assert engines.engine_for(Config(l_max=2048, l_min=1024), gpu) == "local"


@pytest.mark.parametrize("version", [None, "0.20.0"])
def test_on_a_gpu_the_embedded_engine_is_taken_above_a_short_cap_only_by_name(monkeypatch, version):
    gpu = torch.device("cuda")
    monkeypatch.setattr(engines, "installed", lambda: version)
    for asked in (Config(), Config(l_max=2048, l_min=1024, eval_cap=2049), EvalOptions()):
        with pytest.raises(InputError, match=r"at a cap of \d+ tokens the embedded engine.*--rollout local"):
            engines.engine_for(asked, gpu)
        assert engines.engine_for(replace(asked, rollout="local"), gpu) == "local"
        assert engines.engine_for(asked, torch.device("cpu")) == "local"
    mode, line = engines.planned_engine(Config())
    assert mode == "colocated" and "cannot be used here" in line, "a plan may be made on another machine"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rollout_servers": ("node1:8000",)}, "'node1:8000' is no address such as http://node1:8000"),
        ({"rollout_servers": ("http://a:1", "http://a:1/")}, "names a server twice"),
        ({"rollout_servers": ("http://a:1",), "rollout": "local"}, "leave one of them out"),
        ({"rollout_memory": 1.0}, "rollout_memory is 1.0; it must be above 0 and below 1"),
        ({"rollout_sync": "files"}, "are for vLLM servers; name them with --rollout-servers"),
        ({"rollout_sync_dir": "x"}, "are for vLLM servers"),
        ({"rollout_tolerance": 0.0}, "rollout_tolerance is 0.0; it must be 'auto' or above 0"),
        ({"rollout_timeout_s": 0.0}, "rollout_timeout_s is 0.0; it must be above 0"),
        ({"rollout_sync_timeout_s": -1.0}, "rollout_sync_timeout_s is -1.0"),
        ({"rollout": "vllm", "rollout_tokens": 9}, "rollout_tokens is for the embedded engine"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(InputError) as error:
        Config(**settings)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_lengths_file_is_json_lines(tmp_path):
    lengths = ExpectedLengths(tmp_path / "l.jsonl")
    lengths.record(lengths.row([[1]], [2.04]))
    assert list(json.loads((tmp_path / "l.jsonl").read_text()).values()) == [2.0]


def test_runs_that_share_a_folder_for_weights_do_not_share_what_is_in_it(tmp_path):
    config = Config(model="m", rollout_servers=("http://a:1",), rollout_sync_dir=str(tmp_path / "shared"))
    runs = [tmp_path / "one" / "run", tmp_path / "two" / "run"]
    folders = [engines.vllm_options(config, 1, folder=run, context=99999).sync_dir for run in runs]
    assert folders[0] != folders[1] and {folder.parent for folder in folders} == {tmp_path / "shared"}
    assert folders[0] == engines.vllm_options(config, 8, folder=runs[0], context=99999).sync_dir, (
        "a resumed run's is the same"
    )
