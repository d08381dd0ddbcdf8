"""Two gloo processes with different batches: a tiny Qwen2 sharded by FSDP2, its untied head a module of its own, scored
through the adapters, against the mean gradient of the whole model over both batches."""

import os
import sys

import torch
import torch.distributed as dist
from siri_kernels import FusedLMHead
from siri_kernels.integrations import padded, transformers
from siri_kernels.integrations.trl import LossCall, add_fused_lm_head
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from trl.trainer.utils import add_fused_lm_head as add_trls_head

from tests.support.tiny import tiny_model

ADVANTAGES = torch.tensor([1.0, -0.5, 0.25])


def batch(rank):
    ids = torch.randint(3, 90, (3, 10), generator=torch.Generator().manual_seed(rank))
    return ids, torch.ones_like(ids)


def plain_loop(model, rank):
    ids, ones = batch(rank)
    return transformers.policy_loss(model, ids, ones, ones, ADVANTAGES).loss


def verl_style(model, rank):
    """hidden states from the backbone, `lm_head.weight` read outside the head's own forward"""
    ids, ones = batch(rank)
    hidden = model.model(input_ids=ids, attention_mask=ones, use_cache=False).last_hidden_state
    logp, entropy = padded.padded_logprob(hidden, model.lm_head.weight, ids.roll(-1, 1), None)
    return -(logp * ADVANTAGES[:, None]).mean() + 0.01 * entropy.mean()


def trl_style(model, rank):
    ids, ones = batch(rank)
    call = LossCall({"advantages": ADVANTAGES, "denominator": 27.0, "aggregation": "token_mean"})
    return call.through(model)(input_ids=ids, attention_mask=ones, labels=ids, fused_lm_head=True).loss


def trls(model):
    add_trls_head(model, outputs=("log_probs", "entropy"))
    add_fused_lm_head(model)


def fused(model):
    model.lm_head = FusedLMHead.of(model.lm_head)


def check(loss, mesh, rank, prepare=lambda model: None):
    whole, sharded = tiny_model(), tiny_model()
    for model in (whole, sharded):
        prepare(model)
    backbone = () if loss is trl_style else (sharded.model,)  # TRL's call enters at the root
    for part in (*sharded.model.layers, *backbone, sharded.lm_head, sharded):
        fully_shard(part, mesh=mesh)
    values = [loss(whole, r) for r in range(2)]
    (sum(values) / 2).backward()
    value = loss(sharded, rank)
    value.backward()
    torch.testing.assert_close(value, values[rank], rtol=1e-5, atol=1e-6)
    for (name, x), (_, y) in zip(whole.named_parameters(), sharded.named_parameters(), strict=True):
        torch.testing.assert_close(
            y.grad.full_tensor(), x.grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{loss.__name__} {n}: {m}"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    store, rank = sys.argv[1], int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    check(trl_style, mesh, rank, trls)
    check(plain_loop, mesh, rank)
    check(plain_loop, mesh, rank, fused)
    check(verl_style, mesh, rank)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # threads of the libraries that TRL imports sometimes abort an ordinary exit
