"""Laser-D's target lengths: for easy, medium and hard prompts the smallest length that leaves one right answer to be
expected, estimated anew every few steps (arXiv 2505.15612)."""

from collections.abc import Mapping, Sequence
from typing import Any

from siri.config import Config
from siri.errors import InputError
from siri.rewards.shaping import difficulty


def target_length(right_lengths: Sequence[int], prompts: int) -> int | None:
    """The smallest length within which the prompts have, in the mean, one right response each; None where they have
    fewer of any length. right_lengths: tokens of all their right responses."""
    return sorted(right_lengths)[prompts - 1] if prompts and len(right_lengths) >= prompts else None


class LaserTargets:
    """The targets of a run, and what they will next be estimated from. Every rank has the same."""

    def __init__(self, config: Config, held: Mapping[str, Any] | None = None) -> None:
        """held: the `state` of a checkpoint. InputError where it is none."""
        self.every, self.longest = config.laser_every, config.length_schedule().longest
        self.targets: list[int] = [config.laser_target] * 3
        self._prompts = [0, 0, 0]
        self._right: list[list[int]] = [[], [], []]
        self._steps = 0
        if held is not None:
            try:
                targets, prompts = ([int(value) for value in held[key]] for key in ("targets", "prompts"))
                right, self._steps = [[int(n) for n in lengths] for lengths in held["right"]], int(held["steps"])
                if not len(targets) == len(prompts) == len(right) == 3:
                    raise ValueError
            except (KeyError, TypeError, ValueError):
                raise InputError("the checkpoint's state.json holds no targets of laser_d; start a new run") from None
            self.targets, self._prompts, self._right = targets, prompts, right

    def see(self, groups: Sequence[tuple[Sequence[float], Sequence[int]]]) -> None:
        """Count the groups of a step, given as scores and lengths of their responses; with the last of `laser_every`
        steps the targets are estimated anew."""
        for scores, lengths in groups:
            right = [score >= 1 for score in scores]
            bucket = difficulty(right)
            self._prompts[bucket] += 1
            self._right[bucket] += [length for length, good in zip(lengths, right, strict=True) if good]
        self._steps += 1
        if self._steps < self.every:
            return
        for bucket, (lengths, prompts) in enumerate(zip(self._right, self._prompts, strict=True)):
            if prompts:  # a kind of prompt that did not come keeps its target
                self.targets[bucket] = target_length(lengths, prompts) or self.longest
        self._prompts, self._right, self._steps = [0, 0, 0], [[], [], []], 0

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        right = [list(lengths) for lengths in self._right]
        return {"targets": list(self.targets), "prompts": list(self._prompts), "right": right, "steps": self._steps}

    def metrics(self) -> dict[str, int]:
        names = ("laser_target_easy", "laser_target_medium", "laser_target_hard")
        return dict(zip(names, self.targets, strict=True))
