"""Two gloo processes: vocabulary shards and a head sharded by FSDP2, each against the whole thing in one process."""

import sys

import torch
import torch.distributed as dist
from siri_kernels import FusedLMHead, linear_grpo_loss
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from tests.support.kernel_cases import WIDE_GSPO, make_case, relative, run

# the second shard is the larger one: by their own sizes the ranks would make chunks of 30 and of 20 rows
SHARD_OPTIONS = [
    {},
    {"entropy_coef": 0.1, "temperature": 0.7},
    {"memory": 6000, "softcap": 3.0},
    {"memory": "lean", "entropy_coef": 0.1},
    {**WIDE_GSPO, "memory": 3000},
]


def shards(rank: int, world: int) -> None:
    for extreme in (1.0, 1e4):
        for i, options in enumerate(SHARD_OPTIONS):
            case = make_case(i, vocab=61)
            case.hidden = case.hidden * extreme
            if extreme > 1:
                case.old_logp = None
            whole, gradients = run(linear_grpo_loss, case, **options)
            start, stop = (0, 25) if rank == 0 else (25, 61)
            case.weight, case.bias = case.weight[start:stop], case.bias[start:stop]
            place = {"vocab_start": start, "vocab_size": 61, "group": dist.group.WORLD}
            mine, my_gradients = run(linear_grpo_loss, case, **place, **options)
            tolerance = 1e-5 if extreme == 1 else 1e-4
            torch.testing.assert_close(mine.loss, whole.loss, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(mine.logp, whole.logp, rtol=1e-5, atol=1e-5 * extreme)
            torch.testing.assert_close(mine.entropy, whole.entropy, rtol=1e-4, atol=1e-5)
            expected = [gradients[0], gradients[1][start:stop], gradients[2][start:stop]]
            errors = [relative(x, y) for x, y in zip(my_gradients, expected, strict=True)]
            assert all(error < 10 * tolerance for error in errors), (options, extreme, errors)
            same = [torch.empty_like(mine.logp) for _ in range(world)]
            dist.all_gather(same, mine.logp)
            assert torch.equal(same[0], same[1]), "every rank has the same bits"


def fsdp(rank: int, world: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(24, 61, bias=False)
    cases = [make_case(10 + r, dtype=torch.bfloat16) for r in range(world)]
    full = linear.weight.detach().clone()

    def loss(head_loss, case):
        tensors = {"cu_seqlens": case.cu_seqlens, "old_logp": case.old_logp, "mask": case.mask, "clip_low": 0.05}
        return head_loss(case.hidden, case.target_ids, case.advantages, **tensors)

    expected = torch.zeros_like(full)
    results = []
    for case in cases:
        weight = full.to(torch.bfloat16).requires_grad_()
        plain = FusedLMHead(nn.Parameter(weight))
        results.append(loss(plain.grpo_loss, case))
        results[-1].loss.backward()
        expected += plain.weight.grad.float() / world

    head = FusedLMHead.of(linear)
    fully_shard(head, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))
    try:
        loss(lambda hidden, *args, **options: linear_grpo_loss(hidden, head.weight, *args, **options), cases[rank])
    except ValueError as error:
        assert "call the head itself" in str(error)
    else:
        raise AssertionError("a sharded weight was taken for the whole")
    result = loss(head.grpo_loss, cases[rank])
    result.loss.backward()
    # fp32 old_logp must not have been cast to bf16 on the way in: the ratio would move by 1e-2
    torch.testing.assert_close(result.loss, results[rank].loss, rtol=1e-6, atol=1e-6)
    assert relative(head.weight.grad.full_tensor(), expected) < 1e-5
    torch.testing.assert_close(head.logprob(cases[rank].hidden, cases[rank].target_ids), result.logp)


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=int(sys.argv[1]), world_size=2)
    shards(dist.get_rank(), 2)
    fsdp(dist.get_rank(), 2)
    dist.barrier()
    dist.destroy_process_group()
