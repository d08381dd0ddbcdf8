"""Checks of an engine in this process: python -m tests.vllm.colocated_worker MODEL FOLDER TIED."""

import sys
from pathlib import Path

import pytest
import torch

from siri.errors import InputError
from siri.rollout import colocated, worker
from tests.vllm.checks import TEMPERATURE, assert_current, assert_follows, make, requests, step


def main(model: Path, folder: Path, tied: bool) -> None:
    policy, engine = make(model, folder)
    assert any("sleeps on GPUs only" in note for note in engine.notes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.backend, "load", lambda weights, version: list(weights))
        with pytest.raises(InputError, match="does not sample"):  # it starts with random weights
            engine.sync()
    engine.sync()
    assert_current(policy, engine)
    assert_current(policy, engine, temperature=1.0)
    assert_current(policy, engine, temperature=0)
    once, again = (engine.generate(requests(), temperature=TEMPERATURE, seed=7) for _ in range(2))
    assert once == again != engine.generate(requests(), temperature=TEMPERATURE, seed=8)
    engine.sleep()
    engine.wake()
    assert_follows(policy, engine)
    assert_weights_load_under_the_engines_configuration(policy, engine)
    assert_head_is_renewed(policy, engine, tied)
    assert_damage_is_named(policy, engine)
    assert_failure_leaves_nothing_behind(policy, engine)
    figures = engine.metrics()
    assert 0 <= figures["rollout_idle_time_share"] < 1 and figures["rollout_in_flight"] == 18
    assert (folder / "lengths.jsonl").read_text().count("\n") > 3
    engine.close()


def assert_weights_load_under_the_engines_configuration(policy, engine) -> None:
    """vLLM's layers look it up while they load; only its worker's method sets it, not that of its model runner."""
    from vllm.config import get_current_vllm_config_or_none

    model, seen = engine.backend.engine.model_executor.driver_worker.worker.model_runner.get_model(), []
    real = model.load_weights

    def load_weights(weights):
        seen.append(get_current_vllm_config_or_none())
        return real(weights)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "load_weights", load_weights)
        engine.sync()
    assert seen and all(config is engine.backend.engine.vllm_config for config in seen)


def assert_head_is_renewed(policy, engine, tied: bool) -> None:
    """With tied embeddings vLLM's reload on a CPU leaves the repacked head behind; checksums cannot see it, the
    fingerprint has to. Untied the head gets a weight of its own and is right without help."""
    step(policy)
    head = engine.backend.engine.model_executor.driver_worker.worker.model_runner.get_model().lm_head
    real = worker.load

    def without_renewal(inside, weights):
        sums = {}

        def counted():
            for name, tensor in weights:
                sums[name] = worker.checksum(tensor)
                yield name, tensor

        inside.reload_weights(weights_iterator=counted())
        return sums

    assert head is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(colocated, "load", without_renewal)
        if tied:
            with pytest.raises(InputError, match="does not sample from the trainer's weights"):
                engine.sync()
        else:
            engine.sync()
    assert colocated.load is real
    engine.sync()
    assert_current(policy, engine)


def assert_damage_is_named(policy, engine) -> None:
    def damaged(inside, weights):
        sums = worker.load(inside, weights)
        with torch.no_grad():
            inside.model_runner.get_model().model.norm.weight[3] += 1e-3
        return sums

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(colocated, "load", damaged)
        with pytest.raises(InputError, match=r"does not hold what was sent: model\.norm\.weight"):
            engine.sync()
    engine.sync()


def assert_failure_leaves_nothing_behind(policy, engine) -> None:
    """An engine that fails in the middle of a batch says so, and the next batch is whole."""
    inner, calls = engine.backend.engine, []

    def failing():
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of luck")
        return type(inner).step(inner)

    inner.step = failing
    with pytest.raises(InputError, match="out of luck"):
        engine.generate(requests(), temperature=TEMPERATURE, seed=1)
    del inner.step
    assert not inner.has_unfinished_requests()
    assert_current(policy, engine)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "1")
    print("all held")
