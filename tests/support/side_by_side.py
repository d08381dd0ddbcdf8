"""`make test` runs files side by side (pytest-xdist, `--dist loadfile`): a file's tests stay in one process, because
what they share is made once there, and long files begin first, so that none is left alone at the end."""

import pytest

LONG = (
    "tests/kernels/test_interpreter.py",
    "tests/runs/test_distributed.py",
    "tests/unit/test_setup.py",
    "tests/runs/test_kill.py",
    "tests/kernels/test_anchored_ahead_of_time.py",
)


def file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not hasattr(config, "workerinput"):  # a single process: pytest's order
        return
    longest = {file(item) for item in items if file(item) in LONG or item.get_closest_marker("slow")}
    items.sort(key=lambda item: file(item) not in longest)
