"""`siri replay` of bundles whose hashes fit and whose content is absurd: one line, and exit 2."""

import json
import shutil
from pathlib import Path

import pytest

from siri import cli
from siri.commands.replay import replay
from siri.errors import InputError
from tests.support.structured import changed, mutants, rewrite

GOLDEN = Path(__file__).parents[2] / "golden" / "run_0.1.0" / "postmortem" / "step_000001"
STATE = json.loads((GOLDEN / "state.json").read_text())
WIDTH = len(STATE["bundle"]["plan"][0])

pytestmark = pytest.mark.torture


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("postmortem") / "step_000001"
    shutil.copytree(GOLDEN, path)
    return path


ABSURD = {
    "a token beyond the vocabulary": (("samples", 0, "response_ids", 0), 10**9, "a token id is none of the model's"),
    "a negative token": (("samples", 0, "prompt_ids", 0), -1, "a token id is none of the model's"),
    "token ids that are none": (("samples", 0, "prompt_ids"), ["a"], "token ids of sample 0"),
    "no response": (("samples", 0, "response_ids"), [], "token ids of sample 0"),
    "too few log-probs": (("samples", 0, "rollout_logp"), [0.0], "one log-prob for each token"),
    "an advantage in words": (("samples", 0, "advantage"), "much", "the advantage of sample 0"),
    "a sample that is not there": (("plan", 0, 0), [10**6], "a sample beyond"),
    "a sample from the end": (("plan", 0, 0), [-1], "a sample beyond"),
    "no plan": (("plan",), [], "no samples, or no plan"),
    "more ranks in one step": (("plan", 0), [[0]] * (WIDTH + 1), "same ranks|old log-probs"),
    "log-probs of other ranks": (("old_logps",), [{}] * (WIDTH + 1), "old log-probs"),
    "a million threads": (("threads",), 10**6, "number of threads"),
    "random numbers of nobody": (("rng", "torch"), "zz", "random numbers"),
    "a short state": (("rng", "torch"), "00", "cannot be run here"),
    "a divisor of nothing": (("denominator",), 0, "divisor"),
    "a divisor that is none": (("denominator",), float("nan"), "divisor"),
    "a loss in words": (("loss",), "large", "its loss is no number"),
    "no settings": (("config",), None, "another version"),
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_bundles_are_one_line(bundle, capsys, name):
    path, value, words = ABSURD[name]
    rewrite(bundle, "state.json", changed(STATE, ("bundle", *path), "set", value))
    with pytest.raises(InputError, match=words):
        replay(bundle)
    assert cli.main(["replay", str(bundle)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(bundle) in error


def test_a_model_of_absurd_sizes(bundle):
    rewrite(bundle, "state.json", STATE)
    model = json.loads((GOLDEN / "config.json").read_text())
    try:
        for key, value in (
            ("hidden_size", 10**9),
            ("vocab_size", 10**12),
            ("num_hidden_layers", -1),
            ("hidden_size", 7),
        ):
            rewrite(bundle, "config.json", {**model, key: value})
            with pytest.raises(InputError):
                replay(bundle)
    finally:
        rewrite(bundle, "config.json", model)


def test_mutants_of_a_bundle_end_in_one_line_or_are_run(bundle, long, fault):
    """Behind the checksums: every hash is made anew."""
    kept = {key: value for key, value in STATE["bundle"].items() if key not in ("rng", "metrics")}
    refused = ran = 0
    for what, mutant in mutants(kept, long(24, 400), seed=1):
        rest = mutant if not isinstance(mutant, dict) else {"rng": STATE["bundle"]["rng"], **mutant}
        rewrite(bundle, "state.json", {**STATE, "bundle": rest})
        try:
            replay(bundle)
            ran += 1
        except InputError as error:
            assert "\n" not in str(error), what
            refused += 1
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    assert refused
    fault("bundles behind their checksums", f"{refused + ran} mutants", f"{refused} refused in one line, {ran} run")
