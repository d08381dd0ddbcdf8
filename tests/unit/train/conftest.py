from pathlib import Path

import pytest

from tests.support.training import train


@pytest.fixture(scope="session")
def straight(tmp_path_factory) -> Path:
    """Six steps in one go, saved at every step."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    train(folder, "--steps", "6", "--save-every", "1", "--keep-checkpoints", "9", "--quiet")
    return folder
