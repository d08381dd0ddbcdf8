"""The layout of the Hugging Face kernels hub, loaded by the real `kernels` package in a process of its own."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import importlib.metadata, sys
from pathlib import Path
import kernels
assert importlib.metadata.version("kernels") == kernels.__version__  # Hugging Face's, not a folder of ours
sys.modules["siri_kernels"] = None  # the build needs no installed package
import torch
from kernels._rust import Digest, DigestAlgorithm, Metadata
build = Path(sys.argv[1])
variant = build / "build" / "torch-universal"
recorded = Metadata.read_from_file(variant / "metadata.json")
assert Digest.hash_variant(DigestAlgorithm.SHA256, variant).files == recorded.digest.files
loaded = [
    kernels.get_local_kernel(build),
    kernels.get_kernel("somebody/siri-kernels", version=1),
]
assert loaded[0] is loaded[1]
siri = loaded[0]
assert Path(siri.__file__).is_relative_to(build)
def leaves(): return torch.ones(5, 4, requires_grad=True), torch.eye(7, 4, requires_grad=True)
ids, advantages = torch.tensor([0, 6, 1, 2, 3]), torch.tensor([1.0, -1, 2, 0.5, 1])
def run(module):
    hidden, weight = leaves()
    module.linear_grpo_loss(hidden, weight, ids, advantages, old_logp=torch.full((5,), -2.0)).loss.backward()
    logp, entropy = module.linear_logprob(hidden, weight, ids, return_entropy=True)
    (logp.sum() + entropy.sum()).backward()
    return logp.detach(), hidden.grad, weight.grad
hub = run(siri)
del sys.modules["siri_kernels"]
import siri_kernels
assert siri_kernels is not siri
for x, y in zip(hub, run(siri_kernels)):
    assert torch.equal(x, y)
name = next(k for k in vars(torch.ops) if k.startswith("_siri_kernels_"))
assert name == siri.__name__ and hasattr(torch.ops, "siri_kernels")  # both, side by side
import transformers  # an installed `kernels` and our folder of that name leave it alone
transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(
    "qwen2", vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2))
print("ok", kernels.__version__)
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    out = tmp_path_factory.mktemp("hub")
    subprocess.run([sys.executable, ROOT / "kernels" / "hub.py", out], check=True)
    return out


def test_the_layout_and_its_digest(build):
    import base64
    import hashlib
    import json

    variant = build / "build" / "torch-universal"
    metadata = json.loads((variant / "metadata.json").read_text())
    assert metadata["id"].isidentifier() and metadata["name"] == "siri-kernels" and metadata["version"] == 1
    files = {p.relative_to(variant).as_posix(): p.read_bytes() for p in variant.rglob("*") if p.is_file()}
    del files["metadata.json"]
    hashes = {name: base64.b64encode(hashlib.sha256(data).digest()).decode() for name, data in files.items()}
    assert metadata["digest"] == {"algorithm": "sha256", "files": hashes}
    for name, data in files.items():
        assert not re.search(r"^\s*(import|from) siri_kernels|\"siri_kernels::", data.decode(), re.MULTILINE), name


def test_a_build_of_the_same_sources_is_the_same(build, tmp_path):
    subprocess.run([sys.executable, ROOT / "kernels" / "hub.py", tmp_path], check=True)
    ours, again = (sorted(p for p in out.rglob("*") if p.suffix in (".py", ".json")) for out in (build, tmp_path))
    assert [p.read_text() for p in ours] == [p.read_text() for p in again]


@pytest.mark.skipif(
    importlib.util.find_spec("kernels") is None or importlib.util.find_spec("kernels").origin is None,
    reason="Hugging Face's kernels is not installed: pip install 'kernels>=0.17'",
)
def test_the_real_kernels_package_loads_it(build):
    environment = {**os.environ, "LOCAL_KERNELS": f"somebody/siri-kernels={build}", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(build)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("ok 0.")


def test_no_package_of_ours_is_called_kernels():
    assert not list(ROOT.glob("kernels/__init__.py")) and not (ROOT / "__init__.py").exists()


def test_the_folder_that_old_versions_look_for(build):
    """It shows the same functions as the package above it."""
    script = (
        "import sys; sys.modules['siri_kernels'] = None; import importlib.util as u\n"
        "spec = u.spec_from_file_location('old', sys.argv[1]); old = u.module_from_spec(spec)\n"
        "spec.loader.exec_module(old); print(old.linear_grpo_loss.__module__, old.FusedLMHead.__name__)"
    )
    path = build / "build" / "torch-universal" / "siri_kernels" / "__init__.py"
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith(".api FusedLMHead\n"), done.stderr
