"""No value travels to the host, shown without a GPU: the operations that would synchronise are listed as they run.

A custom operator hides its inside from such a list, so its Python function is called in its place. What only a GPU's
runtime can show, copies from pageable memory among it, is in `test_gpu.py`.
"""

import pytest
import torch
from siri_kernels import linear_grpo_loss, linear_logprob
from siri_kernels.chunked import Needs
from siri_kernels.ops import grpo as ops_grpo
from siri_kernels.ops import logprob as ops_logprob
from siri_kernels.ops.operator import Operator
from siri_kernels.ops.settings import HeadSettings, LogprobBackwardSettings, LogprobSettings, Placement

from tests.support.kernel_cases import make_case
from tests.support.synchronisations import Synchronisations


@pytest.fixture
def bare(monkeypatch):
    """The operators without their wrapping, and values unchecked as on CUDA."""
    for module in (ops_grpo, ops_logprob):
        monkeypatch.setattr(module, "values_are_checked", lambda _: False)
    monkeypatch.setattr(Operator, "__call__", lambda self, **arguments: torch.no_grad()(self.function)(**arguments))


@pytest.mark.parametrize("loss", ["grpo", "gspo", "cispo"])
@pytest.mark.parametrize("memory", ["fast", 3904, "lean"])
@pytest.mark.parametrize("forward_all", [True, False])
def test_the_loss_stays_on_the_device(bare, loss, memory, forward_all):
    case = make_case(1)
    tensors = {k: v for k, v in case.loss_tensors().items() if k != "bias"}
    leaves = [x.clone().requires_grad_() for x in (case.hidden, case.weight)]
    keep = case.mask.nonzero().squeeze(1)
    for options in (
        {},
        {"importance": "tis", "entropy_coef": 0.1, "aggregation": "seq_mean", "denominator": torch.tensor(3.0)},
        {"importance": "icepop", "softcap": 3.0, "temperature": torch.ones(65), "denominator": 2.0},
    ):
        with Synchronisations() as seen:
            result = linear_grpo_loss(
                *(*leaves, case.target_ids, case.advantages),
                **{**tensors, **options, "keep": keep, "loss": loss, "memory": memory, "forward_all": forward_all},
            )
        assert seen.operators == [] and result.loss.isfinite()


def test_the_backward_of_log_probs_stays_on_the_device(bare):
    case = make_case(2)
    head, placement = HeadSettings(), Placement("torch", budget=4000)
    tensors = {"hidden": case.hidden, "weight": case.weight, "target_ids": case.target_ids}
    tensors |= {"bias": None, "temperature_N": None}
    saved = ops_logprob.linear_logprob(
        **tensors, anchor=None, offset=None, keep=None, main_grad=None, settings=LogprobSettings(head, placement)
    )
    saved = {name: value for name, value in saved._asdict().items() if name != "offset"}
    g, needs = torch.randn(65), Needs(hidden=True, weight=True, bias=False)
    with Synchronisations() as seen:
        gradients = ops_logprob.linear_logprob_backward(
            **{**tensors, **saved, "d_logp": g, "d_entropy": g, "keep": torch.arange(65)},
            settings=LogprobBackwardSettings(head, placement, needs, fp32_weight=False),
        )
    assert seen.operators == [] and float(gradients.d_weight.abs().sum()) > 0


def test_the_list_would_show_one(bare):
    """On CPU tensors without keep the rows are looked up, which is such an operation."""
    case = make_case(3)
    with Synchronisations() as seen:
        linear_grpo_loss(case.hidden, case.weight, case.target_ids, case.advantages, cu_seqlens=case.cu_seqlens)
    assert any("nonzero" in name for name in seen.operators)
    with Synchronisations() as seen:
        linear_logprob(case.hidden, case.weight, case.target_ids)[case.mask].sum().item()
    assert len(seen.operators) == 2
