"""Every setting of a training run, made of the sections."""

import json
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from siri.config.sections import (
    AdvantageSettings,
    BatchSettings,
    CheckpointSettings,
    DeviceSettings,
    EvaluationSettings,
    GradingSettings,
    HealthSettings,
    LossSettings,
    MemorySettings,
    ModelSettings,
    OptimizerSettings,
    PromptSettings,
    RolloutSettings,
    ScheduleSettings,
    WatchSettings,
    Workload,
)
from siri.config.settings import names
from siri.errors import InputError


@dataclass(frozen=True)
class Config(
    ModelSettings,
    PromptSettings,
    ScheduleSettings,
    BatchSettings,
    RolloutSettings,
    GradingSettings,
    AdvantageSettings,
    LossSettings,
    OptimizerSettings,
    MemorySettings,
    DeviceSettings,
    CheckpointSettings,
    EvaluationSettings,
    HealthSettings,
    WatchSettings,
):
    """Every setting of a training run."""

    def check(self) -> None:
        if not -1 <= self.profile < self.steps:
            raise InputError(
                f"profile is {self.profile}; it must be a step from 0 to {self.steps - 1}, or -1 for no trace"
            )
        if self.group_size == 1 and self.advantage_norm == "std":
            raise InputError(
                "group_size is 1: std-normalised advantages need at least 2 responses a prompt; raise --group-size or "
                "set --advantage-norm none"
            )

    def workload(self) -> Workload:
        cap = max(self.length_schedule().longest, self.eval_cap)
        evaluation = self.eval_samples * (self.eval_problems or 1)
        return Workload(
            model=self.model,
            tokens=self.max_prompt_tokens + cap,
            responses=max(self.prompts_per_step * self.group_size, evaluation),
            temperature=self.temperature,
            recurring=True,
            offload=self.optimizer_offload,
        )

    def to_json(self) -> dict[str, Any]:
        """The settings as config.json holds them, section by section."""
        values = asdict(self)
        return json.loads(json.dumps({name: values[name] for name in names(type(self))}))


@cache
def free_keys() -> frozenset[str]:
    """Settings that may change when a run continues (`Meaning.free`)."""
    return frozenset(names(Config, free=True))


@cache
def machine_keys() -> frozenset[str]:
    """Settings that are no part of the hash of a study's configuration (`Meaning.machine`)."""
    return frozenset(names(Config, machine=True))
