"""Bad input is a ValueError of one line that names the argument."""

import pytest
import siri_kernels
import torch

from tests.support.kernel_cases import make_case

BAD = {
    "hidden shape": ({"hidden": torch.zeros(2, 3, 4)}, r"hidden must be a float tensor \[N, D\]"),
    "hidden dtype": ({"hidden": torch.zeros(65, 24, dtype=torch.int32)}, "hidden must be a float"),
    "weight shape": ({"weight": torch.zeros(61, 25)}, "weight must have shape .* D = 24"),
    "weight dtype": ({"weight": torch.zeros(61, 24, dtype=torch.float64)}, "cast one"),
    "target shape": ({"target_ids": torch.zeros(3, dtype=torch.int64)}, r"target_ids must have shape \[65\]"),
    "target dtype": ({"target_ids": torch.zeros(65)}, "target_ids must be int64"),
    "target id": ({"target_ids": torch.full((65,), 61)}, r"target_ids must lie in \[0, 61\)"),
    "target -100": ({"target_ids": torch.full((65,), -100)}, "use mask"),
    "device": ({"mask": torch.ones(65, dtype=torch.bool, device="meta")}, "mask is on meta"),
    "bias": ({"bias": torch.zeros(3)}, r"bias must have shape \[61\]"),
    "temperature": ({"temperature": 0.0}, "temperature must be greater than 0"),
    "temperature rows": ({"temperature": torch.zeros(65)}, "temperature must be greater than 0"),
    "temperature shape": ({"temperature": torch.ones(4)}, "temperature must have shape"),
    "softcap": ({"softcap": -1.0}, "softcap must be greater than 0"),
    "offsets start": ({"cu_seqlens": torch.tensor([1, 9, 9, 40, 41, 65])}, "cu_seqlens must start at 0"),
    "offsets end": ({"cu_seqlens": torch.tensor([0, 9, 9, 40, 41, 64])}, "end at N = 65"),
    "offsets order": ({"cu_seqlens": torch.tensor([0, 9, 8, 40, 41, 65])}, "cu_seqlens must not decrease"),
    "offsets dtype": ({"cu_seqlens": torch.tensor([0.0, 65.0])}, "cu_seqlens must be int64"),
    "no offsets": ({"cu_seqlens": None, "advantages": torch.zeros(65), "aggregation": "seq_mean"}, "pass cu_seqlens"),
    "gspo alone": ({"cu_seqlens": None, "advantages": torch.zeros(65), "loss": "gspo"}, "pass cu_seqlens"),
    "advantages": ({"advantages": torch.zeros(7)}, r"advantages must have shape \[65\]"),
    "mask": ({"mask": torch.ones(65)}, "mask must be bool"),
    "old_logp": ({"old_logp": torch.zeros(64)}, r"old_logp must have shape \[65\]"),
    "keep range": ({"keep": torch.tensor([0, 65])}, "keep must index rows"),
    "keep twice": ({"keep": torch.tensor([3, 3])}, "keep names a row twice"),
    "clip": ({"clip_low": -0.1}, "clip_low must be at least 0"),
    "clip high": ({"clip_high": float("nan")}, "clip_high must be a finite number"),
    "dual clip": ({"dual_clip": 0.9}, "dual_clip must be greater than 1"),
    "dual cispo": ({"dual_clip": 3.0, "loss": "cispo"}, "dual_clip does not apply"),
    "loss": ({"loss": "grop"}, "did you mean 'grpo'"),
    "aggregation": ({"aggregation": "token"}, "did you mean 'token_mean'"),
    "importance": ({"importance": "ice_pop"}, "did you mean 'icepop'"),
    "importance alone": ({"importance": "tis", "rollout_logp": None}, "pass rollout_logp"),
    "importance bounds": ({"importance_low": 3.0}, "importance_low=3.0 is above"),
    "fixed length": ({"aggregation": "seq_mean_fixed"}, "fixed_length goes with"),
    "fixed length alone": ({"fixed_length": 5}, "fixed_length goes with"),
    "denominator": ({"denominator": 0}, "denominator must be greater than 0"),
    "denominator tensor": ({"denominator": torch.tensor(0)}, "denominator must be greater than 0"),
    "denominator shape": ({"denominator": torch.ones(2)}, "denominator must be one number"),
    "memory": ({"memory": "fats"}, "did you mean 'fast'"),
    "memory bytes": ({"memory": 0}, "memory must be a positive number"),
    "memory float": ({"memory": 1e9}, "memory must be a positive number of bytes or one of fast, .* got 1000000000.0"),
    "forward_all": ({"forward_all": "no"}, "forward_all must be True or False"),
    "low_rank": ({"low_rank": 3}, "low_rank must be a pair"),
    "low_rank u": ({"low_rank": (torch.tensor(1.0), torch.zeros(61, 2))}, r"low_rank\[0\] must have shape \[65, 0\]"),
    "low_rank B": ({"low_rank": (torch.zeros(65, 2), torch.zeros(61, 3))}, r"low_rank\[1\] must have shape \[61, 2\]"),
    "logit dtype": ({"logit_dtype": "bf32"}, "logit_dtype='bf32' is not one of"),
    "main_grad": ({"main_grad": torch.zeros(61, 24, dtype=torch.bfloat16)}, "main_grad must be fp32"),
    "main_grad type": ({"main_grad": 3}, "main_grad must be fp32 .* got int"),
    "shard": ({"vocab_start": 4}, "pass the group"),
    "impl": ({"impl": "tirton"}, "did you mean 'triton'"),
    "anchored": ({"impl": "anchored"}, "anchored"),
}


@pytest.mark.parametrize("name", BAD)
def test_the_argument_is_named(name):
    options, message = BAD[name]
    case = make_case(1)
    arguments = {
        "hidden": case.hidden,
        "weight": case.weight,
        "target_ids": case.target_ids,
        "advantages": case.advantages,
        **case.loss_tensors(),
        **options,
    }
    with pytest.raises(ValueError, match=message) as error:
        siri_kernels.linear_grpo_loss(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("none", [-100, -1, 61, 2**40])
@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_ids_of_rows_that_do_not_count_may_be_none(none, impl, memory):
    """-100 marks padding in every other library."""
    case = make_case(1)
    tensors = case.loss_tensors()
    mask = torch.arange(65) % 3 > 0
    results = []
    for other in (0, none):
        hidden, weight = case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_()
        ids = case.target_ids.masked_fill(~mask, other)
        options = {**tensors, "mask": mask, "impl": impl, "memory": memory}
        result = siri_kernels.linear_grpo_loss(hidden, weight, ids, case.advantages, **options)
        result.loss.backward()
        results.append((result.loss, result.logp, hidden.grad, weight.grad, *result.metrics.values()))
    for result_of_0, result_of_none in zip(*results, strict=True):
        assert torch.equal(result_of_0.nan_to_num(), result_of_none.nan_to_num())
    with pytest.raises(ValueError, match="target_ids must lie in"):
        ids = case.target_ids.masked_fill(mask, none)
        siri_kernels.linear_grpo_loss(
            case.hidden, case.weight, ids, case.advantages, **{**tensors, "mask": mask, "impl": impl}
        )


def test_the_other_functions_check_as_well():
    x, ids = torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"logits must be a float tensor \[..., V\]"):
        siri_kernels.logprob_from_logits(torch.zeros(5), ids)
    with pytest.raises(ValueError, match=r"target_ids must have shape \[3\]"):
        siri_kernels.logprob_from_logits(x, ids[:2])
    with pytest.raises(ValueError, match=r"target_ids must lie in \[0, 5\)"):
        siri_kernels.logprob_from_logits(x, ids + 5)
    with pytest.raises(ValueError, match="temperature must be greater than 0"):
        siri_kernels.logprob_from_logits(x, ids, temperature=-1.0)
    with pytest.raises(ValueError, match="anchor must have shape"):
        siri_kernels.linear_logprob(x, x, ids, anchor=torch.zeros(2))
    with pytest.raises(ValueError, match=r"logp must be a float tensor \[N\]"):
        siri_kernels.grpo_loss(x, None, x)
    for entropy in (x[:2, 0], 0.5, x[:, 0].int()):
        with pytest.raises(ValueError, match="entropy must"):
            siri_kernels.grpo_loss(x[:, 0], None, x[:, 0], entropy=entropy)
    with pytest.raises(ValueError, match="entropy_coef needs the entropy"):
        siri_kernels.grpo_loss(x[:, 0], None, x[:, 0], entropy_coef=0.1)
    with pytest.raises(ValueError, match="no metrics to merge"):
        siri_kernels.merge_metrics([])
