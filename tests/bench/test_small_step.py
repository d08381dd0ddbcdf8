"""bench/small_step.py: what it prints of two trees, and that it does not pass over other losses."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(monkeypatch):
    spec = importlib.util.spec_from_file_location("small_step", ROOT / "bench" / "small_step.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def said(collect: float, learn: float, losses=(0.5, 0.25)) -> dict:
    return {"seconds": {"collect": [collect, collect], "learn": [learn, learn]}, "losses": list(losses)}


def run(bench, monkeypatch, after: dict, capsys) -> tuple[int, str]:
    trees = []

    def measured(tree, task, steps):
        trees.append(tree)
        return after if tree == bench.ROOT else said(0.2, 0.1)

    def archive(command, **options):
        return subprocess.CompletedProcess(command, 0)

    class Packed:
        stdout = None

        def __init__(self, command, **options):
            assert command[3:] == ["archive", "abc", "siri", "kernels"]

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return False

    monkeypatch.setattr(bench, "measured", measured)
    monkeypatch.setattr(bench.subprocess, "run", archive)
    monkeypatch.setattr(bench.subprocess, "Popen", Packed)
    monkeypatch.setattr(sys, "argv", ["small_step.py", "abc", "--tasks", "demo", "--rounds", "2"])
    with pytest.raises(SystemExit) as left:
        bench.main()
    assert [tree == bench.ROOT for tree in trees] == [False, True] * 2, "turn about"
    return left.value.code, capsys.readouterr().out


def test_both_trees_are_measured_turn_about(bench, monkeypatch, capsys):
    code, text = run(bench, monkeypatch, said(0.1, 0.1), capsys)
    assert code == 0
    assert "| demo | collect | 200 | 100 | 0.50 |" in text and "| demo | learn | 100 | 100 | 1.00 |" in text
    assert "| demo | both | 300 | 200 | 0.67 |" in text


def test_other_losses_are_told_and_end_with_1(bench, monkeypatch, capsys):
    code, text = run(bench, monkeypatch, said(0.1, 0.1, (0.5, 0.2500001)), capsys)
    assert code == 1 and "demo: the losses differ" in text
