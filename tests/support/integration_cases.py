"""What the tests of the adapters share: a padded batch, real modules of peers that cannot be imported whole, and the
peak of live tensors."""

import importlib
import importlib.machinery
import importlib.metadata
import sys
import types
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from siri_kernels.integrations.seams import release
from torch.profiler import ProfilerActivity, profile

D, VOCAB = 16, 53


def padded_batch(seed=0, lengths=(7, 12, 0, 9), *, d=D, vocab=VOCAB, dtype=torch.float32):
    """hidden [B, T, D], weight [V, D], ids and mask [B, T], advantages [B], log-probs old and
    reference [B, T]."""
    g = torch.Generator().manual_seed(seed)
    b, longest = len(lengths), max(lengths)
    hidden = torch.randn(b, longest, d, generator=g).to(dtype)
    weight = torch.randn(vocab, d, generator=g).mul(2 * d**-0.5).to(dtype)
    ids = torch.randint(vocab, (b, longest), generator=g)
    mask = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    logp = (hidden.float() @ weight.float().T).log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)
    noisy = [logp + 0.3 * torch.randn(logp.shape, generator=g) for _ in range(2)]
    return types.SimpleNamespace(
        hidden=hidden,
        weight=weight,
        ids=ids,
        mask=mask,
        advantages=torch.randn(b, generator=g),
        old=noisy[0],
        reference=noisy[1],
    )


def leaves(batch):
    return [x.detach().clone().requires_grad_() for x in (batch.hidden, batch.weight)]


def installed(monkeypatch, distribution: str, low: str, below: str) -> Path:
    """The folder of a distribution that cannot be imported whole and lies in PREFIX/peers (`make test` puts it there);
    the adapters take it for installed. The test is skipped without it."""
    path = [*sys.path, str(Path(sys.prefix) / "peers")]
    for distribution_there in importlib.metadata.distributions(name=distribution, path=path):
        if release(low) <= release(distribution_there.version) < release(below):
            pretend_installed(monkeypatch, distribution, distribution_there.version)
            return Path(str(distribution_there.locate_file("")))
    where = f"pip install --no-deps --target {path[-1]} '{distribution}>={low},<{below}'"
    pytest.skip(f"the real {distribution} is not here: {where}")


class Stubs:
    """While it lasts, the named packages exist without running their __init__ (`packages`: name -> folder), others
    are empty (`names`); modules imported meanwhile are forgotten afterwards."""

    def __init__(self, packages: dict[str, Path], names: tuple[str, ...] = ()):
        self.packages, self.names = packages, names

    def __enter__(self):
        self.before = dict(sys.modules)
        for name, folder in self.packages.items():
            module = types.ModuleType(name)
            module.__path__ = [str(folder)]
            sys.modules[name] = module
        for name in self.names:
            if name not in sys.modules:
                sys.modules[name] = MagicMock(__spec__=importlib.machinery.ModuleSpec(name, None), __path__=[])
        return self

    def __exit__(self, *_):
        roots = {name.split(".")[0] for name in (*self.packages, *self.names)}
        for name in [n for n in sys.modules if n.split(".")[0] in roots and n not in self.before]:
            del sys.modules[name]
        sys.modules.update({name: self.before[name] for name in self.before if name.split(".")[0] in roots})


def fresh(name, monkeypatch):
    """The adapter's module, imported anew and forgotten afterwards."""
    full = f"siri_kernels.integrations.{name}"
    monkeypatch.delitem(sys.modules, full, raising=False)
    module = importlib.import_module(full)
    monkeypatch.delitem(sys.modules, full)
    return module


def logprob_and_entropy(hidden, weight, ids, temperature=1.0):
    """The published formula of verl, OpenRLHF and prime-rl alike: log softmax(logits / T)[id] and its entropy."""
    z = (hidden @ weight.T).float() / temperature
    probabilities = z.softmax(-1)
    entropy = z.logsumexp(-1) - (probabilities * z).sum(-1)
    return z.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1), entropy


def pretend_installed(monkeypatch, distribution: str, version: str) -> None:
    """As if the distribution were there: for adapters whose seams a test provides itself."""
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == distribution else real(name))


def peak_bytes(function) -> int:
    """The most bytes of CPU tensors alive at once while it runs, above what was alive before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    live = top = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            top = max(top, live)
    return top
