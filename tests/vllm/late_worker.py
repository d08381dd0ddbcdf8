"""The colocated engine under vLLM's asynchronous scheduling: python -m tests.vllm.late_worker MODEL FOLDER."""

import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from siri.errors import InputError
from siri.rollout import colocated
from siri.runtime.signals import Interrupted
from tests.vllm import late_executor
from tests.vllm.checks import TEMPERATURE, assert_current, make, requests, step


def main(model: Path, folder: Path) -> None:
    late_executor.switch_on()
    real = colocated.engine_options

    def options(*arguments, **more):
        # blocks so short that prompts share some
        late = {"distributed_executor_backend": late_executor.LateExecutor, "block_size": 8}
        return real(*arguments, **more) | late

    with patch.object(colocated, "engine_options", options):
        policy, engine = make(model, folder)
    core = engine.backend.engine.engine_core.engine_core
    runner = core.model_executor.runner
    assert core.async_scheduling and core.batch_queue_size == 2
    engine.sync()
    assert_current(policy, engine)
    assert_current(policy, engine, temperature=0)
    assert_batch_left_over_is_harmless(policy, engine, core)
    assert_abort_is_harmless(policy, engine, core)
    assert_sleep_is_harmless(policy, engine, core)
    assert not runner.stale, "keys of older weights were read"
    assert_old_keys_would_be_seen(policy, engine, core)
    engine.close()


def assert_batch_left_over_is_harmless(policy, engine, core) -> None:
    """When the last response is there, a batch is under way that was scheduled before its end was known."""
    left = []
    for seed in (7, 7, 8):
        answers = engine.generate(requests(), temperature=TEMPERATURE, seed=seed)
        left.append((answers, len(core.batch_queue)))
    assert any(batches for _, batches in left), "no batch was left over: this test shows nothing"
    assert left[0][0] == left[1][0] != left[2][0], "the same seeds, with a batch left over or without"
    step(policy)
    engine.sync()  # in between
    assert engine.metrics()["fingerprint_gap_max"] < 1e-3
    assert_current(policy, engine)


def assert_abort_is_harmless(policy, engine, core) -> None:
    """A signal, or a fault, in the middle of a rollout; then a rollout at once, or a sync first."""
    for sync_first in (False, True):
        for error in (Interrupted("stop"), RuntimeError("out of luck")):
            calls = []

            def interrupted(*_, error=error, calls=calls, **__):
                calls.append(1)
                if len(calls) == 6:
                    raise error
                return type(engine.backend.engine).step(engine.backend.engine)

            engine.backend.engine.step = interrupted
            kind = Interrupted if isinstance(error, Interrupted) else InputError
            with pytest.raises(kind):
                engine.generate(requests(), temperature=TEMPERATURE, seed=1)
            del engine.backend.engine.step
            assert core.batch_queue and core.model_executor.runner.in_flight, "nothing was under way"
            assert not engine.backend.engine.has_unfinished_requests()
            if sync_first:
                step(policy)
                engine.sync()
            assert_current(policy, engine)


def assert_sleep_is_harmless(policy, engine, core) -> None:
    """As on a GPU: the engine sleeps with a batch left over, and is woken by the sync."""
    executor, backend = core.model_executor, engine.backend
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.cuda, "mem_get_info", lambda device=None: (2**30, 2**31))
        patched.setattr(torch.cuda, "memory_reserved", lambda device=None: 0)
        patched.setattr(torch.cuda, "empty_cache", lambda: None)
        backend.gpu = True
        for seed in range(3):
            engine.generate(requests(), temperature=TEMPERATURE, seed=seed)
            executor.calls.clear()
            engine.sleep()
            assert executor.calls.index("synchronize_device") < executor.calls.index("sleep")
            assert executor.sleeping_tags == {"weights", "kv_cache"}
            with pytest.raises(InputError, match="has to be synced before it samples"):
                engine.wake()
            step(policy)
            engine.sync()
            assert not executor.is_sleeping and not core.is_scheduler_paused()
            engine.wake()
            assert_current(policy, engine)
    backend.gpu = False


def assert_old_keys_would_be_seen(policy, engine, core) -> None:
    """A sync that leaves the prefix cache as it is."""
    engine.generate(requests(), temperature=TEMPERATURE, seed=1)
    step(policy)
    with patch.object(engine.backend.llm, "reset_prefix_cache", lambda: True):
        engine.sync()
    engine.generate(requests(), temperature=TEMPERATURE, seed=1)
    assert core.model_executor.runner.stale


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    print("all held")
