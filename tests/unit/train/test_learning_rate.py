"""The learning rate over the steps of a run."""

import pytest

from siri.cli import main
from siri.schedule import learning_rate
from tests.support.training import rows, same_run, train


def rates(kind: str, steps: int, warmup: int) -> list[float]:
    return [learning_rate(kind, 2.0, step, steps, warmup) for step in range(steps)]


@pytest.mark.parametrize(
    ("kind", "warmup", "wanted"),
    [
        ("constant", 0, [2, 2, 2, 2, 2, 2]),
        ("constant", 4, [0.5, 1, 1.5, 2, 2, 2]),
        ("linear", 0, [2, 5 / 3, 4 / 3, 1, 2 / 3, 1 / 3]),
        ("linear", 2, [1, 2, 2, 1.5, 1, 0.5]),
        ("cosine", 0, [2, 1.8660254, 1.5, 1, 0.5, 0.1339746]),
        ("cosine", 2, [1, 2, 2, 1.7071068, 1, 0.2928932]),
    ],
)
def test_it_rises_and_falls_as_it_is_said(kind, warmup, wanted):
    assert rates(kind, 6, warmup) == pytest.approx(wanted)
    # a run that was asked to stop later than it does keeps its rate above 0; one beyond its steps has none
    assert learning_rate("linear", 2.0, 9, 6, 2) == 0 and learning_rate("cosine", 2.0, 9, 6, 2) == pytest.approx(0)


def test_a_run_trains_with_it_and_goes_on_with_it(tmp_path):
    settings = ["--lr-schedule", "linear", "--lr-warmup", "2", "--save-every", "1", "--quiet", "--steps", "4"]
    train(tmp_path / "whole", *settings)
    assert [row["lr"] for row in rows(tmp_path / "whole")] == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4])
    train(tmp_path / "cut", *settings, "--train-tokens", "500")
    done = len(rows(tmp_path / "cut"))
    assert 0 < done < 4
    train(tmp_path / "cut", *settings, "--train-tokens", "0", "--resume")
    same_run(tmp_path / "whole", tmp_path / "cut", "step_000004")
    plain = train(tmp_path / "plain", "--steps", "4", "--quiet")
    assert {row["lr"] for row in plain} == {1e-3} and plain[0]["reward_mean"] == rows(tmp_path / "whole")[0][
        "reward_mean"
    ]
    assert plain[-1]["grad_norm"] != rows(tmp_path / "whole")[-1]["grad_norm"]


def test_a_rate_that_is_never_reached_is_refused(tmp_path, capsys):
    assert main(["train", "demo", "--steps", "5", "--lr-warmup", "5", "--run-dir", str(tmp_path / "run")]) == 2
    assert "lr_warmup is 5, but steps is 5: the rate would never be reached" in capsys.readouterr().err
    assert main(["train", "demo", "--lr-schedule", "cosin", "--run-dir", str(tmp_path / "run")]) == 2
    assert "lr-schedule" in capsys.readouterr().err and not (tmp_path / "run").exists()
