"""The layout of the Hugging Face kernels hub, loaded by the real `kernels` package in a process of its own."""

import base64
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import siri_kernels

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
assert recorded.provenance is not None
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


needs_kernels = pytest.mark.skipif(
    importlib.util.find_spec("kernels") is None or importlib.util.find_spec("kernels").origin is None,
    reason="Hugging Face's kernels is not installed: pip install 'kernels>=0.17'",
)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    out = tmp_path_factory.mktemp("hub")
    subprocess.run([sys.executable, ROOT / "kernels" / "hub.py", out], check=True)
    return out


def test_the_layout_and_its_digest(build):
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
    built, again = (sorted(p for p in out.rglob("*") if p.suffix in (".py", ".json")) for out in (build, tmp_path))
    assert [p.read_text() for p in built] == [p.read_text() for p in again]


@needs_kernels
def test_the_real_kernels_package_loads_it(build):
    environment = {**os.environ, "LOCAL_KERNELS": f"somebody/siri-kernels={build}", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(build)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("ok 0.")


VERIFY = """
import sys
from pathlib import Path
from unittest import mock
from kernels import verify
from kernels._rust import Metadata
from kernels.validate import AllValidator, default_metadata_validators
variant = Path(sys.argv[1]) / "build" / "torch-universal"
metadata = Metadata.read_from_file(variant / "metadata.json")
AllValidator(default_metadata_validators()).validate_metadata(metadata=metadata, variant=variant.name)
assert isinstance(verify.verify_variant(variant), verify.VerificationResult.SignatureBundleMissing)
# a signature comes from the publisher's workflow; with one that is taken for good, what is left is metadata and digest
(variant / "metadata.json.sigstore").write_text("{}")
def verified():
    with mock.patch.object(verify.Bundle, "from_json"), mock.patch.object(verify, "Verifier"):
        return verify.verify_variant(variant)
assert isinstance(verified(), verify.VerificationResult.Success), verified()
path = variant / "api.py"
path.write_text(path.read_text() + "#")
changed = verified()
assert isinstance(changed, verify.VerificationResult.DigestVerificationFailure) and len(changed.violations) == 1
path.write_text(path.read_text()[:-1])
(variant / "stranger.py").write_text("")
assert isinstance(verified(), verify.VerificationResult.DigestVerificationFailure)
print("ok", metadata.provenance.dirty, metadata.provenance.kernel and metadata.provenance.kernel.commit)
"""


@needs_kernels
def test_what_kernels_itself_verifies_passes(build, tmp_path):
    """Its validators of the metadata, and `kernels verify-signature` but for the signature itself."""
    copy = tmp_path / "copy"
    shutil.copytree(build, copy)
    done = subprocess.run([sys.executable, "-c", VERIFY, str(copy)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("ok ")


BENCHMARK = """
import json, sys
from pathlib import Path
from kernels.cli import benchmark
repository = Path(sys.argv[1])
scripts = benchmark.discover_benchmark_scripts(str(repository), repository)
for script in scripts:
    timings, _ = benchmark.run_benchmark_script(
        script, iterations=1, warmup=0, cwd=repository, repo_id=str(repository), is_local=True, revision="local")
    print(json.dumps({name: timing.verified for name, timing in timings.items()}))
"""


@needs_kernels
def test_kernels_benchmark_runs_the_scripts_and_holds_them_to_fp64(build, tmp_path):
    command = [sys.executable, "-c", BENCHMARK, str(build)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == {
        "Head.clipped_loss": True,
        "Head.logprob_entropy": True,
        "Head.one_product": None,
        "Head.three_products": None,
    }
    assert len(re.findall(r": [\d.]+ x its matrix products", done.stderr)) == 2


@needs_kernels
def test_a_benchmark_of_a_wrong_kernel_stops(build, tmp_path):
    shutil.copytree(build, tmp_path / "wrong")
    init = tmp_path / "wrong" / "build" / "torch-universal" / "__init__.py"
    wrong = "\n_true = linear_logprob\ndef linear_logprob(*a, **o):\n    logp, h = _true(*a, **o)\n"
    wrong += "    return logp + 1e-3, h\n"
    init.write_text(init.read_text() + wrong)
    command = [sys.executable, "-c", BENCHMARK, str(tmp_path / "wrong")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "log-prob is 1.0e-03 off fp64" in done.stderr


def state(folder: Path) -> tuple[dict, str]:
    """The provenance of a build from the sources in `folder`, and what the build said of it."""
    out = folder.parent / "out"
    command = [sys.executable, folder / "kernels" / "hub.py", out]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads((out / "build" / "torch-universal" / "metadata.json").read_text())["provenance"], done.stderr


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_provenance_names_the_commit_and_whether_it_is_all(tmp_path):
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "kernels", folder / "kernels", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))

    def git(*arguments):
        names = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        done = subprocess.run(["git", *names, *arguments], cwd=folder, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    builder, told = state(folder)
    assert set(builder) == {"kernel-builder"} and set(builder["kernel-builder"]) == {"version"}
    assert "no commit is named" in told
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "as it is")
    clean = {"commit": git("rev-parse", "HEAD"), "dirty": False}
    built, told = state(folder)
    assert built["kernel"] == clean and told == ""
    assert built["kernel-builder"] == {"version": f"siri-kernels/hub.py {siri_kernels.__version__}", **clean}
    for name in ("hub.py", "siri_kernels/a_new_module.py"):  # a tracked file, and one that the build takes along
        path = folder / "kernels" / name
        before = path.read_text() if path.exists() else None
        path.write_text((before or "") + "\n")
        built, told = state(folder)
        assert built["kernel"] == clean | {"dirty": True} and built["kernel-builder"]["dirty"] is True
        assert "commit it before you publish" in told
        path.write_text(before) if before is not None else path.unlink()


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
