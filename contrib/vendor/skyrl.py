"""A back end of SkyRL's fused LM head: the log-prob of each target over vocabulary shards, without the logits.

For `_fused_lm_head_logprob_apply` in skyrl/backends/skyrl_train/distributed/megatron/model_utils.py of SkyRL 0.3.0,
beside FusedLinearChunkedDistributedLogprob and FusedLinearLogprobTriton, with the same arguments and result.
`chunk_size` counts tokens of the whole batch. One all-reduce of a few numbers per row and chunk; dX is this rank's
part, which the column-parallel layer's own backward sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from linear import LinearLogProb
from siri_kernels.sharding import Shard
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class FusedLinearLogprobSiri:
    @staticmethod
    def apply(
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        vocab_start_index: int,
        vocab_end_index: int,
        chunk_size: int,
        tp_group: ProcessGroup | None,
        inference_only: bool = False,
    ) -> Tensor:
        """hidden [B, S, D], weight [V/TP, D], target [B, S] of the whole vocabulary -> log-probs [B, S] of all shards,
        fp32. Ranks need shards of equal size."""
        if weight.shape[0] != vocab_end_index - vocab_start_index:
            raise ValueError(f"weight {list(weight.shape)} is no shard [{vocab_start_index}, {vocab_end_index})")
        group = tp_group
        if group is not None and torch.distributed.get_world_size(group) == 1:
            group = None
        x = hidden.reshape(-1, hidden.shape[-1]).to(weight.dtype).contiguous()
        shard = Shard(vocab_start_index, group)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not inference_only):
            logp, _ = LinearLogProb.apply(x, weight, target.reshape(-1).contiguous(), 1.0, shard, chunk_size)
        return logp.view(target.shape)
