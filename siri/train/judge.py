"""Numbers that go wrong: found in the step in which they do, and dealt with as the configuration says.

| case | what is wrong |
|---|---|
| nonfinite | the loss or the gradient of an optimizer step is NaN or infinite |
| ratio | a token's probability ratio exceeds `ratio_limit` |
| entropy | the mean entropy of the trained tokens is below `entropy_floor` |
| reward | every response is right, or every one is wrong |
| variance | no group has both, so that there is nothing to learn |
| truncation | the cap cut every response |
| grader | more than `grader_limit` of the responses timed out or failed in grading |

A rule is `case=action` or `case=action:K`. Actions: off; warn (say it); skip (say it, and leave the update out). With K
the run ends at the K-th step in a row, its state saved. The first step in a row leaves a post-mortem bundle in
RUN/postmortem, which `siri replay` runs again (not for `grader`, of which an update says nothing): a checkpoint of what
the update began with, whose state.json holds the samples, the plan, the old log-probs, the random state and what was
found.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from siri_kernels import merge_metrics

from siri.config import Config
from siri.config.rules import DEFAULTS, read_rules
from siri.errors import InputError
from siri.model.policy import Policy
from siri.packing import Plan
from siri.runtime.ranks import ALONE, Ranks
from siri.store.jsonl import MetricsLog
from siri.train.groups import Group
from siri.train.samples import Sample


@dataclass(frozen=True)
class Attempt:
    """An optimizer step that is ready but for the step itself, as a rank sees it."""

    number: int
    """Of the mini-batch, from 0."""
    samples: Sequence[Sample]
    """The samples that ran, of all ranks; the plan's indices are theirs."""
    plan: Plan
    old_logps: Sequence[torch.Tensor | None]
    """Of this rank's micro-batches."""
    denominator: float
    loss: float
    """This rank's share."""
    grad_norm: float
    rows: Sequence[dict[str, torch.Tensor]]
    """Metrics of this rank's micro-batches."""


class Judge:
    """Judges each optimizer step of a run. Every rank has one and makes the same calls, and comes to the same end."""

    def __init__(
        self, config: Config, folder: Path, policy: Policy, optimizer: torch.optim.Optimizer, *, ranks: Ranks = ALONE
    ) -> None:
        from siri.store.saver import Saver

        self.config, self.policy, self.optimizer, self.ranks = config, policy, optimizer, ranks
        self.rules = read_rules(config.health)
        self.log = MetricsLog(folder / "health.jsonl")
        self.streaks = dict.fromkeys(DEFAULTS, 0)
        """Steps in a row, up to the last one, with each case; part of a checkpoint."""
        self.bundles = Saver(folder / "postmortem", keep=2**31, ranks=ranks)
        self._step, self._where, self._cases, self._notes = 0, {}, {}, []
        self._whole_batch: set[str] = set()
        self._here: set[str] = set()

    def begin(self, step: int, groups: Sequence[Group], where: dict[str, Any]) -> None:
        """Look at a rollout batch before its update. `where` says what was sampled from (the sampler's state)."""
        self._step, self._where, self._cases, self._notes = step, where, {}, []
        scores = [score for group in groups for score in group.graded_scores()]
        if scores and min(scores) == max(scores) and scores[0] in (0.0, 1.0):
            self._find("reward", scores[0])
        elif all(len(set(_graded(group))) < 2 for group in groups):
            self._find("variance", 0.0)
        lost = sum(group.timeouts + group.errors for group in groups) / sum(len(group.scores) for group in groups)
        if lost > self.config.grader_limit:
            self._find("grader", lost)
        if all(completion.truncated for group in groups for completion in group.completions):
            self._find("truncation", 1.0)

    def allows(self, attempt: Attempt) -> bool:
        """Whether the optimizer may step."""
        if attempt.number == 0:
            self._whole_batch = set(self._cases)
        self._here = set()
        mine = {name: value.item() for name, value in merge_metrics(attempt.rows).items()} if attempt.rows else {}
        row = [attempt.loss, mine.get("ratio_max", math.nan), mine.get("entropy_mean", math.nan), mine.get("tokens", 0)]
        rows = [arrays["row"] for arrays in self.ranks.gather_arrays({"row": np.array(row, np.float64)})]
        loss = sum(float(row[0]) for row in rows)
        if not (math.isfinite(loss) and math.isfinite(attempt.grad_norm)):
            self._find("nonfinite", loss if not math.isfinite(loss) else attempt.grad_norm)
        ratios = [float(row[1]) for row in rows if row[1] > self.config.ratio_limit]
        if ratios:
            self._find("ratio", max(ratios))
        counted = [row for row in rows if row[3] > 0]
        entropy = sum(row[2] * row[3] for row in counted) / sum(row[3] for row in counted) if counted else math.nan
        if entropy < self.config.entropy_floor:
            self._find("entropy", float(entropy))
        if any(not self.streaks[case] and self.rules[case].action != "off" for case in self._cases if case != "grader"):
            self._keep(attempt, loss)
        return not any(self.rules[case].action == "skip" for case in self._whole_batch | self._here)

    def end(self) -> tuple[list[str], str]:
        """After the step: lines for the user, and why the run has to end, if it has to."""
        reason = ""
        for case, rule in self.rules.items():
            self.streaks[case] = self.streaks[case] + 1 if case in self._cases else 0
            if not self.streaks[case] or rule.action == "off":
                continue
            value, streak = self._cases[case], self.streaks[case]
            done = "update left out" if rule.action == "skip" else "update made"
            if self.ranks.main:
                row = {"step": self._step, "case": case, "value": value, "action": rule.action, "in_a_row": streak}
                self.log.append(row)
            if streak in (1, 10, 100, 1000, rule.patience):
                many = f", {streak} steps in a row" if streak > 1 else ""
                self._notes.append(f"warning: step {self._step}: {_SAID[case].format(value=value)}{many}; {done}")
            if rule.patience and streak >= rule.patience:
                reason = f"{_SAID[case].format(value=value)}, {streak} steps in a row (health: {case})"
        return self._notes, reason

    def _find(self, case: str, value: float) -> None:
        if self.rules[case].action != "off":
            self._cases.setdefault(case, value)
            self._here.add(case)

    def _keep(self, attempt: Attempt, loss: float) -> None:
        """Write the bundle of an attempt, unless the run has enough of them."""
        folder = self.bundles.folder
        have = self.ranks.broadcast(len(list(folder.glob("step_*"))) if folder.is_dir() else 0)
        again = self.ranks.broadcast((folder / f"step_{self._step:06d}").exists())
        if have >= self.config.bundles or again:
            return
        olds = {str(i): old.float().cpu().numpy() for i, old in enumerate(attempt.old_logps) if old is not None}
        old_logps = [{key: value.tolist() for key, value in rank.items()} for rank in self.ranks.gather_arrays(olds)]
        losses = [float(rank["loss"][0]) for rank in self.ranks.gather_arrays({"loss": np.array([attempt.loss])})]
        bundle = {
            "step": self._step,
            "cases": {case: _plain(value) for case, value in self._cases.items()},
            "config": self.config.to_json(),
            "sampled_from": self._where,
            "mini_batch": attempt.number,
            "samples": [sample.as_json() for sample in attempt.samples],
            "plan": attempt.plan.steps,
            "old_logps": old_logps,
            "denominator": attempt.denominator,
            "loss": _plain(loss),
            "losses": [_plain(share) for share in losses],
            "grad_norm": _plain(attempt.grad_norm),
            "metrics": {name: _plain(value.item()) for name, value in merge_metrics(attempt.rows).items()},
            "rng": random_state(self.policy.device),
            "threads": torch.get_num_threads(),
        }
        try:
            self.bundles.save(self._step, self.policy, self.optimizer, {"train_tokens": 0, "bundle": bundle})
            self.bundles.wait()
            path = folder / f"step_{self._step:06d}"
            self._notes.append(f"post-mortem of step {self._step}: siri replay {path}")
        except InputError as error:  # a run is not ended for want of a post-mortem
            self._notes.append(f"warning: no post-mortem: {error}")
        self.bundles.forget()


_SAID = {
    "nonfinite": "the loss or its gradient is {value}",
    "ratio": "a probability ratio of {value:.3g}",
    "entropy": "the mean entropy is {value:.3g} nats",
    "reward": "every response has the score {value:g}",
    "variance": "no group has both right and wrong responses",
    "truncation": "the cap cut every response",
    "grader": "{value:.1%} of the responses timed out or failed in grading",
}


def _graded(group: Group) -> list[float]:
    """The rewards of the responses that were graded."""
    return [reward for reward, graded in zip(group.rewards, group.graded, strict=True) if graded]


def _plain(value: float) -> float | str:
    """A number as JSON can hold it: NaN and infinities by name."""
    return value if math.isfinite(value) else str(value)


def random_state(device: torch.device) -> dict[str, Any]:
    """The process's generators. Sampling does not use them: its seeds are derived from `seed` and the step."""
    state: dict[str, Any] = {"torch": torch.get_rng_state().numpy().tobytes().hex(), "python": random.getstate()}
    name, keys, *rest = cast("tuple[str, np.ndarray, int, int, float]", np.random.get_state())
    state["numpy"] = [name, keys.tolist(), *rest]
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device).numpy().tobytes().hex()
    return state
