import pytest

from tests.support.compiler_reports import Reports, all_reports
from tests.support.session import once


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA device")
    # bench/gpu.sh tests runs by pytest-xdist where it is installed, and pytest knows the marker where it is not
    config.addinivalue_line("markers", "xdist_group(name): tests of a group run one after the other")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> Reports:
    """The kernels compiled for real GPUs, once for all tests that look at them, also where they run in processes side
    by side: compiling takes minutes."""
    return once(tmp_path_factory, "compiled", all_reports)
