"""The field's methods for efficient reasoning, an option each (docs/methods.md), and what cannot be had together."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from siri.config.settings import Settings, setting
from siri.errors import InputError

L1 = ("l1_exact", "l1_max")


@dataclass(frozen=True)
class MethodSettings(Settings):
    """Methods: other advantages, groups and rewards for length than GRPO's (docs/methods.md)."""

    advantages: Literal["grpo", "dler", "drpo"] = "grpo"
    """Advantages: within the group (grpo); centred in the group and normalised over the batch's tokens (dler); right
    responses weighed by their brevity, wrong ones against each other (drpo)."""
    drpo_lambda: float = setting(0.1, above=0)
    """For drpo: how little brevity counts among right responses; large = all the same."""
    drpo_tau: float = setting(10.0, above=0)
    """For drpo: temperature of the weights of wrong responses."""
    drpo_beta: float = setting(1000.0, least=0)
    """For drpo: weight of the penalty on the distance from the weights that sampled; 0 = none."""
    drpo_delta: float = setting(1e-4, least=0)
    """For drpo: that distance, nats a token, up to which there is no penalty."""
    outlier_cut: bool = False
    """Cut the outliers in length of a group that is all right, and grade them again (DOT)."""
    outlier_deviations: float = setting(3.0, above=0)
    """For outlier_cut: standard deviations over the group's mean length at which a response is cut."""
    outlier_margin: int = setting(32, least=1)
    """For outlier_cut: tokens beyond that length from which on a response is cut."""
    filter_keep: int = setting(0, least=0)
    """Train on so many responses of a group, the others get no advantage (GFPO); 0 = on all."""
    filter_by: Literal["length", "efficiency"] = "length"
    """For filter_keep: the shortest responses, or those with the most reward a token."""
    hard_responses: int = setting(0, least=0)
    """Sample prompts of which less than half the responses are right a second time, up to so many responses in all
    (DARS); 0 = no second round."""
    penalty_on: int = setting(0, least=0)
    """Steps for which length_reward and the soft overlong penalty count, before penalty_off steps without them
    (ProRL v2); 0 = they always count."""
    penalty_off: int = setting(0, least=0)
    """For penalty_on: steps without them, before they count again."""
    asked_least: int = setting(0, least=0)
    """For l1_exact and l1_max: least tokens that a prompt may ask for; each problem asks for one length."""
    asked_most: int = setting(0, least=0)
    """For l1_exact and l1_max: most tokens that a prompt may ask for."""
    length_alpha: float = setting(3e-4, above=0)
    """For l1_exact and l1_max: reward lost for each token of difference."""
    laser_target: int = setting(8192, least=1)
    """For laser: tokens within which a right response gets the bonus; for laser_d, before they were first estimated."""
    laser_every: int = setting(20, least=1)
    """For laser_d: steps after which the targets are estimated anew."""

    def check(self) -> None:
        if bool(self.penalty_on) != bool(self.penalty_off):
            raise InputError(
                f"penalty_on is {self.penalty_on} and penalty_off {self.penalty_off}; a cycle needs both; 0, 0 = none"
            )
        if self.asked_most and not 1 <= self.asked_least <= self.asked_most:
            raise InputError(
                f"asked_least is {self.asked_least} and asked_most {self.asked_most}; need 1 <= least <= most tokens"
            )

    def penalised(self, step: int) -> bool:
        """Whether rewards and penalties for length count at `step`."""
        return not self.penalty_on or step % (self.penalty_on + self.penalty_off) < self.penalty_on


def refuse_mixtures(config: Any) -> None:
    """InputError for methods that cannot be had with the other settings of a `siri.config.Config`."""
    for refuse in (_refuse_outlier_cut, _refuse_drpo, _refuse_groups, _refuse_lengths):
        refuse(config)


def _refuse_outlier_cut(config: Any) -> None:
    if not config.outlier_cut:
        return
    if config.overlong == "mask":
        raise InputError("outlier_cut has to train on what it cuts: with --overlong mask it cannot; leave one out")
    least = least_group(config.outlier_deviations)
    if config.group_size < least:
        raise InputError(
            f"outlier_cut with group_size {config.group_size} never cuts: no response is {config.outlier_deviations:g} "
            f"standard deviations over the mean of fewer than {least}; raise --group-size or lower --outlier-deviations"
        )


def least_group(deviations: float) -> int:
    """The smallest group in which one response can be more than so many (unbiased) standard deviations over the mean:
    at most (G - 1) / sqrt(G) are possible."""
    size = 2
    while (size - 1) / math.sqrt(size) <= deviations:
        size += 1
    return size


def _refuse_drpo(config: Any) -> None:
    if config.advantages == "grpo":
        return
    if config.group_size < 2:
        raise InputError(f"advantages = {config.advantages} needs at least 2 responses a prompt; raise --group-size")
    if config.advantages == "dler" and config.advantage_norm == "none":
        raise InputError("advantages = dler is a norm over the batch; leave out --advantage-norm none")
    if config.advantages != "drpo":
        return
    if (config.loss, config.clip_low, config.clip_high) != ("cispo", 0, 0) or config.aggregation != "seq_mean":
        raise InputError(
            "advantages = drpo has no ratios and weighs whole responses: give --loss cispo --clip-low 0 --clip-high 0 "
            "--aggregation seq_mean, as the recipe drpo does"
        )
    for name, off in (("filter_keep", 0), ("hard_responses", 0), ("length_reward", "none")):
        if getattr(config, name) != off:
            raise InputError(f"advantages = drpo makes its weights of length and right alone; leave out {name}")
    if config.overlong == "soft":
        raise InputError("advantages = drpo makes its weights of length and right alone; leave out --overlong soft")
    if config.drpo_beta and config.vocab_parallel:
        raise InputError("drpo_beta and vocab_parallel cannot be had together; give --drpo-beta 0, or the whole head")
    if config.drpo_beta and not config.score_all:
        raise InputError("drpo_beta moves every response, so that none can be spared: leave out --no-score-all")


def _refuse_groups(config: Any) -> None:
    if config.filter_keep == 1 or config.filter_keep > config.group_size:
        raise InputError(
            f"filter_keep is {config.filter_keep}; of {config.group_size} responses keep 2 at least, or 0 for no filter"
        )
    if 0 < config.hard_responses <= config.group_size:
        raise InputError(
            f"hard_responses is {config.hard_responses}, and {config.group_size} are sampled anyway; it must be more "
            "than group_size, or 0 for no second round"
        )


def _refuse_lengths(config: Any) -> None:
    if config.penalty_on and config.length_reward == "none" and config.overlong != "soft":
        raise InputError("penalty_on has nothing to turn on: give --length-reward or --overlong soft as well")
    if (config.length_reward in L1) != bool(config.asked_most):
        raise InputError(
            "asked_most and length_reward l1_exact or l1_max belong together, as in --length-reward l1_max "
            "--asked-least 100 --asked-most 4000"
        )
    if config.asked_most > (shortest := config.length_schedule().shortest):
        raise InputError(
            f"asked_most is {config.asked_most}, and the schedule's shortest cap is {shortest} tokens; lower it, or "
            "give --schedule constant"
        )
    if config.length_reward == "laser_d" and config.schedule != "constant":
        raise InputError(
            "laser_d estimates its lengths from responses, which a moving cap cuts: give --schedule constant, or "
            "--length-reward laser, whose length is fixed"
        )
    if config.length_reward in L1 and config.overlong == "soft":
        raise InputError("l1 names a length for each prompt, and --overlong soft wants another; leave one out")
    if config.length_reward in L1 and config.penalty_on:
        raise InputError("l1's prompts always name a length, so that its reward cannot pause; leave out penalty_on")
