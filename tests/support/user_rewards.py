"""A module with a reward of the user's, some of whose answers misbehave."""

import sys

import pytest

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
        case "fill the memory":
            return len(bytearray(2**33)) / 2**33
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


def finished(response: str, answer: str) -> float:
    """Right where the thinking has ended, whatever the answer."""
    return float("</think>" in response)
