"""`pytest bench --sizes tiny|1.5b|7b`: sizes default to what the machine can hold."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser):
    parser.addoption("--sizes", choices=("tiny", "1.5b", "7b"), help="default: 1.5b on a GPU, tiny on a CPU")


@pytest.fixture(scope="session")
def size(request):
    import torch

    return request.config.getoption("--sizes") or ("1.5b" if torch.cuda.is_available() else "tiny")
