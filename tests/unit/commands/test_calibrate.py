"""`siri bench calibrate`: a known ratio is found; the command times the trainer's path and writes what it reads."""

import json

import pytest
import torch

from siri.cli import main
from siri.commands import calibrate
from siri.commands.calibrate import fit_ratio, pack_times
from siri.errors import InputError
from siri.model import liger
from siri.packing.flops import forward_flops, read_cost_ratio
from tests.support.tiny import save_tiny, tiny_model

PACKS = [(16, 64), (4, 256), (1, 1024)]


def seconds_at(ratio, config, noise=()):
    layers, head, attention = forward_flops(config)
    times = [1e-12 * (n * length * (layers + head) + ratio * n * length**2 * attention) for n, length in PACKS]
    return [seconds * (1 + off) for seconds, off in zip(times, noise or [0.0] * 3, strict=True)]


@pytest.mark.parametrize("ratio", [0.4, 1.0, 2.7])
def test_a_known_ratio_is_found(ratio):
    config = tiny_model().config
    ratio_fitted, error = fit_ratio(config, PACKS, seconds_at(ratio, config))
    assert ratio_fitted == pytest.approx(ratio) and error < 1e-9
    ratio_fitted, error = fit_ratio(config, PACKS, seconds_at(ratio, config, noise=(0.02, -0.02, 0.02)))
    assert 0.005 < error < 0.04 and ratio_fitted == pytest.approx(ratio, rel=0.3)


def test_times_that_do_not_grow_are_refused():
    with pytest.raises(InputError, match="do not grow with the length"):
        fit_ratio(tiny_model().config, PACKS, [3.0, 2.0, 1.0])


def test_the_median_of_rounds_after_a_warm_up(monkeypatch):
    clock, ran = [0.0], []
    monkeypatch.setattr(calibrate.time, "perf_counter", lambda: clock[0])

    def run(pack):
        clock[0] += 100.0 if len(ran) < 2 else pack * (1 + len(ran) // 4)
        ran.append(pack)

    # rounds take 1, 2 (the warm-up is slow and does not count)
    assert pack_times([1, 10], run, torch.device("cpu"), 3) == [2, 20]
    assert ran == [1, 10] * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("model"), max_position_embeddings=4096))


def command(folder, *more):
    return ["bench", "calibrate", "siri-1.5b", "--model", folder, "--device", "cpu", "--checkpointing", "none", *more]


def test_the_command_writes_what_a_run_reads(folder, tmp_path, capsys):
    out = tmp_path / "ratio.json"
    lengths = ("--lengths", "32", "256", "2048", "--repeats", "2", "--layers", "1")
    assert main(command(folder, *lengths, "--out", str(out))) == 0
    calibration = json.loads(out.read_text())
    assert read_cost_ratio(str(out)) == calibration["cost_ratio"] > 0
    assert (calibration["lengths"], calibration["tokens"], calibration["layers"]) == ([32, 256, 2048], 2048, 1)
    assert len(calibration["ms"]) == 3 and calibration["device"] == "cpu" and calibration["attention"] == "sdpa"
    assert f"--cost-ratio {out}" in capsys.readouterr().out


def test_it_says_what_liger_leaves_out(folder, tmp_path, monkeypatch, capsys):
    applied = liger.Applied(("RoPE",), ("left out",))
    monkeypatch.setattr("siri.train.setup.apply_liger", lambda model, choice, device: applied)
    monkeypatch.setattr(calibrate, "pack_times", lambda packs, run, device, repeats: [1.0, 2.0, 3.0])
    out = tmp_path / "ratio.json"
    assert main(command(folder, "--lengths", "32", "256", "2048", "--out", str(out))) == 0
    assert capsys.readouterr().out.startswith("left out\n") and json.loads(out.read_text())["liger"] is True


def test_the_packs_are_those_of_the_recipe(folder, tmp_path, monkeypatch):
    """All of the longest prompt and cap, and its parts, in packs of equally many tokens."""
    seen = []

    def times(packs, run, device, repeats):
        seen.extend(pack.layout.cu_seqlens.diff().tolist() for pack in packs)
        run(packs[0])
        return [1.0, 2.0, 3.0, 4.0]

    monkeypatch.setattr(calibrate, "pack_times", times)
    sizes = ("--l-max", "100", "--l-min", "50", "--max-prompt-tokens", "28")
    assert main(command(folder, *sizes, "--out", str(tmp_path / "ratio.json"))) == 0
    assert seen == [[8] * 16, [32] * 4, [64] * 2, [128]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bench", "calibrate"], "needs a recipe"),
        (["bench", "calibrate", "siri-2b"], "unknown recipe"),
        (["--lengths", "64"], "at least two lengths"),
        (["--lengths", "1", "64"], "at least two lengths"),
        (["--lengths", "64", "128", "--tokens", "100"], "less than the longest of the lengths, 128"),
        (["--layers", "3"], "the model has 2"),
        (["--repeats", "0"], "repeats is 0"),
        (["--out", "/nowhere/x.json"], "no such folder"),
    ],
)
def test_bad_options_are_one_line(folder, arguments, says, capsys):
    whole = arguments if arguments[0] == "bench" else command(folder, *arguments)
    assert main(whole) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
