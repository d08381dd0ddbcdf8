"""`python -m siri_kernels.bench`: shapes of one's own, without the repository."""

import json
import math
import sys

import pytest
import siri_kernels
from siri_kernels import bench

from tests.support import warm

SHAPE = ("--tokens", "37", "--hidden", "12", "--vocab", "301", "--device", "cpu", "--rounds", "1")


def test_it_measures_the_shapes_it_was_given_from_anywhere(tmp_path):
    out = tmp_path / "rows.json"
    command = [sys.executable, "-m", "siri_kernels.bench", *SHAPE, "--json", str(out)]
    done = warm.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert (record["size"], record["dtype"], record["siri_kernels"]) == (
        "37 x 12 x 301",
        "float32",
        siri_kernels.__version__,
    )
    rows = record["rows"]
    names = ["matrix products", "siri-kernels", "full fp32 logits"]
    assert [(row["op"], row["impl"]) for row in rows] == [
        (op, n) for op in ("forward", "forward_backward") for n in names
    ]
    for row in rows:
        assert row["ms"] > 0 and row["extra_bytes"] is None
        floor = next(other for other in rows if other["op"] == row["op"])
        assert math.isclose(row["ratio_to_gemm"], row["ms"] / floor["ms"])
        assert (row["max_error"] is None) == (row["impl"] == "matrix products")
        assert row["max_error"] is None or row["max_error"] < 1e-4
    shown = done.stdout.splitlines()
    assert "37 x 12 x 301" in shown[0] and len(shown) == 1 + 1 + len(rows) + 1 and shown[-1] == str(out)


def test_a_wrong_result_is_no_measurement(monkeypatch, capsys):
    def off(*args, return_entropy=False, **options):
        logp, entropy = siri_kernels.linear_logprob(*args, **options, return_entropy=True)
        return (logp + 1e-3, entropy) if return_entropy else logp

    monkeypatch.setattr(bench, "linear_logprob", off)
    assert bench.main(SHAPE) == 1
    said = capsys.readouterr().err
    assert "forward: siri-kernels is 0.001" in said and "off fp64" in said


@pytest.mark.parametrize(
    "wrong",
    [("--tokens", "0"), ("--hidden", "-3"), ("--vocab", "1.5"), ("--rounds", "x"), ("--dtype", "fp8")],
)
def test_bad_numbers_are_named(wrong, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main(wrong)
    assert stopped.value.code == 2 and wrong[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(("--impl", "nonsense"), "not one of"), (("--json", "/no/such/folder/x.json"), "/no/such/folder")],
)
def test_bad_words_end_with_two_in_one_line(wrong, said, capsys):
    assert bench.main((*SHAPE, *wrong)) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_help_says_what_is_measured(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--help"])
    text = capsys.readouterr().out
    assert all(word in text for word in ("--tokens", "--hidden", "--vocab", "fp64", "full fp32 logits"))
