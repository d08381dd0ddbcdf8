"""What a later version of a library will refuse is an error in our code today, also in processes that tests start."""

import inspect
import subprocess
import sys
import warnings

import pytest
import torch

from tests.support.tiny import tiny_model

KINDS = [DeprecationWarning, PendingDeprecationWarning, FutureWarning]
OURS = ["siri", "siri.rollout.local", "siri_kernels.api", "bench.train_step", "tests.support.tiny"]
RAISE = "import sys, warnings; warnings.warn_explicit('going', {}, 'file.py', 1, module='{}')"
WARNED = "`old` is deprecated and will be removed"


@pytest.mark.parametrize("kind", KINDS)
def test_our_modules_may_not_ask_for_what_is_going(kind):
    for module in OURS:
        with pytest.raises(kind):
            warnings.warn_explicit("going", kind, "file.py", 1, module=module)
    with pytest.warns(kind):
        warnings.warn_explicit("going", kind, "file.py", 1, module="sirius.core")


def test_nor_what_transformers_calls_deprecated():
    with pytest.raises(FutureWarning):
        warnings.warn_explicit(WARNED, FutureWarning, "file.py", 1, module="transformers.models.qwen2.modeling_qwen2")
    with pytest.warns(FutureWarning):
        warnings.warn_explicit(WARNED, FutureWarning, "file.py", 1, module="trl.trainer")


@pytest.mark.parametrize(("module", "code"), [("siri.cli", 1), ("siri_kernels", 1), ("numpy.core", 0)])
def test_a_process_that_a_test_starts_obeys(module, code):
    child = [sys.executable, "-c", RAISE.format("DeprecationWarning", module)]
    done = subprocess.run(child, capture_output=True, text=True, timeout=60)
    assert done.returncode == code and ("DeprecationWarning: going" in done.stderr) == bool(code), done.stderr


@pytest.mark.skipif(
    "cache" not in inspect.signature(tiny_model().model.forward).parameters,
    reason="this version of transformers does not deprecate past_key_values",
)
def test_the_old_name_of_the_cache_is_an_error():
    from transformers import DynamicCache

    model = tiny_model()
    with pytest.raises(FutureWarning, match="past_key_values"):
        model.model(input_ids=torch.arange(4)[None], past_key_values=DynamicCache(config=model.config))


def test_a_run_has_nothing_to_say_on_standard_error(tmp_path):
    """Libraries that do not go through Python's warnings write there too."""
    sizes = ["--prompts-per-step", "4", "--group-size", "4", "--eval-problems", "4", "--eval-samples", "1"]
    run = [
        "train",
        "demo",
        "--steps",
        "2",
        "--cycle",
        "2",
        *sizes,
        "--checkpointing",
        "full",
        "--run-dir",
        str(tmp_path),
    ]
    done = subprocess.run([sys.executable, "-m", "siri", *run], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
