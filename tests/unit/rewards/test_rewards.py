"""What a response is worth, and how a reward is found by its name."""

import subprocess
import sys
from pathlib import Path

import pytest

from siri.errors import InputError
from siri.rewards import exact_reward, kimi_length_rewards, math_reward, resolve_reward
from siri.rewards.pool import RewardPool

# ---------------------------------------------------------------- what is graded


def test_only_text_after_the_thinking_is_graded():
    assert math_reward("<think>\\boxed{5}</think> It is \\boxed{5}.", "5") == 1.0
    assert math_reward("\\boxed{4}</think> It is \\boxed{5}.", "5") == 1.0  # R1 templates open the tag in the prompt
    assert math_reward("<think>\\boxed{5}</think> It is \\boxed{4}.", "5") == 0.0
    assert math_reward("<think>\\boxed{5}</think> It is 5.", "5") == 0.0
    assert math_reward("<think>It is \\boxed{5}", "5") == 0.0
    assert math_reward("</think>\\boxed{5}</think>", "5") == 0.0
    assert math_reward("It is \\boxed{5}", "5", think=False) == 1.0
    assert math_reward("<think>hm</think>\\boxed{5}", "5", think=False) == 1.0
    assert type(math_reward("</think>\\boxed{5}", "5")) is float
    assert math_reward("</think>\\boxed{}", "") == math_reward("", "5") == 0.0


def test_exact_reward():
    assert exact_reward("<think>a</think> b \n", "b") == 1.0
    assert exact_reward("<think>b</think> a", "b") == 0.0
    assert exact_reward("b", "b") == 0.0
    assert exact_reward(" b", "b ", think=False) == 1.0
    assert exact_reward("B", "b", think=False) == 0.0
    assert exact_reward("</think>", "") == 1.0


@pytest.mark.parametrize("reward", [math_reward, exact_reward])
def test_any_of_several_answers_will_do(reward):
    wrap = "</think>\\boxed{%s}" if reward is math_reward else "</think>%s"
    answers = '["1/2", "three"]'
    assert [reward(wrap % text, answers) for text in ("1/2", "three", "2")] == [1.0, 1.0, 0.0]
    assert reward(wrap % '["x', '["x') == 1.0  # not JSON: an answer like any other
    assert exact_reward('["x"]', '["x"]', think=False) == 1.0


def test_rewards_import_nothing_heavy():
    code = "import sys, siri.rewards, siri.rewards.pool; print([m for m in sys.modules if m in sys.argv])"
    heavy = ["torch", "sympy", "math_verify", "numpy", "transformers", "datasets"]
    run = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("lengths", "right", "expected"),
    [
        ([10, 20, 30], [True, True, True], [0.5, 0.0, -0.5]),
        ([10, 15, 30], [False, True, False], [0.0, 0.25, -0.5]),
        ([12, 12], [True, False], [0.0, 0.0]),
        ([7], [True], [0.0]),
    ],
)
def test_kimi_length_rewards(lengths, right, expected):
    assert kimi_length_rewards(lengths, right) == pytest.approx(expected)


# ---------------------------------------------------------------- finding a reward


def test_resolve_reward(my_reward):
    assert resolve_reward("math")("</think>\\boxed{5}", "5") == 1.0
    assert resolve_reward("math", think=False)("\\boxed{5}", "5") == 1.0
    assert resolve_reward("exact", think=False)("5", "5") == 1.0
    assert resolve_reward(my_reward)("four", "") == 0.4
    assert resolve_reward("operator:eq")("4", "4") == 1.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("maths", r"unknown reward 'maths': .*module:function; did you mean 'math'\?"),
        ("", "unknown reward ''"),
        ("math:", "unknown reward 'math:'"),
        ("rw.py:reward", "that is a path; it wants the module's name, rw:reward, with the folder as current one"),
        ("./rewards/rw.py:reward", "it wants the module's name, rewards.rw:reward"),
        ("no_such_module:f", "cannot import no_such_module: ModuleNotFoundError"),
        ("my_reward_module:lenght", r"my_reward_module\.py\) has no function 'lenght'; did you mean 'length'\?"),
        ("my_reward_module:constant", "has no function 'constant'"),
        ("broken:f", "cannot import broken: SyntaxError"),
        ("leaves:f", "cannot import leaves: SystemExit: 3"),
    ],
)
def test_resolve_reward_errors(my_reward, name, message):
    Path("broken.py").write_text("def f(:\n")
    Path("leaves.py").write_text("raise SystemExit(3)")
    with pytest.raises(InputError, match=message) as caught:
        resolve_reward(name)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=message), RewardPool(name, workers=2):
        pass
