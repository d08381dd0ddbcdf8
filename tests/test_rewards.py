import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import siri.reward_pool
from siri.answers import last_boxed, same_answer
from siri.errors import InputError
from siri.reward_pool import RewardPool
from siri.rewards import exact_reward, kimi_length_rewards, math_reward, resolve_reward

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


# ---------------------------------------------------------------- what is graded


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{5}", "5"),
        (r"so \boxed{1}, no, \boxed {\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\left\{ x \right\}} and $\{ 1", r"\left\{ x \right\}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{7} and then it was cut: \boxed{8", "7"),
        (r"}} \fbox{4} {", "4"),
        (r"\\boxed{6}", "6"),
        (r"\boxed{}", ""),
        ("no box, 5", None),
        (r"\boxed 5", None),
    ],
)
def test_last_boxed(text, content):
    assert last_boxed(text) == content


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


# ---------------------------------------------------------------- which answers are the same


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("\\frac{1}{2}", "1/2"),
        ("\\frac12", "0.5"),
        ("142", "142.0"),
        ("025", "25"),
        (".5", "\\dfrac{1}{2}"),
        ("6\\frac{1}{6}", "\\frac{37}{6}"),
        ("\\frac{1}{3}", "0.333333"),
        ("5\\%", "5 percent"),
        ("5\\%", "5"),
        ("50\\%", "\\frac{1}{2}"),
        ("\\sqrt{3}\\%", "\\frac{\\sqrt{3}}{100}"),
        ("12.5\\%", "0.125"),
        ("\\$5.50", "5.5"),
        ("\\$306,\\!956.63", "306956.63"),
        ("22,500", "22500"),
        ("81, 256", "81,256"),
        ("1{,}008{,}016", "1\\,008\\,016"),
        ("45^\\circ", "45^{\\circ}"),
        ("45^\\circ", "45"),
        ("10\\text{ cm}", "10"),
        ("15\\mbox{ cm}^2", "15 \\text{ square centimeters}"),
        ("12\\sqrt{13}\\text{ feet}", "12 \\sqrt{13} ft"),
        ("9\\text{ values}", "9"),
        ("\\text{Evelyn}", "evelyn"),
        ("\\text{(C)}", "C"),
        ("\\text{A, B}", "A,B"),
        ("\\text{two lines}", "\\textbf{two lines}"),
        ("1011_2", "1011_{2}"),
        ("24_{10}", "24"),
        ("-2, 2", "2,-2"),
        ("2, 3, \\text{ and } 4", "4, 3, 2"),
        ("1 \\pm \\sqrt{19}", "1+\\sqrt{19}, 1-\\sqrt{19}"),
        ("\\{4,5,7\\}", "7, 5, 4"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\pi/2)"),
        ("(-\\infty, 3) \\cup (3, \\infty)", "(3, +\\infty) \\cup (-\\infty, 3)"),
        ("x \\in [-2,7]", "[-2,7]"),
        ("-80\\leq g(x)\\leq 82", "[-80,82]"),
        ("(-\\infty,3)", "x < 3"),
        ("s^2 \\le 8r^2", "8r^2 \\ge s^2"),
        ("\\begin{pmatrix} -1/2 \\\\ 5/2 \\end{pmatrix}", "\\begin{bmatrix}-\\frac12\\\\2.5\\end{bmatrix}"),
        ("x = 5", "5"),
        ("5", "k=5"),
        ("\\text{CBAD}", "x = CBAD"),
        ("y = 2x + 3", "2x+3"),
        ("y = 2x + 3", "y - 2x = 3"),
        ("2x + z - 5 = 0", "4x + 2z = 10"),
        ("AB=9, CD=4", "CD = 4, AB = 9"),
        ("0.56 = 56\\%", "56\\%"),
        ("\\$\\dfrac23 \\approx \\$0.67", "\\frac{2}{3}"),
        ("2^{10}", "1024"),
        ("\\sqrt{50}", "5\\sqrt{2}"),
        ("\\frac{1}{\\sqrt{2}}", "\\frac{\\sqrt{2}}{2}"),
        ("(x+1)(x-2)", "x^2 - x - 2"),
        ("(1, 2)", "(x, y) = (1, 2)"),
        ("2, 3", "x = 3 \\text{ or } x = 2"),
        ("8\\!:\\!34 \\text{ p.m.}", "8:34 p.m."),
        ("\\boxed{7}", "7"),
        ("\\( 7 \\)", "$7$"),
    ],
)
def test_same(gold, answer):
    assert same_answer(gold, answer)
    assert math_reward(f"</think>\\boxed{{{answer}}}", gold) == 1.0


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1,2", "1"),
        ("1,2", "1,2,2"),
        ("1,1,2", "1,2,2"),
        ("5", "5\\%"),
        ("\\frac{1}{3}", "0.33"),
        ("3 \\times 10^{-8}", "5 \\times 10^{-9}"),
        ("10\\text{ cm}", "10\\text{ inches}"),
        ("60^\\circ", "60\\text{ inches}"),
        ("4 \\text{ p.m.}", "4 \\text{ a.m.}"),
        ("2xy", "2"),
        ("2m", "2"),
        ("2", "2t"),
        ("7", "7 \\cdot o"),
        ("2 xy", "2"),
        ("2e", "2"),
        ("2\\mathrm{e}", "2"),
        ("15", "1 5"),
        ("1011_2", "1011"),
        ("1011_2", "1011_3"),
        ("1011_2", "11"),
        ("(1,2)", "(2,1)"),
        ("(1,2)", "1,2"),
        ("[1,2]", "(1,2)"),
        ("[1,2)", "[1,2]"),
        ("(1,2)", "(1,2,3)"),
        ("(-\\infty,3)", "(-\\infty,3]"),
        ("(1,2) \\cup (3,4)", "(1,2)"),
        ("x < 3", "x > 3"),
        ("x < 3", "3"),
        ("x + y + z = 0", "0"),
        ("0", "x + y + z = 0"),
        ("x = 5", "y = 5"),
        ("LQSX", "XSQL"),
        ("\\text{Evelyn}", "Navin"),
        ("\\text{(C)}", "(D)"),
        ("8:34", "4:17"),
        ("1:2", "1"),
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 1 & 2 \\end{pmatrix}"),
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 2 \\\\ 1 \\end{pmatrix}"),
        ("1 \\pm \\sqrt{19}", "1 + \\sqrt{19}"),
        ("a+b", "ab"),
        ("7", "7x"),
        ("7", "hello 7"),
        ("7", "7 or 8"),
        ("7", "__import__('os').getpid()"),
        ("7", "7" + " " * 600 + "+0" * 300),
        ("7", ""),
        ("7", "\\"),
        ("7", "\\frac{7}{0}"),
        ("7", "\\sqrt{" * 70 + "7" + "}" * 70),
        ("7", "{{{"),
        ("", ""),
    ],
)
def test_not_the_same(gold, answer):
    assert not same_answer(gold, answer)
    assert math_reward(f"</think>\\boxed{{{answer}}}", gold) == 0.0


@pytest.mark.parametrize(
    "content",
    [
        "\\boxed{" * 20_000,
        "\\ " * 50_000,
        " , " * 50_000,
        "\\text{" * 20_000,
        "111," * 50_000,
        "a\\cup" * 30_000,
        "(" * 99_999,
    ],
    ids=lambda content: content[:8],
)
def test_long_nonsense_is_graded_in_no_time(content):
    start = time.perf_counter()
    assert math_reward(f"</think>\\boxed{{{content}}}", "5") == 0.0
    assert time.perf_counter() - start < 2.0


def test_rewards_import_nothing_heavy():
    code = "import sys, siri.rewards, siri.reward_pool; print([m for m in sys.modules if m in sys.argv])"
    heavy = ["torch", "sympy", "math_verify", "numpy", "transformers", "datasets"]
    run = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# ---------------------------------------------------------------- finding a reward

MY_REWARD = '''
import os, signal, subprocess, sys, time

def length(response, answer):
    """Longer is better; some responses misbehave."""
    print("noise")
    match response:
        case "hang":
            while True:
                pass
        case "hang with the lock":  # an integer power does not let other threads run
            9 ** 9 ** 9
        case "hang in a program":
            with open(answer, "w") as file:
                file.write(str(subprocess.Popen(["sleep", "1000"]).pid))
            time.sleep(1000)
        case "exit":
            os._exit(3)
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "sys.exit":
            sys.exit("no more")
        case "raise":
            raise ZeroDivisionError("by design")
        case "nan":
            return float("nan")
        case "none":
            return None
        case "slow":
            time.sleep(0.3)
    return len(response) / 10

constant = 3
'''


@pytest.fixture
def my_reward(tmp_path, monkeypatch):
    """A module with a reward in the current directory, which is on nobody's path."""
    (tmp_path / "my_reward_module.py").write_text(MY_REWARD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield "my_reward_module:length"
    sys.modules.pop("my_reward_module", None)


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


# ---------------------------------------------------------------- the pool


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "still not"
        time.sleep(0.02)


def test_pool_scores_like_the_function_whatever_the_number_of_workers():
    golds = ["5", "\\frac12", "1,2", "x^2-1", "\\text{May}"] * 8
    answers = ["5", "0.5", "2,1", "(x-1)(x+1)", "June"] * 7 + ["6"] * 5
    responses = [f"<think>hm</think>\\boxed{{{answer}}}" for answer in answers]
    expected = [math_reward(response, gold) for response, gold in zip(responses, golds, strict=True)]
    assert 0 < sum(expected) < len(expected)
    for workers in (1, 3):
        with RewardPool("math", workers=workers) as pool:
            for _ in range(2):
                batch = pool.score(responses, golds)
                assert (batch.rewards, batch.timeouts, batch.errors) == (expected, 0, 0)
            assert pool.score([], []).rewards == []
    with RewardPool("math", workers=1, think=False) as pool:
        assert pool.score(["\\boxed{5}"], ["5"]).rewards == [1.0]


def test_warm_pool_is_fast():
    with RewardPool("math", workers=2) as pool:
        golds = [str(n) for n in range(256)]
        start = time.perf_counter()
        batch = pool.score([f"</think>\\boxed{{{gold}}}" for gold in golds], golds)
        assert time.perf_counter() - start < 1.0
        assert batch.rewards == [1.0] * 256


def test_exact_starts_no_process(monkeypatch):
    monkeypatch.setattr(siri.reward_pool.subprocess, "Popen", None)
    with RewardPool("exact", workers=4) as pool:
        assert pool.score(["</think>b", "b"], ["b", "b"]).rewards == [1.0, 0.0]


@pytest.mark.parametrize("workers", [1, 3])
def test_misbehaving_rewards_cost_one_zero_each(my_reward, workers, capfd):
    bad = ["hang", "exit", "raise", "hang with the lock", "segfault", "sys.exit", "nan", "none"]
    responses = [text for name in bad for text in ("1", name, "four")]
    expected = [value for _ in bad for value in (0.1, 0.0, 0.4)]
    with RewardPool(my_reward, workers=workers, timeout_s=0.7) as pool:
        batch = pool.score(responses, [""] * len(responses))
        assert batch.rewards == expected
        assert (batch.timeouts, batch.errors) == (2, 6)
        again = pool.score(["four", "slow"], ["", ""])
        assert (again.rewards, again.timeouts, again.errors, again.first_error) == ([0.4, 0.4], 0, 0, "")
    assert capfd.readouterr().out == ""  # what a reward prints goes to stderr


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ("raise", "ZeroDivisionError: by design"),
        ("exit", "the reward's process died (exit status 3)"),
        ("segfault", f"the reward's process died (exit status {-signal.SIGSEGV})"),
        ("nan", "the reward returned nan"),
        ("sys.exit", "SystemExit: no more"),
    ],
)
def test_the_first_error_is_told(my_reward, response, message):
    with RewardPool(my_reward, workers=1) as pool:
        assert pool.score(["ok", response, "none"], ["", "", ""]).first_error == message


def test_hostile_math_costs_one_zero():
    with RewardPool("math", workers=1, timeout_s=1.0) as pool:
        answers = ["5", "9^{9^{9^{9}}}", "5", "1000000000!", "5"]
        batch = pool.score([f"</think>\\boxed{{{answer}}}" for answer in answers], ["5"] * 5)
        assert batch.rewards == [1.0, 0.0, 1.0, 0.0, 1.0]
        assert batch.timeouts == 2


@on_linux
def test_math_workers_cannot_take_all_memory():
    with RewardPool("math", workers=1) as pool:
        limits = Path(f"/proc/{pool._pool[0].process.pid}/limits").read_text()
    [line] = [line for line in limits.splitlines() if line.startswith("Max address space")]
    assert int(line.split()[3]) <= siri.reward_pool.MATH_MEMORY_BYTES


@on_linux
def test_no_process_outlives_the_pool(my_reward, tmp_path):
    with RewardPool(my_reward, workers=2, timeout_s=0.5) as pool:
        first = [worker.process.pid for worker in pool._pool]
        assert pool.score(["hang in a program", "1"], [str(tmp_path / "pid"), ""]).timeouts == 1
        started_by_reward = int((tmp_path / "pid").read_text())
        pids = {*first, *(worker.process.pid for worker in pool._pool)}
        assert len(pids) == 3  # one was replaced
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]  # neither running nor zombies
    wait_until(lambda: not is_running(started_by_reward), 5)
    with pytest.raises(RuntimeError, match="not open"):
        pool.score(["1"], [""])


@on_linux
@pytest.mark.parametrize("response", ["1", "hang", "hang with the lock"])
def test_no_process_outlives_a_killed_run(my_reward, response):
    code = f"""
        from siri.reward_pool import RewardPool
        with RewardPool({my_reward!r}, workers=2, timeout_s=1.0) as pool:
            pool.score(["1"], [""])
            print(*(worker.process.pid for worker in pool._pool), flush=True)
            while True:
                pool.score([{response!r}], [""])
    """
    run = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    pids = [int(pid) for pid in run.stdout.readline().split()]
    time.sleep(0.3)
    run.kill()
    run.wait()
    run.stdout.close()
    assert len(pids) == 2
    wait_until(lambda: not any(map(is_running, pids)), 1.0 + siri.reward_pool.ORPHAN_GRACE_S + 3.0)


@on_linux
def test_signals_to_the_whole_group_leave_workers_working(my_reward):
    with RewardPool(my_reward, workers=1) as pool:
        pid = pool._pool[0].process.pid
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
        assert pool.score(["slow"], [""]).rewards == [0.4]
        assert pool._pool[0].process.pid == pid


def test_an_interrupted_batch_does_not_leak_into_the_next(my_reward, monkeypatch):
    with RewardPool(my_reward, workers=2) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(pool, "_step", lambda batch: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                pool.score(["slow"], [""])
        assert pool.score(["1"], [""]).rewards == [0.1]


def test_a_main_module_without_guard_is_not_run_again(my_reward):
    Path("my_main.py").write_text(
        "from siri.reward_pool import RewardPool\n"
        "print('started')\n"
        f"with RewardPool({my_reward!r}, workers=2) as pool:\n"
        "    print(pool.score(['1', '22'], ['', '']).rewards)\n"
    )
    for command in (["-m", "my_main"], ["my_main.py"]):
        run = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=60)
        assert run.stdout.split("\n") == ["started", "[0.1, 0.2]", ""], run.stderr


def test_pool_rejects_bad_settings():
    with pytest.raises(InputError, match="reward workers 0"):
        RewardPool("math", workers=0)
    with pytest.raises(InputError, match="reward timeout 0"):
        RewardPool("math", workers=1, timeout_s=0)
    with RewardPool("exact", workers=1) as pool, pytest.raises(ValueError):
        pool.score(["1"], [])


# --- rewards for length


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
