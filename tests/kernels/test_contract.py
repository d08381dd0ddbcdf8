"""What users rely on: names and defaults of the functions, and the README's example, run as it stands."""

import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import siri_kernels
import torch
from siri_kernels import linear_grpo_loss, reference
from siri_kernels.defaults import IMPORTANCE_CAPS, LOSS_DEFAULTS, by_name
from siri_kernels.loss.spec import LossOptions, LossSettings
from siri_kernels.loss.tokens import prepare
from torch import nn

from siri.config import sections
from tests.support.kernel_cases import relative

README = Path(__file__).parents[2] / "kernels" / "README.md"
LOSS = {
    "rollout_logp": None,
    "mask": None,
    "cu_seqlens": None,
    "loss": "grpo",
    "clip_low": "auto",
    "clip_high": "auto",
    "dual_clip": None,
    "importance": "none",
    "importance_low": 0.5,
    "importance_cap": "auto",
    "aggregation": "auto",
    "denominator": None,
    "fixed_length": None,
    "entropy_coef": 0.0,
}
HEAD = {"temperature": 1.0, "bias": None, "softcap": None, "impl": "auto"}
PLACEMENT = {"forward_all": True, "memory": "fast", "logit_dtype": "fp32", "vocab_start": 0, "group": None}
CONTRACT = {
    "linear_logprob": (
        ["hidden", "weight", "target_ids"],
        {**HEAD, "anchor": None, "offset": None, "return_entropy": False, "return_offset": False, "memory": "fast"},
    ),
    "linear_grpo_loss": (
        ["hidden", "weight", "target_ids", "advantages"],
        {**LOSS, **HEAD, **PLACEMENT, "old_logp": None, "offset": None, "keep": None, "main_grad": None},
    ),
    "grpo_loss": (["logp", "old_logp", "advantages"], LOSS),
    "logprob_from_logits": (
        ["logits", "target_ids"],
        {"temperature": 1.0, "return_entropy": False, "impl": "auto"},
    ),
}


@pytest.mark.parametrize("name", CONTRACT)
def test_names_and_defaults(name):
    positional, options = CONTRACT[name]
    parameters = inspect.signature(getattr(siri_kernels, name)).parameters
    kinds = {p.name: p.kind for p in parameters.values()}
    assert [n for n, kind in kinds.items() if kind is inspect.Parameter.POSITIONAL_OR_KEYWORD] == positional
    defaults = {n: p.default for n, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert options.items() <= defaults.items()
    assert all(defaults[extra] is None for extra in defaults.keys() - options.keys()), (
        "an addition changes nothing unasked"
    )


def test_the_options_of_the_loss_are_the_same_wherever_they_are_named():
    """The settings, the keywords that a type checker knows, the reference, and the functions' signatures (above)."""
    fields = LossSettings.__dataclass_fields__
    automatic = by_name("grpo", "none")
    types = {name: hint.__forward_arg__ for name, hint in LossOptions.__annotations__.items()}
    assert {name: field.type for name, field in fields.items()} == {
        name: hint.replace("float | Auto", "float") for name, hint in types.items()
    }
    assert {name for name, hint in types.items() if "Auto" in hint} == automatic.keys() - {"aggregation"}
    parameters = inspect.signature(reference.grpo_loss).parameters
    assert {name: parameters[name].default for name in fields} == {
        name: "auto" if name in automatic else field.default for name, field in fields.items()
    }
    assert automatic == {name: fields[name].default for name in automatic}


@pytest.mark.parametrize(
    ("names", "values"),
    [
        (("grpo", "none"), (0.2, 0.28, "token_mean", 2.0)),
        (("gspo", "tis"), (3e-4, 4e-4, "seq_mean", 2.0)),
        (("cispo", "icepop"), (None, 0.28, "token_mean", 5.0)),
    ],
)
def test_a_name_means_what_its_paper_has(names, values):
    """In the operator, in the reference, and in the settings of `siri train`; what is given is kept."""
    loss, importance = names
    meant = dict(zip(("clip_low", "clip_high", "aggregation", "importance_cap"), values, strict=True))
    assert by_name(loss, importance) == meant
    assert (LOSS_DEFAULTS, IMPORTANCE_CAPS) == (sections.LOSS_DEFAULTS, sections.IMPORTANCE_CAPS)
    torch.manual_seed(0)
    logp, old, rollout, advantages = (torch.randn(12, dtype=torch.float64) * 0.3 for _ in range(4))
    tensors = {"old_logp": old, "rollout_logp": rollout, "cu_seqlens": torch.tensor([0, 5, 12])}
    for function, first in ((reference.grpo_loss, None), (siri_kernels.grpo_loss, old)):
        if first is not None:
            tensors.pop("old_logp")
        for options in ({}, {"clip_high": 0.1}):
            plain = function(logp, first, advantages, **tensors, loss=loss, importance=importance, **options)
            spelt = function(logp, first, advantages, **tensors, loss=loss, importance=importance, **(meant | options))
            assert torch.equal(plain[0], spelt[0])
    with pytest.raises(ValueError, match="loss"):
        siri_kernels.grpo_loss(logp, old, advantages, loss="gpro")


@pytest.mark.parametrize("function", ["linear_grpo_loss", "grpo_loss"])
def test_a_keyword_that_is_none(function):
    x = torch.zeros(3, 3)
    arguments = {"linear_grpo_loss": (x, x, torch.arange(3), x[0]), "grpo_loss": (x[0], None, x[0])}[function]
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'clip_hihg': the options of the loss are loss, "):
        getattr(siri_kernels, function)(*arguments, clip_hihg=0.3)


def test_the_readmes_example_runs_and_is_right(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip() and line[0] != "#"]) <= 10
    torch.manual_seed(0)
    body, lm_head = nn.Embedding(23, 8), nn.Linear(8, 23, bias=False)
    model = SimpleNamespace(
        model=lambda ids, use_cache: SimpleNamespace(last_hidden_state=torch.tanh(body(ids))), lm_head=lm_head
    )
    # two packed sequences, prompts of 2 and 1 tokens and responses of 3 and 4
    ids = torch.randint(23, (10,))
    rows = torch.tensor([1, 2, 3, 5, 6, 7, 8])
    names = {"model": model, "input_ids": ids[None], "rows": rows, "target_ids": ids[rows + 1]}
    names |= {"advantages": torch.tensor([1.0, -0.5]), "cu_seqlens": torch.tensor([0, 3, 7])}
    names["old_logp"] = -3 - 0.2 * torch.rand(7)
    exec(example, names)
    assert "clip_high_fraction" in capsys.readouterr().out
    mine, lm_head.weight.grad = lm_head.weight.grad, None
    options = {name: names[name] for name in ("cu_seqlens", "old_logp")}
    hidden = torch.tanh(body(ids[rows]))
    reference.linear_grpo_loss(
        hidden, lm_head.weight, ids[rows + 1], names["advantages"], temperature=0.6, **options
    ).loss.backward()
    assert relative(mine, lm_head.weight.grad) < 1e-5


def test_more_rows_than_16_bits():
    n = 70_001
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(n, 2, generator=g).double(), torch.randn(3, 2, generator=g).double()
    target_ids, advantages = torch.randint(3, (n,), generator=g), torch.randn(n, generator=g).double()
    gradients = []
    for function in (linear_grpo_loss, reference.linear_grpo_loss):
        w = weight.clone().requires_grad_()
        result = function(hidden, w, target_ids, advantages, entropy_coef=0.1)
        result.loss.backward()
        gradients.append((result.logp, w.grad))
    assert relative(gradients[0][0], gradients[1][0]) < 1e-11 and relative(gradients[0][1], gradients[1][1]) < 1e-9


@pytest.mark.parametrize("loss", ["grpo", "gspo", "cispo"])
@pytest.mark.parametrize("importance", ["none", "tis", "icepop"])
@pytest.mark.parametrize("argument", ["advantages", "old_logp", "rollout_logp"])
def test_a_nan_among_the_tokens_is_seen(argument, importance, loss):
    g = torch.Generator().manual_seed(1)
    tensors = {name: -torch.rand(6, generator=g) for name in ("advantages", "old_logp", "rollout_logp")}
    tensors[argument][2] = torch.nan
    hidden, weight = torch.randn(6, 4, generator=g), torch.randn(9, 4, generator=g).requires_grad_()
    options = {"loss": loss, "importance": importance, "cu_seqlens": torch.tensor([0, 3, 6])}
    result = linear_grpo_loss(hidden, weight, torch.arange(6), **tensors, **options)
    result.loss.backward()
    if argument == "rollout_logp" and importance == "none":  # it has no share in this loss, only in its metrics
        assert result.loss.isfinite() and result.metrics["mismatch_k1"].isnan()
    else:
        assert result.loss.isnan() and weight.grad.isnan().any()


@pytest.mark.parametrize(("divisor", "weight"), [(torch.nan, torch.nan), (-2.0, torch.nan), (0.0, 0.0), (2.0, 0.5)])
def test_a_divisor_that_nobody_checked(divisor, weight):
    """On CUDA its value is not looked at: nonsense must show, and a batch in which nothing counts must not."""
    options = {"old_logp": None, "rollout_logp": None, "mask": None, "cu_seqlens": None, "dtype": torch.float32}
    tokens = prepare(LossSettings(), 2, torch.ones(2), denominator=torch.tensor(divisor), **options)
    expected = torch.full((2,), weight)
    torch.testing.assert_close(tokens.weight, expected, rtol=0, atol=0, equal_nan=True)
