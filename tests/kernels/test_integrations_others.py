"""The adapters of verl and prime-rl, and what holds for all of them.

Every adapter is compared with the trainer's published formula, written down here; and with the trainer's own source
where its distribution lies in PREFIX/peers (without its dependencies: verl needs ray to be imported whole, and prime-rl
is on no index).
"""

import importlib
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
import torch
from siri_kernels.integrations import seams
from siri_kernels.integrations.seams import UntestedVersion
from torch import nn

from tests.support.integration_cases import (
    VOCAB,
    Stubs,
    fresh,
    installed,
    leaves,
    logprob_and_entropy,
    padded_batch,
    pretend_installed,
)
from tests.support.kernel_cases import relative

tests_tiny = pytest.importorskip("tests.support.tiny", reason="transformers is not installed")

ADAPTERS = ("openrlhf", "prime_rl", "transformers", "trl")


@pytest.mark.parametrize("name", (*ADAPTERS, "verl"))
def test_a_missing_trainer_is_refused_in_one_line(name, monkeypatch):
    def version(_):
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ImportError, match=r"found none: pip install \".*linear_logprob") as caught:
        fresh(name, monkeypatch)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("release", ["0.1.dev3+cu13", "99.0"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_another_version_is_told_in_one_line_and_taken(name, release, monkeypatch):
    distribution = {"prime_rl": "prime-rl"}.get(name, name)
    if name in ("transformers", "trl"):
        importlib.import_module(name)  # each asks for the other's version, at its own import
    pretend_installed(monkeypatch, distribution, release)
    with pytest.warns(UntestedVersion, match="was tested with") as told:
        fresh(name, monkeypatch)
    lines = [str(warning.message) for warning in told if warning.category is UntestedVersion]
    assert len(lines) == 1 and release in lines[0] and "\n" not in lines[0]


def test_the_tested_versions_are_taken_without_a_word(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UntestedVersion)
        for name in ("transformers", "trl"):  # really installed here
            fresh(name, monkeypatch)


def test_what_a_seam_lacks_is_named_in_one_line(tmp_path, monkeypatch):
    """A module or a name that has moved, an argument that is gone, an order that has changed; and what is none of
    these: a dependency of the trainer's that is not installed."""
    (tmp_path / "trainer_of_a_test.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module, name in (("json.gone", "f"), ("json", "gone")):
        with pytest.raises(ImportError, match=f"{module}.{name} is no longer there.*linear_logprob"):
            seams.seam(module, name)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        seams.seam("trainer_of_a_test", "f")

    def theirs(self, hidden, weight, *, labels=None): ...

    seams.takes(theirs, "f", "weight", "labels")
    seams.takes(theirs, "f", "hidden", "weight", in_order=True)
    for names, in_order in ((("weights",), False), (("weight", "hidden"), True)):
        with pytest.raises(ImportError, match=r"f takes \(hidden, weight, labels\), and this adapter needs \("):
            seams.takes(theirs, "f", *names, in_order=in_order)
    seams.has(sys, "sys", "path")
    with pytest.raises(ImportError, match="sys has no gone, lost"):
        seams.has(sys, "sys", "path", "gone", "lost")


def test_they_are_in_the_wheel_and_nobody_imports_them_unasked():
    find_packages = pytest.importorskip("setuptools", reason="setuptools is not installed").find_packages
    folder = Path(__file__).parents[2] / "kernels"
    include = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"][
        "include"
    ]
    assert "siri_kernels.integrations" in find_packages(str(folder), include=include)
    script = "import sys, siri_kernels; print([m for m in sys.modules if m.startswith('siri_kernels.integrations')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def assert_same_scores(theirs, ours, batch, *, entropy_gradient=True, tolerance=1e-5):
    """Log-probs, entropies and gradients of two functions of (hidden, weight)."""
    g = torch.Generator().manual_seed(0)
    upstream = [torch.randn(batch.ids.shape, generator=g) for _ in range(2)]
    results = []
    for function in (theirs, ours):
        hidden, weight = leaves(batch)
        logp, entropy = function(hidden, weight)
        loss = (logp.view(upstream[0].shape) * upstream[0]).sum()
        if entropy_gradient:
            loss = loss + (entropy.view(upstream[1].shape) * upstream[1]).sum()
        loss.backward()
        results.append((logp.detach().flatten(), entropy.detach().flatten(), hidden.grad, weight.grad))
    (logp, entropy, *gradients), (my_logp, my_entropy, *my_gradients) = results
    torch.testing.assert_close(my_logp, logp, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(my_entropy, entropy, rtol=tolerance, atol=tolerance)
    assert all(relative(x, y) < tolerance for x, y in zip(my_gradients, gradients, strict=True))


# verl


VERL = ("verl", "verl.utils", "verl.utils.experimental", "verl.utils.kernel", "verl.models", "verl.models.transformers")


class TheirHead:
    """verl's, with the signatures that the adapter asks for."""

    def __init__(self, chunk_size=512, impl_backend="torch"): ...

    def forward(self, hidden_states, vocab_weights, input_ids, temperature=1.0):
        return "verl's own"


def their_loss(hidden, weight, labels, temperature=1.0, reduction="none", dist_process_group=None):
    return "verl's own"


@pytest.fixture
def verl_stand_in(monkeypatch):
    """Modules with verl's names at verl's places, for the adapter to find."""
    pretend_installed(monkeypatch, "verl", "0.9.1")
    with Stubs(dict.fromkeys(VERL, "nowhere")):
        for path, name, thing in (
            ("verl.utils.experimental.torch_functional", "FusedLinearForPPO", TheirHead),
            ("verl.utils.kernel.linear_cross_entropy", "linear_cross_entropy", their_loss),
        ):
            module = type(sys)(path)
            setattr(module, name, thing)
            sys.modules[path] = module
        yield


def test_a_verl_with_other_signatures_is_refused_and_left_alone(verl_stand_in, monkeypatch):
    kernel = sys.modules["verl.utils.kernel.linear_cross_entropy"]
    monkeypatch.setattr(kernel, "linear_cross_entropy", lambda hidden, labels, weight: None)
    with pytest.raises(ImportError, match=r"needs \(hidden, weight, labels"):
        fresh("verl", monkeypatch)
    assert sys.modules["verl.utils.experimental.torch_functional"].FusedLinearForPPO is TheirHead


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_verl(verl_stand_in, monkeypatch, temperature):
    adapter = fresh("verl", monkeypatch)
    functional = sys.modules["verl.utils.experimental.torch_functional"]
    kernel = sys.modules["verl.utils.kernel.linear_cross_entropy"]
    batch = padded_batch(1)

    def theirs(hidden, weight):
        return logprob_and_entropy(hidden, weight, batch.ids, temperature)

    head = functional.FusedLinearForPPO(chunk_size=512, impl_backend="liger")
    assert_same_scores(theirs, lambda h, w: head(h, w, batch.ids, temperature), batch)
    assert head(batch.hidden, batch.weight, batch.ids)[0].shape == batch.ids.shape
    flat = kernel.linear_cross_entropy
    assert_same_scores(theirs, lambda h, w: flat(h, w, batch.ids, temperature, "none"), batch)
    assert flat(batch.hidden, batch.weight, batch.ids)[0].shape == (batch.ids.numel(),)
    assert flat(batch.hidden, batch.weight, batch.ids, 1.0, "none", "a group") == "verl's own"
    with pytest.raises(ValueError, match="input_ids must have shape"):
        head(batch.hidden, batch.weight, batch.ids[:, :3])
    adapter.uninstall()
    assert functional.FusedLinearForPPO is TheirHead and kernel.linear_cross_entropy is their_loss


# verl asks transformers for what is deprecated there
@pytest.mark.filterwarnings(r"default:.*deprecated:FutureWarning:transformers\.")
def test_verl_itself(monkeypatch):
    """verl's own forward_with_torch_backend on a tiny Qwen2, before and after."""
    folder = installed(monkeypatch, "verl", "0.9", "0.10")
    with Stubs({name: folder / name.replace(".", "/") for name in VERL}):
        functional = importlib.import_module("verl.utils.experimental.torch_functional")
        forward = importlib.import_module("verl.models.transformers.dense_common").forward_with_torch_backend
        real = functional.FusedLinearForPPO
        model = tests_tiny.tiny_model()
        ids = torch.randint(3, 90, (2, 9))
        batch = padded_batch(2)

        def score():
            model.zero_grad()
            attention = torch.ones_like(ids)
            out = forward(model, input_ids=ids, attention_mask=attention, return_dict=True, temperature=0.8)
            (out.log_probs.sum() + out.entropy.sum()).backward()
            return out.log_probs.detach(), out.entropy.detach(), [p.grad.clone() for p in model.parameters()]

        before = score()
        kernel = importlib.import_module("verl.utils.kernel.linear_cross_entropy")
        adapter = fresh("verl", monkeypatch)
        assert kernel.linear_cross_entropy is adapter.linear_cross_entropy
        assert functional.FusedLinearForPPO is adapter.FusedLinearForPPO
        after = score()
        adapter.uninstall()
        assert functional.FusedLinearForPPO is real
        torch.testing.assert_close(after[:2], before[:2], rtol=1e-5, atol=1e-5)
        assert all(relative(x, y) < 1e-5 for x, y in zip(after[2], before[2], strict=True))
        head, ours = real(), adapter.FusedLinearForPPO()
        assert_same_scores(lambda h, w: head(h, w, batch.ids, 0.9), lambda h, w: ours(h, w, batch.ids, 0.9), batch)


# prime-rl


PRIME = "prime_rl.trainer.models.layers"


@pytest.fixture
def prime_stand_in(monkeypatch):
    pretend_installed(monkeypatch, "prime-rl", "0.8.0")
    parts = PRIME.split(".")
    with Stubs({".".join(parts[: i + 1]): "nowhere" for i in range(len(parts))}):
        module = type(sys)(f"{PRIME}.lm_head")

        class FusedOutputLinear(nn.Linear):
            def __init__(self, in_features, out_features, chunk_size):
                super().__init__(in_features, out_features, bias=False)

            def forward(self, hidden_states, labels=None, temperature=None):
                """prime-rl's"""

        module.FusedOutputLinear = FusedOutputLinear
        sys.modules[module.__name__] = module
        yield module


def test_prime_rl(prime_stand_in, monkeypatch):
    theirs = prime_stand_in.FusedOutputLinear
    adapter = fresh("prime_rl", monkeypatch)
    adapter.install()
    adapter.install()
    batch = padded_batch(3)
    temperature = torch.rand(batch.ids.shape) + 0.5
    head = prime_stand_in.FusedOutputLinear(in_features=16, out_features=VOCAB, chunk_size=512)

    def ours(hidden, weight):
        del head._parameters["weight"]
        head.weight = weight  # a leaf of the test
        out = head(hidden, batch.ids, temperature=temperature)
        return out["logprobs"], out["entropy"]

    head._parameters["weight"] = None
    assert_same_scores(lambda h, w: logprob_and_entropy(h, w, batch.ids, temperature[..., None]), ours, batch)
    with pytest.raises(ValueError, match="pass labels"):
        head(batch.hidden)
    adapter.uninstall()
    assert prime_stand_in.FusedOutputLinear is theirs


def test_a_prime_rl_with_another_head_is_refused(prime_stand_in, monkeypatch):
    prime_stand_in.FusedOutputLinear.forward = lambda self, hidden_states, mask, labels: None
    adapter = fresh("prime_rl", monkeypatch)
    with pytest.raises(ImportError, match="linear_logprob"):
        adapter.install()


def test_prime_rl_itself(monkeypatch):
    """inject_prime_lm_head on a tiny Qwen2, with and without the adapter: per-token temperatures."""
    folder = installed(monkeypatch, "prime-rl", "0.5", "0.9")
    parts = PRIME.split(".")
    packages = {".".join(parts[: i + 1]): folder.joinpath(*parts[: i + 1]) for i in range(len(parts))}
    packages["prime_rl.utils"] = folder / "prime_rl" / "utils"
    with Stubs(packages, ("prime_rl.utils.logger",)):
        lm_head = importlib.import_module(f"{PRIME}.lm_head")
        adapter = fresh("prime_rl", monkeypatch)
        ids, results = torch.randint(3, 90, (1, 12)), []
        temperature = torch.rand(1, 12) + 0.5
        for install in (lambda: None, adapter.install):
            install()
            model = tests_tiny.tiny_model()
            lm_head.inject_prime_lm_head(model, chunk_size=5)
            out = model(input_ids=ids, labels=ids.roll(-1, 1), temperature=temperature)
            out["logprobs"].sum().backward()
            results.append((type(model.lm_head), out, {n: p.grad for n, p in model.named_parameters()}))
        (theirs, out, gradients), (ours, mine, my_gradients) = results
        assert ours is adapter.FusedOutputLinear and theirs is not ours and gradients.keys() == my_gradients.keys()
        for name in ("logprobs", "entropy"):
            torch.testing.assert_close(mine[name], out[name], rtol=1e-5, atol=1e-5)
        assert all(relative(my_gradients[n], gradients[n]) < 1e-5 for n in gradients)
