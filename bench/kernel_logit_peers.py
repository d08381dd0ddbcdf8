"""What other packages compute of given logits: `readers` are functions of (logits [N, V], target_ids [N]) -> (logp [N],
entropy [N] or None), `logit_losses` whole losses. Built as in `kernel_peers`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from kernel_peers import Peers, chosen, compiled, eager_logits, installed, kernels_run
from kernel_problems import Problem
from torch import Tensor

Reader = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]


def readers(p: Problem, peers: Peers = None) -> dict[str, Reader]:
    """Of logits."""
    return chosen(READERS, p, peers)


def trl_reader(p: Problem) -> Reader | None:
    utils = installed("trl.trainer.utils")
    return utils and (lambda z, y: utils.selective_log_softmax_and_entropy(z, y, False))


def trl_logp(p: Problem) -> Reader | None:
    utils = installed("trl.trainer.utils")
    return utils and (lambda z, y: (utils.selective_log_softmax(z[None], y[None])[0], None))


READERS: dict[str, Callable[[Problem], Reader | None]] = {
    "eager": lambda p: eager_logits,
    "torch.compile": lambda p: compiled(eager_logits) if p.hidden.is_cuda else None,
    "trl": trl_reader,
    "trl-logp-only": trl_logp,
}


def undifferentiable_readers(p: Problem, peers: Peers = None) -> dict[str, Callable[[], tuple[Tensor, None]]]:
    """Log-probs of p.logits, without gradient."""
    if not kernels_run(p.hidden.device) or (peers is not None and "liger" not in peers):
        return {}
    if not (liger := installed("liger_kernel.transformers.grpo_loss")):
        return {}
    ids = p.target_ids[None, : p.logit_rows].contiguous()
    return {"liger": lambda: (liger.fused_selective_log_softmax(p.logits.detach(), ids, temperature=1.0)[0], None)}


def liger_grpo_logits(p: Problem, on_policy: bool) -> Callable[[], Tensor] | None:
    if not (liger := installed("liger_kernel.transformers.grpo_loss")):
        return None
    # in place is their default, and would spoil the logits for the next round
    options = {"temperature": 1.0, "beta": 0.0, "eps_low": 0.2, "eps_high": 0.28, "inplace": False}
    options |= {"loss_type": "bnpo", "reduce": True}
    ids, advantage = p.target_ids[None, : p.logit_rows].contiguous(), p.advantages[:1]
    old = None if on_policy else p.old_logp[None, : p.logit_rows].contiguous()
    return lambda: liger.triton_grpo_loss(p.logits, old, None, ids, advantage, **options)[0]


def fla_grpo_logits(p: Problem, on_policy: bool) -> Callable[[], Tensor] | None:
    """Has no old log-probs: its ratio is always 1."""
    if not on_policy or not (fla := installed("fla.modules.grpo")):
        return None
    ids, advantage = p.target_ids[None, : p.logit_rows].contiguous(), p.advantages[:1]
    reference = p.old_logp[None, : p.logit_rows].contiguous()  # for a KL term, which beta turns off
    return lambda: fla.fused_grpo_loss(p.logits, reference, ids, advantage, beta=0.0).mean()


LOGIT_LOSSES = {"liger-grpo-logits": liger_grpo_logits, "fla-grpo-logits": fla_grpo_logits}


def logit_losses(p: Problem, peers: Peers = None, *, on_policy: bool) -> dict[str, Callable[[], Tensor]]:
    """The clipped loss from p.logits [1, L + 1, V] of one sequence, the mean over tokens."""
    if not kernels_run(p.hidden.device):
        return {}
    registry = {name: partial(build, on_policy=on_policy) for name, build in LOGIT_LOSSES.items()}
    return chosen(registry, p, peers)
