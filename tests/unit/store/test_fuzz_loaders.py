"""Config, data, run folders and checkpoints from hostile hands: clear errors, and nothing in them is executed."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from siri.config import Config
from tests.support import fuzz_targets

pytestmark = pytest.mark.torture
EXAMPLES = 60
FUZZED = [json.loads(line) for line in Path(__file__).with_name("fuzzed.jsonl").read_text().splitlines()]
"""What ended a coverage-guided run."""

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("\ud800")
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
columns = st.sampled_from(
    ["problem", "answer", "prompt", "question", "reward_model", "ground_truth", "role", "content"]
)
messages = st.lists(st.fixed_dictionaries({"role": scalars, "content": scalars}), max_size=3)
rows = st.lists(
    st.dictionaries(columns | st.text(max_size=5), values | messages, max_size=5)
    | st.fixed_dictionaries({"problem": values | messages, "answer": values}),
    max_size=5,
)
keys = st.sampled_from(list(Config.__dataclass_fields__)) | st.text(max_size=6)
toml_values = st.one_of(
    *(st.integers(-3, 5), st.integers(), st.floats(), st.booleans(), st.text(max_size=10)),
    *(
        st.just("auto"),
        st.lists(st.integers(0, 9), max_size=3),
        st.lists(st.lists(st.integers(0, 9), max_size=2), max_size=2),
    ),
)
quick = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def toml(value) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, float):
        return {"inf": "inf", "-inf": "-inf", "nan": "nan"}.get(str(value), repr(value))
    return json.dumps(value)


@quick
@given(rows, st.sampled_from(["json", "jsonl"]), st.booleans())
def test_data_of_any_shape(some, suffix, ascii_only):
    text = json.dumps(some) if suffix == "json" else "\n".join(map(json.dumps, some))
    fuzz_targets.problems(text.encode(), suffix)


@quick
@given(st.dictionaries(keys, toml_values, max_size=5))
def test_recipes_of_any_shape(some):
    fuzz_targets.recipe("\n".join(f"{json.dumps(key)} = {toml(value)}" for key, value in some.items()).encode())


@quick
@given(st.dictionaries(keys | st.just("step"), values, max_size=4), st.integers(0, 2))
def test_run_folders_of_any_shape(some, pad):
    fuzz_targets.run_folder(json.dumps(some).encode() + b" " * pad)


@quick
@given(
    st.recursive(st.dictionaries(st.text(max_size=8) | st.just("state.json"), values, max_size=3), st.lists),
    st.integers(0, 2),
)
def test_checkpoints_of_any_shape(some, pad):
    fuzz_targets.checkpoint(json.dumps(some).encode() + b" " * pad)


@quick
@given(st.sampled_from(sorted(fuzz_targets.TARGETS)), st.data())
def test_good_files_with_bytes_changed(name, data):
    text = bytearray(data.draw(st.sampled_from(fuzz_targets.seeds()[name])))
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    fuzz_targets.TARGETS[name](bytes(text))


@pytest.mark.parametrize("name", ["json", "jsonl", "recipe", "run_folder", "checkpoint"])
@pytest.mark.parametrize(
    "data",
    [
        *(
            b"",
            b"\x00",
            b"\xff\xfe",
            b"[" * 10**5,
            b'{"a":' * 10**5,
            b"9" * 10**4,
            b"[" + b"9" * 10**4 + b"]",
            b"NaN",
            b"1e999",
        ),
        *(b"a = " + b"[" * 10**4, b"a = " + b"9" * 10**4, b"a." * 10**4 + b"a = 1", b'"\\ud800"', b"a = 1979-05-27"),
        b'[{"problem": "\\ud800", "answer": "\\udfff"}]',
        b'[{"problem": "1", "answer": ' + b"[" * 900 + b"1" + b"]" * 900 + b"}]",
        b'[{"problem": "1", "answer": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}]",
        b'[{"problem": "1", "answer": ' + b"9" * 4300 + b"}]",
        b"cos\nsystem\n(S'touch made'\ntR.",
    ],
    ids=range(19),
)
def test_known_tricks(name, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for padding in range(3):
        fuzz_targets.TARGETS[name](data + b" " * padding)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", FUZZED, ids=[f"{case['target']} {number}" for number, case in enumerate(FUZZED)])
def test_what_the_fuzzer_found(case):
    fuzz_targets.TARGETS[case["target"]](base64.b64decode(case["base64"]))


@pytest.mark.parametrize("name", sorted(fuzz_targets.TARGETS))
def test_coverage_guided(name, torture, long, fault):
    """Ten minutes over all targets in the long form; a few seconds of one of them otherwise."""
    pytest.importorskip("atheris", reason="the coverage-guided fuzzer is an extra: pip install -e '.[torture]'")
    if not torture and name != "jsonl":
        pytest.skip("only in make torture")
    seconds = long(5, 600 // len(fuzz_targets.TARGETS))
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.fuzz_targets", name, str(seconds)],
        capture_output=True,
        text=True,
        timeout=seconds + 120,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    last = [line for line in run.stderr.splitlines() if line.startswith(("#", "Done"))][-1]
    fault(f"coverage-guided fuzzing: {name}", f"{seconds} s", last.strip()[:70])
