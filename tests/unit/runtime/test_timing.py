"""Time of the parts of a step, and utilisation against the data sheet."""

import json

import pytest
import torch

from siri.planning.gpus import model_flops_utilisation
from siri.runtime import stopwatch as timing
from siri.runtime.stopwatch import Stopwatch, profiled


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """A clock that is put forward by hand."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def test_parts_add_up_nest_and_start_again(clock):
    watch = Stopwatch(torch.device("cpu"))
    with watch("outer"):
        for _ in range(3):
            with watch("inner"):
                clock[0] += 0.25
        clock[0] += 0.5
    assert watch.seconds() == {"outer_s": 1.25, "inner_s": 0.75}
    assert watch.seconds() == {}


def test_laps_pair_each_start_with_its_end(clock):
    watch = Stopwatch(torch.device("cpu"))
    for pause in (0.25, 1.0):
        with watch("forward"):
            clock[0] += pause
        clock[0] += 0.125
        with watch("backward"):
            clock[0] += 0.5
    assert watch.laps("forward", "backward") == [0.875, 1.625]
    assert watch.seconds() == {"forward_s": 1.25, "backward_s": 1.0} and watch.laps("forward", "x") == []


def test_utilisation(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    share = model_flops_utilisation(3 * 989e12, seconds=6.0, gpus=2, device=torch.device("cuda"))
    assert share == pytest.approx(3 * 989e12 / (6 * 2 * 989e12)) == 0.25
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe")
    assert model_flops_utilisation(756e12, 1.0, 1, torch.device("cuda")) == 1, "not the peak of the SXM module"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    assert model_flops_utilisation(1e15, 1.0, 1, torch.device("cuda")) is None
    assert model_flops_utilisation(1e15, 1.0, 1, torch.device("cpu")) is None


def test_profile_of_a_block(tmp_path):
    watch = Stopwatch(torch.device("cpu"))
    with profiled(None, watch):
        pass
    with profiled(tmp_path / "trace.json", watch):
        torch.ones(4, 4) @ torch.ones(4, 4)
    assert watch.after is None
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert any("aten::mm" in event.get("name", "") or "aten::matmul" in event.get("name", "") for event in events)


def test_a_profile_does_not_grow_with_the_update(tmp_path):
    """Of a step with 50 micro-steps as many are recorded as of one with five."""

    def traced(micro_steps: int) -> int:
        watch = Stopwatch(torch.device("cpu"))
        with profiled(tmp_path / f"{micro_steps}.json", watch):
            for _ in range(micro_steps):
                with watch("forward"):
                    torch.ones(4, 4) @ torch.ones(4, 4)
                with watch("backward"):
                    torch.ones(4, 4) @ torch.ones(4, 4)
        assert [name for name, *_ in watch.spans] == ["forward", "backward"] * micro_steps
        events = json.loads((tmp_path / f"{micro_steps}.json").read_text())["traceEvents"]
        return sum(event.get("name") == "aten::mm" for event in events)

    assert traced(2) == 4 and traced(5) == traced(50) == 6
