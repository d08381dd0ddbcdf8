"""The settings of what is learnt and how fast: adapters and the optimizer (see `siri.config.sections`)."""

from dataclasses import dataclass
from typing import Literal

from siri.config.settings import Settings, setting
from siri.errors import InputError

Auto = Literal["auto"]
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a decoder layer."""


@dataclass(frozen=True)
class AdapterSettings(Settings):
    """Adapters: LoRA, low-rank changes of frozen weights, through peft."""

    lora_rank: int = setting(0, least=0, most=4096, everyday=True)
    """Rank of a LoRA adapter, which is all that is trained and saved; 0 = none, all weights are trained."""
    lora_alpha: float | Auto = setting("auto", above=0)
    """Its product counts lora_alpha / lora_rank; auto = twice the rank."""
    lora_targets: tuple[str, ...] = ()
    """Linear layers that get one, by their names: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj,
    lm_head; none = all but lm_head."""

    def check(self) -> None:
        for name, given in (("lora_alpha", self.lora_alpha != "auto"), ("lora_targets", bool(self.lora_targets))):
            if given and not self.lora_rank:
                raise InputError(f"{name} is set, but lora_rank is 0, which trains all weights; give --lora-rank")

    def alpha(self) -> float:
        """lora_alpha as a number."""
        return 2.0 * self.lora_rank if self.lora_alpha == "auto" else float(self.lora_alpha)

    def targets(self) -> tuple[str, ...]:
        """lora_targets, or what none of them means; empty without an adapter."""
        return (self.lora_targets or TARGETS) if self.lora_rank else ()


@dataclass(frozen=True)
class OptimizerSettings(Settings):
    """Optimizer: AdamW, and what it is given."""

    lr: float = setting(1e-6, above=0, everyday=True)
    """Learning rate of AdamW: the highest, where it changes."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls from there, to 0 after the last of `steps`; a run that continues with more steps
    falls more slowly from then on."""
    lr_warmup: int = setting(0, least=0)
    """Steps over which the learning rate rises to lr, evenly; 0 = none."""
    beta1: float = setting(0.9, least=0, below=1)
    """AdamW's first decay."""
    beta2: float = setting(0.999, least=0, below=1)
    """AdamW's second decay."""
    weight_decay: float = setting(0.01, least=0)
    """AdamW's weight decay."""
    grad_clip: float = setting(1.0, above=0)
    """Largest norm of the gradient of an optimizer step."""
    score_all: bool = setting(True, free=True)
    """Also run responses whose advantage is zero, so that entropy and the like cover every token; off saves their
    compute and leaves the update as it is. On a GPU they run forward only."""
