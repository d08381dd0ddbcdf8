"""slime's log-prob and entropy of given logits over vocabulary shards: one read of the logits in the forward, one read
and one write in the backward, and no softmax that is kept.

For `_VocabParallelLogProbEntropy` in slime/utils/ppo_utils.py of slime 0.3.1: `apply` has the same arguments and
results. A keep-mask (the nucleus of a top-p rollout) holds for the log-prob alone, as there, and costs a masked copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from linear import exact_products, logits_gradient, statistics_of
from siri_kernels.rows.torch import finish
from siri_kernels.sharding import Shard
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class VocabParallelLogProbEntropy(torch.autograd.Function):
    """logits [T, V/TP] fp32 (or fp64), target [T] of the whole vocabulary, keep-mask [T, V/TP] or None -> log-prob
    [T, 1], entropy [T] ([0] without `with_entropy`; without a gradient unless `with_entropy_grad`)."""

    @staticmethod
    def forward(
        ctx: Any,
        vocab_parallel_logits: Tensor,
        target: Tensor,
        log_prob_keep_mask: Tensor | None,
        process_group: ProcessGroup | None,
        with_entropy: bool,
        with_entropy_grad: bool = True,
    ) -> tuple[Tensor, Tensor]:
        z = vocab_parallel_logits.contiguous()
        ctx.shard = shard = shard_of(z.shape[1], process_group)
        ctx.entropy_grad = with_entropy and with_entropy_grad
        with exact_products(z):
            stats = statistics_of(kept(z, target, log_prob_keep_mask, shard), target, 1.0, shard)
            logp, entropy, log_sum = finish(*stats.unbind())
            saved = [logp, entropy, stats[0].clone(), log_sum]
            if log_prob_keep_mask is not None and with_entropy:
                stats = statistics_of(z, target, 1.0, shard)
                whole_logp, entropy, log_sum = finish(*stats.unbind())
                saved += [whole_logp, entropy, stats[0].clone(), log_sum]
        ctx.save_for_backward(z, target, log_prob_keep_mask, *saved)
        entropy = entropy.clone() if with_entropy else z.new_zeros(0)
        if not ctx.entropy_grad:
            ctx.mark_non_differentiable(entropy)
        return logp.clone().unsqueeze(-1), entropy

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        z, target, mask, *saved = ctx.saved_tensors
        g = grad_outputs[0].reshape(-1).to(z.dtype).contiguous()
        h = grad_outputs[1].to(z.dtype).contiguous() if ctx.entropy_grad else None
        masked = mask is not None
        with exact_products(z):
            x = kept(z, target, mask, ctx.shard)
            # the entropy of a masked log-prob is that of all logits: it comes by itself
            out = x if masked else torch.empty_like(z)
            numbers = tuple(saved[:4])
            dz = logits_gradient(x, out, target, 1.0, ctx.shard, numbers, g, None if masked else h)
            if masked and h is not None:
                whole = torch.empty_like(z)
                dz += logits_gradient(z, whole, target, 1.0, ctx.shard, tuple(saved[4:]), torch.zeros_like(g), h)
        return dz, None, None, None, None, None


def shard_of(columns: int, group: ProcessGroup | None) -> Shard:
    if group is None or torch.distributed.get_world_size(group) == 1:
        return Shard()
    return Shard(torch.distributed.get_rank(group) * columns, group)


def kept(z: Tensor, target: Tensor, mask: Tensor | None, shard: Shard) -> Tensor:
    """A copy of the logits with -inf where the mask is False, but for the target; z itself without a mask."""
    if mask is None:
        return z
    here, y = shard.localize(target, z.shape[1])
    allowed = mask.scatter(1, y, mask.gather(1, y) | (True if here is None else here[:, None]))
    return z.masked_fill(~allowed, float("-inf"))
