"""The package stands alone: no trainer, no transformers, no GPU, and on machines without Triton not even that."""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

KERNELS = Path(__file__).parents[2] / "kernels"
SCRIPT = """
import sys
for name in BLOCKED:
    sys.modules[name] = None  # importing it raises
import torch
import siri_kernels
torch.manual_seed(0)
hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
ids = torch.tensor([0, 6, 1, 2, 3])
siri_kernels.linear_grpo_loss(hidden, weight, ids, torch.randn(5)).loss.backward()
siri_kernels.logprob_from_logits(hidden @ weight.T, ids).sum().backward()
head = siri_kernels.FusedLMHead.of(torch.nn.Linear(4, 7))
siri_kernels.grpo_loss(head.logprob(hidden, ids), None, torch.randn(5)).loss.backward()
assert weight.grad.abs().sum() > 0 and head.weight.grad.abs().sum() > 0
try:
    siri_kernels.linear_logprob(hidden, weight, ids, impl="triton")
except ValueError as error:
    print(error)
print(siri_kernels.__file__)
"""


def script(*blocked: str) -> str:
    return SCRIPT.replace("BLOCKED", repr(blocked))


def run(*command: str, **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def test_it_imports_and_runs_alone():
    assert "needs CUDA tensors" in run(sys.executable, "-c", script("siri", "transformers", "triton"))


def test_installed_with_pip_into_an_environment_of_its_own(tmp_path):
    """`pip install ./kernels`, offline: torch and the build backend are lent by this environment, by a .pth file in
    which nothing else of the repository is."""
    source = tmp_path / "kernels"
    # a copy, because building writes beside the sources
    shutil.copytree(KERNELS, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    venv.create(tmp_path / "env", with_pip=False)
    python = str(tmp_path / "env" / "bin" / "python")
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    options = ("--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed", "--quiet", str(source))
    clean = {"cwd": tmp_path, "env": {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}}
    run(python, "-m", "pip", "install", *options, **clean)
    out = run(python, "-c", script("siri", "transformers", "numpy"), **clean)
    assert "needs CUDA tensors" in out
    assert Path(out.splitlines()[-1]).is_relative_to(site), "it runs from where pip put it"
    files = {path.relative_to(source) for path in (source / "siri_kernels").rglob("*") if path.is_file()}
    assert Path("siri_kernels/py.typed") in files and Path("siri_kernels/rows/anchored/gemm.py") in files
    assert all((site / path).exists() for path in files), "nothing is left behind"
    named = run(python, "-c", "import importlib.metadata as m; print(m.version('siri-kernels'))", **clean)
    assert named.strip() == run(python, "-c", "import siri_kernels as s; print(s.__version__)", **clean).strip()
