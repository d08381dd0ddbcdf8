import os
from pathlib import Path

# before anything imports torch: tests run beside others, and how many threads share a sum decides its last bit
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # the environment of vLLM's tests has none
    pass
else:  # how long an example takes to draw or run says more of the machine than of what is tested
    settings.register_profile("siri", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("siri")

pytest_plugins = ["tests.support.side_by_side", "tests.support.torture", "tests.support.user_rewards"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that measure time come last, when nothing that the others have started is left."""
    items.sort(key=lambda item: item.get_closest_marker("quiet") is not None)


def pytest_configure(config: pytest.Config) -> None:
    """Processes that tests start obey pyproject.toml's filterwarnings too, by tests/child/sitecustomize.py. Not beside
    a real vLLM, which asks transformers for what it likes."""
    if os.environ.get("SIRI_TEST_VLLM") == "1":
        return
    os.environ["SIRI_TEST_WARNINGS"] = "\n".join(config.getini("filterwarnings"))
    paths = [str(Path(__file__).parent / "child"), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real problems; it is not part of the repository."""
    folder = os.environ.get("SIRI_TEST_DATA")
    if not folder:
        pytest.skip("SIRI_TEST_DATA is unset: it names the folder with the real problems")
    return Path(folder)
