"""The settings of what is kept, measured and watched beside the training (see `siri.config.sections`)."""

from dataclasses import dataclass
from typing import Any, Literal

from siri.config.rules import read_rules
from siri.config.settings import Settings, setting
from siri.errors import InputError
from siri.sources import check_sources

Logger = Literal["none", "tensorboard", "wandb", "mlflow", "trackio"]


@dataclass(frozen=True)
class CheckpointSettings(Settings):
    """Checkpoints: when they are written, and which are kept."""

    branch_of: str = ""
    """RUN@STEP: start from that checkpoint of another run, weights and optimizer state (--from for short)."""
    resume_weights: str = ""
    """FOLDER@STEP: go on after so many steps with the weights of a model folder, an export, a checkpoint or a hub name,
    AdamW's moments new; without @STEP, the step that the folder says. --from is for checkpoints with their optimizer
    state."""
    save_every: int = setting(0, least=0, free=True, machine=True)
    """Steps between checkpoints besides those at the ends of phases; 0 = a quarter of a cycle."""
    keep_checkpoints: int = setting(2, least=1, free=True, machine=True)
    """Newest checkpoints kept besides the named ones (siri-low-k, siri-high-k)."""
    keep_best: Literal["none", "accuracy", "reward_mean", "efficiency"] = setting("none", free=True)
    """Keep the checkpoint whose evaluation is best, as siri-best: by accuracy, mean reward, or efficiency score against
    the base; none = by none."""
    keep_every: int = setting(0, least=0, free=True)
    """Checkpoints after every so many steps are kept, too; 0 = none."""


@dataclass(frozen=True)
class EvaluationSettings(Settings):
    """Evaluation: what is measured on held-out problems while training."""

    eval_data: tuple[str, ...] = setting((), free=True, everyday=True)
    """Held-out problems, each source measured by itself; none = no evaluation."""
    eval_every: int = setting(0, least=0, free=True)
    """Steps between evaluations besides those at the ends of phases; 0 = only those."""
    eval_problems: int = setting(0, least=0, free=True)
    """Evaluate on the first so many problems of each file; 0 = all."""
    eval_samples: int = setting(32, least=1, free=True)
    """Samples of each problem (avg@k)."""
    eval_temperature: float = setting(0.6, least=0, free=True)
    """Sampling temperature of evaluations."""
    eval_top_p: float = setting(1.0, above=0, most=1, free=True)
    """Share of the probability from which evaluations sample, the likeliest tokens first; 1 = all, as in training."""
    eval_cap: int = setting(0, least=0, free=True)
    """Cap of evaluations, tokens; 0 = the schedule's longest."""
    eval_budgets: tuple[int, ...] = setting((), free=True)
    """Fewer tokens at which the responses of evaluations are judged as well: accuracy under several caps from one
    sampling."""

    def check(self) -> None:
        check_sources("eval_data", self.eval_data, weighted=False)
        check_budgets("eval_budgets", self.eval_budgets, self.eval_cap)


def check_budgets(name: str, budgets: tuple[int, ...], cap: int) -> None:
    """InputError for budgets that are none, come twice, or are above the cap (0 = of which nothing is known)."""
    for budget in budgets:
        if budget < 1 or (cap and budget > cap):
            below = f" and at most the cap of {cap:,} tokens" if cap else ""
            raise InputError(f"{name}: {budget} must be at least 1{below}")
    if len(set(budgets)) < len(budgets):
        raise InputError(f"{name} names a number of tokens twice")


def refuse_bare_weights(config: Any) -> None:
    """InputError for settings of a `siri.config.Config` that need more of a run's past than its weights."""
    if not config.resume_weights:
        return
    for there, what, way in (
        (config.branch_of, "branch_of starts from a checkpoint with its optimizer state", "give one of them"),
        (config.lora_rank, "lora_rank trains an adapter of --model", "give the folder, merged, as --model"),
        (config.schedule == "auto", "schedule auto goes by what earlier steps showed", "give another --schedule"),
        (config.keep_best == "efficiency", "keep_best efficiency needs the base's evaluation", "give accuracy"),
    ):
        if there:
            raise InputError(f"resume_weights brings weights alone, but {what}; {way}")


@dataclass(frozen=True)
class HealthSettings(Settings):
    """Health: what is done about numbers that go wrong."""

    health: tuple[str, ...] = setting((), free=True)
    """What is done about numbers that go wrong, as case=action or case=action:K (the run ends at the K-th step in a
    row). Cases: nonfinite, ratio, entropy, reward, variance, truncation, grader; actions: off, warn, skip (`judge`)."""
    ratio_limit: float = setting(1000.0, above=0, free=True)
    """Probability ratio of a token above which the case `ratio` is there."""
    entropy_floor: float = setting(0.001, least=0, free=True)
    """Mean entropy of a mini-batch, nats, below which the case `entropy` is there."""
    grader_limit: float = setting(0.01, least=0, below=1, free=True)
    """Share of a step's responses that timed out or failed in grading above which the case `grader` is there."""
    bundles: int = setting(2, least=0, free=True)
    """Most post-mortem bundles of a run, each as large as a checkpoint."""

    def check(self) -> None:
        read_rules(self.health)


@dataclass(frozen=True)
class WatchSettings(Settings):
    """Watching: what else a run shows."""

    profile: int = setting(-1, free=True, machine=True)
    """Step (from 0) of which a torch profiler trace is written to the run folder; -1 = none."""
    keep_responses: int = setting(16, least=0, free=True, machine=True)
    """Newest steps whose responses stay in responses/, to be read with siri look, besides those at the ends of phases
    and of evaluations, which all stay; 0 = none are written."""
    logger: tuple[Logger, ...] = setting((), free=True, machine=True)
    """Loggers beside metrics.jsonl, which is always written, one or several; they also get tables of responses where
    these are kept, of each evaluation and each end of a phase."""

    def check(self) -> None:
        if twice := [kind for kind in self.logger if self.logger.count(kind) > 1]:
            raise InputError(f"logger names {twice[0]} twice; name each once")
        if "none" in self.logger and len(self.logger) > 1:
            raise InputError("logger is none and others; leave none out, or the others")
