"""The operator of contrib/trl against fp64 autograd through full logits, traced whole, and inside the installed TRL."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CONTRIB = Path(__file__).parents[2] / "contrib" / "trl"
N, D, V = 23, 12, 101


@pytest.fixture(scope="module")
def operator():
    sys.path.insert(0, str(CONTRIB))
    try:
        yield importlib.import_module("fused_logprob")
    finally:
        sys.path.remove(str(CONTRIB))


def problem(seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=g).to(dtype).requires_grad_()
    weight = (torch.randn(V, D, generator=g) * 0.6).to(dtype).requires_grad_()
    bias = torch.randn(V, generator=g).to(dtype).requires_grad_()
    return hidden, weight, bias, torch.randint(V, (N,), generator=g), torch.randn(2, N, generator=g)


def exact(hidden, weight, bias, ids, temperature=1.0, softcap=None, scale=1.0):
    z = (hidden @ weight.T + (0 if bias is None else bias)) * scale
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    log_p = (z / temperature).log_softmax(-1)
    return log_p.gather(1, ids[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)


CASES = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "softcap": {"softcap": 2.0, "temperature": 1.3},
    "scale": {"logit_scale": 0.4, "softcap": 3.0},
}


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_in_fp64(operator, name, entropy):
    hidden, weight, bias, ids, (g, h) = (
        x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x for x in problem(1)
    )
    rows = torch.tensor([0, 3, 4, 9, 17, 22])
    options = CASES[name]
    given = (g, h if entropy else None)
    result = operator.fused_logprob(hidden, weight, ids, given, bias_V=bias, rows=rows, chunk_rows=4, **options)
    (3 * result.carrier).backward()
    ours = [x.grad.clone() for x in (hidden, weight, bias)]
    for x in (hidden, weight, bias):
        x.grad = None
    renamed = {"scale" if key == "logit_scale" else key: value for key, value in options.items()}
    logp, ent = exact(hidden, weight, bias, ids, **renamed)
    value = (g * logp)[rows].sum() + ((h * ent)[rows].sum() if entropy else 0)
    (3 * value).backward()
    torch.testing.assert_close(result.carrier, value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.logp[rows], logp[rows].detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.entropy[rows], ent[rows].detach(), rtol=1e-12, atol=1e-12)
    for mine, x in zip(ours, (hidden, weight, bias), strict=True):
        torch.testing.assert_close(mine, x.grad, rtol=1e-10, atol=1e-12)
    out = torch.ones(N, dtype=torch.bool)
    out[rows] = False
    assert not result.logp[out].any() and not result.entropy[out].any() and not ours[0][out].any()


def test_gradcheck(operator):
    hidden, weight, bias, ids, (g, h) = problem(2)
    leaves = [x.detach().double()[:5].requires_grad_() if i == 0 else x.detach().double()[:9].requires_grad_()
              for i, x in enumerate((hidden, weight, bias))]  # fmt: skip
    ids, given = ids[:5] % 9, (g[:5].double(), h[:5].double())

    def value(hidden, weight, bias):
        return operator.fused_logprob(hidden, weight, ids, given, bias_V=bias, softcap=1.5, chunk_rows=2).carrier

    assert torch.autograd.gradcheck(value, leaves)


def test_a_row_that_is_left_out_enters_no_product(operator):
    """A NaN in it reaches nothing."""
    hidden, weight, bias, ids, (g, _) = problem(3)
    with torch.no_grad():
        hidden[7] = torch.nan
    rows = torch.tensor([i for i in range(N) if i != 7])
    result = operator.fused_logprob(hidden, weight, ids, (g, None), bias_V=bias, rows=rows)
    result.carrier.backward()
    assert all(x.grad.isfinite().all() for x in (hidden, weight, bias)) and result.logp.isfinite().all()


def test_no_row_at_all_is_a_zero_with_a_gradient(operator):
    hidden, weight, bias, ids, (g, _) = problem(3)
    none = torch.empty(0, dtype=torch.long)
    result = operator.fused_logprob(hidden, weight, ids, (g, None), bias_V=bias, rows=none)
    result.carrier.backward()
    assert float(result.carrier.detach()) == 0 and not weight.grad.any() and hidden.grad.shape == hidden.shape


def clipped(old, advantages):
    """The clipped loss of one token, and its derivative as a function of the chunk's log-probs."""

    def coefficients(logp, entropy, rows):
        ratio, a = (logp - old[rows]).exp(), advantages[rows]
        return torch.where(ratio * a <= ratio.clamp(0.8, 1.2) * a, -ratio * a, 0.0), None

    return coefficients


@pytest.mark.parametrize("chunk", [5, 23])
def test_a_callback_forms_the_gradient_of_a_clipped_loss(operator, chunk):
    hidden, weight, _, ids, (a, noise) = problem(4)
    with torch.no_grad():
        old = exact(hidden, weight, None, ids)[0] + 0.4 * noise
    result = operator.fused_logprob(hidden, weight, ids, clipped(old, a), chunk_rows=chunk)
    result.carrier.backward()
    mine = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    ratio = (exact(hidden, weight, None, ids)[0] - old).exp()
    (-torch.min(ratio * a, ratio.clamp(0.8, 1.2) * a)).sum().backward()
    assert ((ratio < 0.8) | (ratio > 1.2)).any(), "some are clipped"
    for x, y in zip(mine, (hidden.grad, weight.grad), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_bf16_inputs_keep_fp32_log_probs(operator):
    hidden, weight, bias, ids, (g, h) = problem(5, torch.bfloat16)
    result = operator.fused_logprob(hidden, weight, ids, (g, h), bias_V=bias)
    result.carrier.backward()
    doubles = [x.detach().double().requires_grad_() for x in (hidden, weight, bias)]
    logp, entropy = exact(*doubles, ids)
    ((g * logp).sum() + (h * entropy).sum()).backward()
    assert result.logp.dtype == torch.float32
    assert float((result.logp - logp).abs().max()) < 2e-6 * 10 and hidden.grad.dtype == torch.bfloat16
    for x, y in zip((hidden, weight, bias), doubles, strict=True):
        assert float((x.grad.double() - y.grad).norm() / y.grad.norm()) < 8e-3


@pytest.mark.parametrize("kind", ["tensors", "callback"])
def test_it_is_traced_whole(operator, kind):
    """torch.compile(fullgraph=True): a graph break would raise. The graph runs, too, eagerly and with its gradients."""
    hidden, weight, bias, ids, (g, h) = problem(6)
    given = (g, h) if kind == "tensors" else clipped(g - 3, h)
    rows = torch.arange(0, N, 2)

    def step(hidden, weight, bias, ids, rows):
        result = operator.fused_logprob(hidden, weight, ids, given, bias_V=bias, rows=rows, chunk_rows=7)
        return result.carrier, result.logp, result.entropy

    torch._dynamo.reset()
    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        for x in (hidden, weight, bias):
            x.grad = None
        carrier, logp, entropy = function(hidden, weight, bias, ids, rows)
        carrier.backward()
        results.append([carrier.detach(), logp, entropy, *(x.grad.clone() for x in (hidden, weight, bias))])
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(y, x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(N, D + 1)}, "hidden .N, D. and weight"),
        ({"hidden": torch.zeros(N, D, dtype=torch.float64)}, "one floating dtype"),
        ({"targets": torch.zeros(N)}, "targets must be integers"),
        ({"given": (torch.zeros(N - 1), None)}, "dL/dlogp must be"),
        ({"options": {"temperature": 0.0}}, "positive"),
        ({"options": {"bias_V": torch.zeros(V - 1)}}, "bias must be"),
    ],
)
def test_bad_input_is_named(operator, change, message):
    hidden, weight, _, ids, (g, _) = problem(7)
    call = {"hidden": hidden, "targets": ids, "given": (g, None), "options": {}} | change
    with pytest.raises(ValueError, match=message):
        operator.fused_logprob(call["hidden"], weight, call["targets"], call["given"], **call["options"])


INTERPRETED = """
import sys, torch, triton
sys.path.insert(0, sys.argv[1])
import fused_logprob as f
torch.manual_seed(0)
for softcap, entropy in ((None, False), (2.0, True)):
    z, y, g, h = torch.randn(5, 301) * 3, torch.randint(301, (5,)), torch.randn(5), torch.randn(5) if entropy else None
    head = f._Head(torch.empty(0), None, 0.7, softcap, 1.3)
    f.BLOCK = 128
    theirs = f._statistics(z, y, head)
    ours = f._triton_statistics(z, y, head)
    for a, b in zip(theirs, ours):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    expected = f._gradient(z.clone(), y, theirs[0], theirs[1], g, h, head)
    torch.testing.assert_close(f._triton_gradient(z, y, *theirs[:2], g, h, head), expected, rtol=1e-5, atol=1e-6)
print("ok")
"""


def test_the_triton_kernels_compute_what_the_torch_path_does():
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", INTERPRETED, str(CONTRIB)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout == "ok\n", done.stderr[-3000:]


# inside TRL


@pytest.fixture(scope="module")
def seam(operator):
    pytest.importorskip("trl", reason="trl is not installed")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return importlib.import_module("seam")


LOSSES = {
    "dapo": {"loss_type": "dapo"},
    "grpo": {"loss_type": "grpo", "temperature": 0.8},
    "bnpo": {"loss_type": "bnpo", "steps_per_generation": 4},
    "dr_grpo": {"loss_type": "dr_grpo", "epsilon_high": 0.28},
}
LEFT_ALONE = {"sequence ratios": {"loss_type": "grpo", "importance_sampling_level": "sequence"}}


# TRL asks transformers for what is deprecated there
@pytest.mark.filterwarnings(r"default:.*deprecated:FutureWarning:transformers\.")
@pytest.mark.parametrize("name", [*LOSSES, *LEFT_ALONE])
def test_in_the_installed_trl_five_steps_are_the_same(seam, name, tmp_path, monkeypatch):
    """Real GRPOTrainers, one with the operator in its two seams: loss, every logged metric, gradients, parameters."""
    from trl import GRPOTrainer

    from tests.kernels.test_integrations_trl import assert_same_training, trainer

    settings = LOSSES.get(name) or LEFT_ALONE[name]
    theirs = trainer(GRPOTrainer, tmp_path / "a", **settings)
    theirs.train()
    calls = []
    real = seam.fused_logprob
    monkeypatch.setattr(seam, "fused_logprob", lambda *a, **o: calls.append(len(o["rows"])) or real(*a, **o))
    ours = trainer(seam.FusedLossGRPOTrainer, tmp_path / "b", **settings)
    ours.train()
    log = assert_same_training(theirs, ours)
    assert max(abs(row["loss"]) for row in log) > 1e-4
    assert (len(calls) == 10) == (name in LOSSES) and all(0 < rows < 4 * 16 for rows in calls)
