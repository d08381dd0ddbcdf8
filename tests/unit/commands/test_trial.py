"""The reward is tried in a dry run: on gold and on a wrong answer."""

from types import SimpleNamespace

import pytest

from siri import cli
from siri.commands.trial import WRONG, try_reward
from siri.config import Config
from siri.errors import InputError
from siri.rewards.pool import RewardBatch, RewardPool
from siri.train.edges import idle_gpus, memory_figures
from tests.support.training import SMALL


class Grades:
    """A pool whose reward is any function, here."""

    def __init__(self, function):
        self.function = function

    def score(self, responses, answers):
        batch = RewardBatch([])
        for response, answer in zip(responses, answers, strict=True):
            try:
                batch.rewards.append(self.function(response, answer))
            except Exception as error:
                batch.rewards.append(0.0)
                batch.count_error(repr(error))
        return batch


def mine(**more):
    return Config(model="m", data="d", reward="mine:reward", **more)


@pytest.mark.parametrize("think", [True, False])
def test_built_in_rewards_know_their_answers(think):
    for reward, answers, said in (
        ("math", ["1/2", "x"], r"1 for The answer is \boxed{1/2}., 0 for The answer is \boxed{987654321}."),
        ("math", ['["3", "three"]'], r"\boxed{3}"),
        ("exact", ["b7"], f"reward exact, tried: 1 for b7, 0 for {WRONG}"),
    ):
        with RewardPool(reward, workers=1, think=think) as pool:
            assert said in try_reward(pool, answers, Config(model="m", data="d", reward=reward, think=think))


@pytest.mark.parametrize(
    "function",
    [
        lambda response, answer: float(response.split()[-1] == answer),
        lambda response, answer: float(f"#### {answer}" in response),
        lambda response, answer: 2.0 if f"Answer: {answer}" in response else -1.0,
    ],
)
def test_a_function_of_the_users_may_want_any_spelling(function):
    assert try_reward(Grades(function), ["7", "8"], mine()).startswith("reward mine:reward, tried: ")


def test_a_function_that_pays_everything_alike_is_told():
    line = try_reward(Grades(lambda response, answer: 0.5), ["7"], mine())
    assert line.startswith("warning: reward mine:reward does not tell a right answer from a wrong one")
    assert r"gives 0.5 for I think.</think> The answer is \boxed{7}." in line


def test_a_function_that_fails_now_and_then_is_told_and_one_that_always_fails_stops_the_run():
    def sometimes(response, answer):
        if "####" in response:
            raise KeyError("marks")
        return float(answer in response)

    line = try_reward(Grades(sometimes), ["7"], mine())
    assert "; warning: it failed on 2 of 8 answers: KeyError('marks')" in line

    def never(response, answer):
        raise ValueError("no")

    with pytest.raises(InputError, match=r"fails on right and wrong answers alike: ValueError\('no'\)"):
        try_reward(Grades(never), ["7"], mine())


def test_a_built_in_reward_that_tells_nothing_apart_is_refused():
    with pytest.raises(InputError, match=r"the answers of the first 2 problems from a wrong one.*--answer"):
        try_reward(Grades(lambda *_: 0.0), ["7", "8"], Config(model="m", data="d", reward="math"))


def dry(run, *arguments):
    return cli.main(["train", "demo", "--run-dir", str(run / "run"), "--dry-run", *SMALL, *arguments])


def test_a_dry_run_tries_the_reward(tmp_path, monkeypatch, capsys):
    assert dry(tmp_path) == 0
    assert "reward exact, tried: 1 for " in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trial_rewards.py").write_text(
        "def same(response, answer):\n    return 1.0\n\n"
        "def fails(response, answer):\n    raise KeyError(answer)\n\n"
        "def picky(response, answer):\n    return float(response.endswith(answer))\n"
    )
    assert dry(tmp_path, "--reward", "trial_rewards:picky") == 0
    assert "reward trial_rewards:picky, tried: 1 for " in capsys.readouterr().out
    assert dry(tmp_path, "--reward", "trial_rewards:same") == 0
    assert "warning: reward trial_rewards:same does not tell a right answer" in capsys.readouterr().out
    for name, line in (
        ("fails", "fails on every answer"),
        ("none", "no function 'none'"),
        ("mod", "no function 'mod'"),
    ):
        assert dry(tmp_path, "--reward", f"trial_rewards:{name}") == 2
        error = capsys.readouterr().err
        assert line in error and error.count("\n") == 1
    assert dry(tmp_path, "--reward", "nomod:r") == 2
    assert "cannot import nomod" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_idle_gpus_are_told(monkeypatch):
    cuda, cpu = SimpleNamespace(type="cuda"), SimpleNamespace(type="cpu")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    for processes, line in (
        ("1", "8 GPUs are visible here and 1 of them works"),
        ("4", "and 4 of them work;"),
        ("8", ""),
    ):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert line in idle_gpus(cuda) and bool(line) == bool(idle_gpus(cuda))
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert "torchrun --nproc-per-node 8 --no-python siri train ..." in idle_gpus(cuda)
    assert idle_gpus(cpu) == "" and memory_figures(cpu, None, None, None, 0) == {}
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (10, 90))
    assert memory_figures(cuda, None, None, None, 0) == {"gpu_memory": 80}
