import os
from pathlib import Path

import pytest

pytest_plugins = ["tests.support.torture", "tests.support.user_rewards"]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real problems; it is not part of the repository."""
    folder = os.environ.get("SIRI_TEST_DATA")
    if not folder:
        pytest.skip("SIRI_TEST_DATA is unset: it names the folder with the real problems")
    return Path(folder)
