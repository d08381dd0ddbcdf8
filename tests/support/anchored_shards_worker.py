"""Two gloo processes with a part of the vocabulary each, anchored kernels in the interpreter, against the fp64
reference."""

import sys

import torch
import torch.distributed as dist
from siri_kernels import linear_grpo_loss, reference

from tests.support.kernel_cases import WIDE_GSPO, make_case, relative, run

OPTIONS = [
    {},
    {"entropy_coef": 0.1, "temperature": 0.7, "softcap": 3.0},
    {"memory": "lean", "entropy_coef": 0.1},
    {**WIDE_GSPO, "memory": 12_000},
    {"memory": 12_000},  # by their own sizes the ranks would make chunks of 65 and of 27 rows
]


def shards(rank: int, world: int) -> None:
    for i, options in enumerate(OPTIONS):
        for far in (False, True):
            case = make_case(i, d=40, vocab=262, dtype=torch.bfloat16)
            case.bias = case.bias.float()
            if far:  # a token of rank 1 that makes some rows leave the range there, and only there
                if options not in (OPTIONS[0], OPTIONS[2]):
                    continue
                case.bias[200] = 75.0
                case.old_logp = None
            plain = {k: v for k, v in options.items() if k != "memory"}
            exact, expected = run(reference.linear_grpo_loss, case, upcast=True, **plain)
            cut = 40 if "memory" in options else 131
            start, stop = (0, cut) if rank == 0 else (cut, 262)
            case.weight, case.bias = case.weight[start:stop], case.bias[start:stop]
            place = {"vocab_start": start, "group": dist.group.WORLD}
            if cut != 131:
                place["vocab_size"] = 262
            mine, gradients = run(linear_grpo_loss, case, impl="anchored", **place, **options)
            torch.testing.assert_close(mine.loss.double(), exact.loss, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(mine.logp.double(), exact.logp, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(mine.entropy.double(), exact.entropy, rtol=1e-4, atol=1e-5)
            expected = [expected[0], expected[1][start:stop], expected[2][start:stop]]
            errors = [relative(x, y) for x, y in zip(gradients, expected, strict=True)]
            assert all(error < 4e-3 for error in errors), (rank, options, far, errors)
            same = [torch.empty_like(mine.logp) for _ in range(world)]
            dist.all_gather(same, mine.logp)
            assert torch.equal(same[0], same[1]), "every rank has the same bits"


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=int(sys.argv[1]), world_size=2)
    shards(dist.get_rank(), 2)
    dist.barrier()
    dist.destroy_process_group()
