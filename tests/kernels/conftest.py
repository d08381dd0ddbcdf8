import pytest

from tests.support.compiler_reports import Reports, all_reports


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


@pytest.fixture(scope="session")
def compiled() -> Reports:
    """The kernels compiled for real GPUs, once for all tests that look at them: compiling takes minutes."""
    return all_reports()
