"""What a GPU holds of an engine that sleeps: nothing, but torch goes on counting it."""

from types import SimpleNamespace

import pytest
import torch

from siri.config import Config
from siri.rollout.colocated import ColocatedEngine
from siri.train.run import Run

GB = 10**9


class Gpu:
    """Memory as the driver and as torch's allocator see it."""

    def __init__(self, monkeypatch, counted_asleep: int) -> None:
        self.free, self.reserved, self.peak = 10 * GB, 60 * GB, 0
        self.counted_asleep = counted_asleep
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (self.free, 80 * GB))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device=None: self.reserved)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device=None: None)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: self.peak)

    def sleep(self, level: int) -> None:
        """45 GB of vLLM's go, and 2 GB that the trainer's allocator merely kept."""
        self.free += 47 * GB
        self.reserved -= 2 * GB + 45 * GB - self.counted_asleep


@pytest.mark.parametrize("counted", [45 * GB, 0])
def test_the_peak_of_an_update_leaves_out_what_sleeps(monkeypatch, counted):
    gpu = Gpu(monkeypatch, counted)
    engine = object.__new__(ColocatedEngine)
    engine.gpu, engine.asleep, engine.device, engine.memory = True, False, torch.device("cuda"), {}
    engine.llm = SimpleNamespace(sleep=gpu.sleep)
    engine.sleep()
    assert engine.metrics()["rollout_memory_asleep"] == counted
    gpu.peak = 20 * GB + counted
    run = object.__new__(Run)
    run.watch, run.memory, run.device, run.state = _timed, object(), torch.device("cuda"), {"sampler": {}}
    run.config, run.engine, run.optimizer = Config(), engine, SimpleNamespace(param_groups=[])
    run.trace, run.progress = None, SimpleNamespace(stage=_timed)
    run.judge = SimpleNamespace(begin=lambda *_: None)
    run.learner = SimpleNamespace(update=lambda samples: SimpleNamespace(metrics={}))
    monkeypatch.setattr("siri.train.run.make_samples", lambda config, groups: [])
    update = run.learn(SimpleNamespace(number=0), [])
    assert update.metrics["memory_peak"] == 20 * GB


class _Timed:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def _timed(name):
    return _Timed()
