"""Every setting of a training run, made of the sections."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from siri.config.ahead import refuse_unknown_steps
from siri.config.learning import AdapterSettings, OptimizerSettings
from siri.config.methods import MethodSettings, refuse_mixtures
from siri.config.sections import (
    AdvantageSettings,
    BatchSettings,
    DeviceSettings,
    GradingSettings,
    LossSettings,
    MemorySettings,
    ModelSettings,
    PromptSettings,
    RolloutSettings,
    ScheduleSettings,
    Workload,
)
from siri.config.settings import names
from siri.config.watching import (
    CheckpointSettings,
    EvaluationSettings,
    HealthSettings,
    WatchSettings,
    check_budgets,
    refuse_bare_weights,
)
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
    MethodSettings,
    LossSettings,
    AdapterSettings,
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
        if self.lr_warmup >= self.steps and self.lr_warmup:
            raise InputError(
                f"lr_warmup is {self.lr_warmup}, but steps is {self.steps}: the rate would never be reached; lower "
                "--lr-warmup"
            )
        check_budgets("eval_budgets", self.eval_budgets, self.eval_cap or self.length_schedule().longest)
        if self.vocab_parallel and "lm_head" in self.lora_targets:
            raise InputError(
                "vocab_parallel cuts the lm_head, which then takes no adapter; leave lm_head out of --lora-targets, or "
                "vocab_parallel off"
            )
        if self.group_size == 1 and self.advantage_norm == "std":
            raise InputError(
                "group_size is 1: std-normalised advantages need at least 2 responses a prompt; raise --group-size or "
                "set --advantage-norm none"
            )
        if self.keep_best != "none" and not self.eval_data:
            raise InputError(
                f"keep_best is {self.keep_best}, but nothing is measured; give --eval-data, or leave it out"
            )
        refuse_mixtures(self)
        refuse_unknown_steps(self)
        refuse_bare_weights(self)

    def workload(self) -> Workload:
        cap = max(self.length_schedule().longest, self.eval_cap)
        evaluation = self.eval_samples * (self.eval_problems or 1)
        return Workload(
            model=self.model,
            tokens=self.max_prompt_tokens + cap,
            cap=cap,
            responses=max(self.prompts_per_step * self.group_size, evaluation),
            temperature=self.temperature,
            recurring=True,
            offload=self.optimizer_offload,
        )

    def to_json(self) -> dict[str, Any]:
        """The settings as config.json holds them, section by section."""
        values = asdict(self)
        return json.loads(json.dumps({name: values[name] for name in names(type(self))}))


def of_today(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as config.json holds them, with those that an older version wrote in another form in today's."""
    now = dict(settings)
    if isinstance(logger := now.get("logger"), str):
        now["logger"] = [] if logger == "none" else [logger]
    if isinstance(data := now.get("data"), str):  # of a version that knew one source
        now["data"] = [data]
    return now


@cache
def free_keys() -> frozenset[str]:
    """Settings that may change when a run continues (`Meaning.free`)."""
    return frozenset(names(Config, free=True))


@cache
def machine_keys() -> frozenset[str]:
    """Settings that are no part of the hash of a study's configuration (`Meaning.machine`)."""
    return frozenset(names(Config, machine=True))
