"""Random problems and the comparison with the fp64 reference that every kernel test uses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from siri_kernels import reference

# relative L2 of a gradient and absolute error of a log-prob against fp64 on the same inputs
GRADIENT = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}
VALUE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}

# sequence ratios under GRPO's wide clips, which leave something to compare
WIDE_GSPO = {"loss": "gspo", "clip_low": 0.2, "clip_high": 0.28, "aggregation": "token_mean"}
# settings under which the Triton path meets the reference, in the interpreter and on a GPU
KERNEL_OPTIONS = {
    "grpo": {},
    "dual-clip": {"dual_clip": 1.2, "temperature": 0.7},
    "tis": {"importance": "tis", "importance_cap": 1.1, "aggregation": "seq_mean"},
    "icepop": {"importance": "icepop", "importance_low": 0.8, "importance_cap": 1.3},
    "entropy-softcap": {"entropy_coef": 0.05, "softcap": 2.5, "temperature": 1.3},
    "gspo": {"loss": "gspo", "clip_low": 0.02, "clip_high": 0.03},
    "gspo-chunked": {**WIDE_GSPO, "memory": 3904, "entropy_coef": 0.01, "importance": "tis"},
    "cispo": {"loss": "cispo", "clip_low": None},
    "no-clip": {"clip_low": None, "clip_high": None},
    "small-chunks": {"memory": 3904, "entropy_coef": 0.02},
    "lean": {"memory": "lean", "entropy_coef": 0.02},
    "lean-slices": {**WIDE_GSPO, "memory": 300},
    "gspo-icepop": {**WIDE_GSPO, "importance": "icepop", "importance_low": 0.8, "importance_cap": 1.3},
}


@dataclass
class Case:
    hidden: torch.Tensor
    weight: torch.Tensor
    target_ids: torch.Tensor
    advantages: torch.Tensor
    cu_seqlens: torch.Tensor
    mask: torch.Tensor
    old_logp: torch.Tensor
    rollout_logp: torch.Tensor
    bias: torch.Tensor

    def loss_tensors(self) -> dict:
        names = ("cu_seqlens", "mask", "old_logp", "rollout_logp", "bias")
        return {name: getattr(self, name) for name in names}


def make_case(
    seed, lengths=(9, 0, 31, 1, 24), d=24, vocab=61, dtype=torch.float32, spread=0.3, per_token=False
) -> Case:
    """A packed batch; old and rollout log-probs lie around the true ones, so that clips and weights act."""
    g = torch.Generator().manual_seed(seed)
    n = sum(lengths)
    hidden = torch.randn(n, d, generator=g).to(dtype)
    weight = (torch.randn(vocab, d, generator=g) / d**0.5 * 2).to(dtype)
    bias = torch.randn(vocab, generator=g).to(dtype)
    target_ids = torch.randint(vocab, (n,), generator=g)
    logp, _ = reference.logprob_and_entropy(reference.logits(hidden.double(), weight.double(), bias=bias), target_ids)
    advantages = torch.randn(n if per_token else len(lengths), generator=g)
    if len(lengths) > 2:
        advantages[2] = 0
    return Case(
        hidden,
        weight,
        target_ids,
        advantages,
        torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()]),
        torch.rand(n, generator=g) > 0.25,
        (logp + spread * torch.randn(n, generator=g)).float(),
        (logp + spread * torch.randn(n, generator=g)).float(),
        bias,
    )


def exact_problem(n=41, d=64, vocab=300, seed=0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits that fp32 represents exactly, so that no order of summation in the host's matrix product shows."""
    g = torch.Generator().manual_seed(seed)
    hidden = (torch.randint(-8, 9, (n, d), generator=g) / 8).to(torch.bfloat16)
    weight = (torch.randint(-8, 9, (vocab, d), generator=g) / 16).to(torch.bfloat16)
    return hidden, weight, torch.randint(vocab, (n,), generator=g)


def run(fn, case: Case, *, upstream=1.0, upcast=False, tensors=None, **options):
    """(result, [dX, dW, dbias]) of a loss function on a case; gradients None where there is none."""
    tensors = case.loss_tensors() if tensors is None else tensors
    bias = tensors.get("bias")
    leaves = [case.hidden, case.weight, *([] if bias is None else [bias])]
    leaves = [(x.double() if upcast else x).detach().clone().requires_grad_() for x in leaves]
    if upcast:
        tensors = {k: v.double() if v is not None and v.is_floating_point() else v for k, v in tensors.items()}
        options = {
            k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in options.items()
        }
    if bias is not None:
        tensors = {**tensors, "bias": leaves[2]}
    result = fn(leaves[0], leaves[1], case.target_ids, case.advantages, **tensors, **options)
    if result.loss.requires_grad:
        (result.loss * upstream).backward()
    return result, [x.grad for x in leaves]


def relative(x: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2 error; absolute where nothing is expected."""
    difference = (x.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp(min=1e-30)) if expected.norm() > 0 else float(difference)


def assert_same(result, gradients, expected, expected_gradients, dtype, ratio_bound=1e-4):
    """A result against the reference's: loss, log-probs, entropy, every metric, every gradient."""
    tolerance = VALUE[dtype]
    scale = 1 + float(expected.loss.detach().abs())
    assert abs(float(result.loss.detach()) - float(expected.loss.detach())) <= tolerance * scale, (
        result.loss,
        expected.loss,
    )
    for name in ("logp", "entropy"):
        torch.testing.assert_close(
            getattr(result, name).double(),
            getattr(expected, name).double(),
            rtol=tolerance,
            atol=tolerance,
            equal_nan=True,
        )
    assert result.metrics.keys() == expected.metrics.keys()
    for name, value in expected.metrics.items():
        torch.testing.assert_close(
            result.metrics[name].double(), value.double(), rtol=ratio_bound, atol=tolerance, equal_nan=True, msg=name
        )
    assert len(gradients) == len(expected_gradients)
    for name, x, y in zip(("dX", "dW", "dbias"), gradients, expected_gradients, strict=False):
        assert (x is None) == (y is None), name
        if x is not None:
            assert relative(x, y) <= GRADIENT[dtype], (name, relative(x, y))
