"""The back end `siri` of verl: registered by an entry point, there for who asks for it, and nothing for anybody else.
verl's own modules of `.venv/peers` run here; verl whole needs ray."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from tests.support.integration_cases import Stubs, fresh, installed
from tests.support.kernel_cases import relative

tiny = pytest.importorskip("tests.support.tiny", reason="transformers is not installed")

KERNELS = Path(__file__).parents[2] / "kernels"
PLUGIN = "siri_kernels.integrations.verl_plugin"
PACKAGES = ("verl", "verl.utils", "verl.utils.experimental", "verl.utils.kernel", "verl.models")
PACKAGES += ("verl.models.transformers",)
CHOICE, HEADS = "verl.models.transformers.monkey_patch", "verl.utils.experimental.torch_functional"

# verl asks transformers for what is deprecated there
pytestmark = pytest.mark.filterwarnings(r"default:.*deprecated:FutureWarning:transformers\.")


@pytest.fixture
def verl(monkeypatch):
    """verl's packages without their __init__, as if verl had not been imported yet."""
    folder = installed(monkeypatch, "verl", "0.9", "0.10")
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    with Stubs({name: folder / name.replace(".", "/") for name in PACKAGES}):
        yield folder


def load_as_verl_does(monkeypatch) -> None:
    """`entry_point.load()` for the entry point that pyproject.toml declares; its module is forgotten afterwards."""
    declared = tomllib.loads((KERNELS / "pyproject.toml").read_text())["project"]["entry-points"]["verl.plugins"]
    assert declared == {"siri": PLUGIN}
    fresh("verl_plugin", monkeypatch)


def score(model, ids):
    model.zero_grad()
    mask = torch.ones_like(ids)
    out = model(input_ids=ids, attention_mask=mask, return_dict=True, temperature=0.8)
    (out.log_probs.sum() + out.entropy.sum()).backward()
    return out.log_probs.detach(), out.entropy.detach(), [p.grad.clone() for p in model.parameters()]


def a_model():
    """A tiny Qwen2 of a class of its own, because verl writes the forward into the class."""
    model = tiny.tiny_model()
    model.__class__ = type("Qwen2ForCausalLM", (type(model),), {})
    return model


def choose(choice, model, backend, *, fused=True) -> None:
    """verl's own call, at the end of its apply_monkey_patch."""
    choice.patch_forward_with_backends(model, use_fused_kernels=fused, fused_kernels_backend=backend)


def test_loading_imports_nothing_of_verl_and_replaces_nothing(verl, monkeypatch):
    before = {name for name in sys.modules if name.startswith("verl")}
    functional = importlib.import_module(HEADS)
    known = {HEADS, *(name for name in sys.modules if name.startswith("verl")), *before}
    theirs = dict(vars(functional))
    load_as_verl_does(monkeypatch)
    assert {name for name in sys.modules if name.startswith("verl")} == known
    assert vars(functional) == theirs
    importlib.import_module(CHOICE)
    assert vars(functional) == theirs and functional.FusedLinearForPPO is theirs["FusedLinearForPPO"]


def test_loading_without_verl_does_nothing():
    """The module may be loaded where no verl is: it imports nothing but what stands in its head."""
    script = (
        f"import sys, siri_kernels; before = set(sys.modules); import {PLUGIN}; after = set(sys.modules) - before\n"
        "assert not [m for m in after if m.startswith('verl')], after\n"
        "assert not [m for m in after if 'integrations' in m and 'verl_plugin' not in m and m[-1] != 's'], after"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("backend", ["torch", "liger", "triton", None, "nonsense"])
def test_a_run_that_does_not_ask_is_what_it_was(verl, backend, monkeypatch, capsys):
    """Without the plugin and with it: the same function object in the model's class, the same words, the same head."""
    forwards, words, heads = [], [], []
    for plugin in (False, True):
        with Stubs({name: verl / name.replace(".", "/") for name in PACKAGES}):
            for name in [n for n in sys.modules if n.startswith("verl.") and n not in PACKAGES]:
                monkeypatch.delitem(sys.modules, name)
            if plugin:
                load_as_verl_does(monkeypatch)
            choice, model = importlib.import_module(CHOICE), a_model()
            inherited = type(model).forward
            choose(choice, model, backend)
            forward = type(model).forward
            forwards.append("inherited" if forward is inherited else (forward.__module__, forward.__qualname__))
            words.append(capsys.readouterr().out)
            heads.append(importlib.import_module(HEADS).FusedLinearForPPO.__mro__[1])
            assert getattr(model, "_verl_fused_kernels_backend", None) == (
                backend if forward is not inherited else None
            )
    assert forwards[0] == forwards[1] and words[0] == words[1] and heads[0] is heads[1] is torch.nn.Module
    assert (forwards[0] == "inherited") == (backend in (None, "nonsense"))


def test_the_switch_is_off_where_fused_kernels_are(verl, monkeypatch, capsys):
    load_as_verl_does(monkeypatch)
    choice, model = importlib.import_module(CHOICE), a_model()
    forward = type(model).forward
    choose(choice, model, "siri", fused=False)
    assert type(model).forward is forward and "Skipping monkey patch" in capsys.readouterr().out


def test_without_the_plugin_verl_does_not_know_the_name(verl, capsys):
    """What the plugin is for: verl skips an unknown name with a line, and no fused head is used."""
    choice, model = importlib.import_module(CHOICE), a_model()
    forward = type(model).forward
    choose(choice, model, "siri")
    assert type(model).forward is forward and "fused_kernels_backend is siri" in capsys.readouterr().out


@pytest.mark.parametrize("when", ["before verl's module", "after it"])
def test_a_run_that_asks_gets_the_head_and_the_same_numbers(verl, when, monkeypatch, capsys):
    if when == "after it":
        importlib.import_module(CHOICE)
    load_as_verl_does(monkeypatch)
    load_as_verl_does(monkeypatch)  # verl is imported in many processes, and its entry points may be loaded twice
    choice, functional = importlib.import_module(CHOICE), importlib.import_module(HEADS)
    real = functional.FusedLinearForPPO
    torch.manual_seed(4)
    ids = torch.randint(3, 90, (2, 9))
    theirs, ours = a_model(), a_model()
    ours.load_state_dict(theirs.state_dict())
    choose(choice, theirs, "torch")
    assert functional.FusedLinearForPPO is real
    before = score(theirs, ids)
    choose(choice, ours, "siri")
    choose(choice, ours, "siri")
    assert "the head of Qwen2ForCausalLM is ours" in capsys.readouterr().out
    calls = []
    monkeypatch.setattr(
        "siri_kernels.integrations.verl_head.padded_logprob", counting(calls, "siri_kernels.integrations.padded")
    )
    after = score(ours, ids)
    assert len(calls) == 1, "our head computed it"
    torch.testing.assert_close(after[:2], before[:2], rtol=1e-5, atol=1e-5)
    assert all(relative(x, y) < 1e-5 for x, y in zip(after[2], before[2], strict=True))
    # a second model of the same process that asks for verl's is computed by verl's class
    again = score(theirs, ids)
    assert len(calls) == 1 and all(torch.equal(x, y) for x, y in zip(again[2], before[2], strict=True))
    assert issubclass(functional.FusedLinearForPPO, real)
    assert isinstance(functional.FusedLinearForPPO(512, "torch"), real)
    assert type(functional.FusedLinearForPPO(512, "siri")).__module__ == "siri_kernels.integrations.verl_head"
    with pytest.raises(ValueError, match="Unsupported FusedLinearForPPO backend"):
        functional.FusedLinearForPPO(impl_backend="nonsense")


def counting(calls, module):
    function = importlib.import_module(module).padded_logprob

    def call(*args, **options):
        calls.append(len(args))
        return function(*args, **options)

    return call


def test_a_verl_with_another_head_stops_the_run_that_asks(verl, monkeypatch):
    load_as_verl_does(monkeypatch)
    choice, functional = importlib.import_module(CHOICE), importlib.import_module(HEADS)
    monkeypatch.setattr(functional.FusedLinearForPPO, "forward", lambda self, hidden, weight: None)
    with pytest.raises(ImportError, match=r"this adapter needs \(hidden_states, .*linear_logprob"):
        choose(choice, a_model(), "siri")


def test_a_verl_without_the_place_is_told_when_it_is_imported(monkeypatch, tmp_path):
    folder = tmp_path / "verl" / "models" / "transformers"
    folder.mkdir(parents=True)
    (folder / "monkey_patch.py").write_text("def apply_monkey_patch(model): ...\n")
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    with Stubs({name: tmp_path / name.replace(".", "/") for name in PACKAGES}):
        load_as_verl_does(monkeypatch)
        with pytest.warns(UserWarning, match="patch_forward_with_backends is no longer there") as told:
            importlib.import_module(CHOICE)
    assert len(told) == 1 and "\n" not in str(told[0].message)
