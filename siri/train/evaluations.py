"""The evaluations of a run: which are due, and what is left of those that a kill cut short."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from siri.config import Config
from siri.data.prompts import PromptSet
from siri.errors import InputError
from siri.model.policy import Policy
from siri.rewards.pool import Grader
from siri.rollout import Rollout
from siri.runtime.ranks import Ranks
from siri.runtime.signals import Stop
from siri.store.jsonl import efficiency_score
from siri.store.run_folder import RunFolder
from siri.train.auto import AnySchedule
from siri.train.collect import derive_seed
from siri.train.evaluate import Evaluation, Readable, average, evaluate
from siri.train.records import Records
from siri.train.saves import due
from siri.train.thinking import ThinkingCheck
from siri.train.view import Stage, unseen

BEST = "siri-best"
"""Name of the checkpoint whose evaluation was best."""


def figure_of_merit(metric: str, row: dict[str, Any], base: dict[str, Any] | None) -> float | None:
    """What an evaluation is worth by a metric; None where that cannot be said."""
    if metric != "efficiency":
        return row.get(metric)
    if base is None:
        return None
    figures = [
        {
            name: (each["accuracy"], each["tokens_mean"])
            for name, each in (measured.get("benchmarks") or {"": measured}).items()
        }
        for measured in (row, base)
    ]
    return efficiency_score(*figures) if figures[0].keys() == figures[1].keys() else None


class Evaluations:
    """Measures the policy before the first step, at the ends of phases, every `eval_every` steps and at the end. Every
    rank has one and makes the same calls."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        policy: Policy,
        engine: Rollout,
        rewards: Grader,
        held_out: Sequence[PromptSet],
        *,
        ranks: Ranks,
        stop: Stop,
        thinking: ThinkingCheck,
        note: Callable[[str], None],
        records: Records,
        stage: Stage = unseen,
    ) -> None:
        """held_out: the problems of each name in `config.eval_data`. note: says a line to the user. stage: shows how
        far it is."""
        self.config, self.folder, self.policy, self.engine, self.rewards = config, folder, policy, engine, rewards
        self.held_out, self.ranks, self.stop = held_out, ranks, stop
        self.thinking, self.note, self.records, self.stage = thinking, note, records, stage
        self.schedule: AnySchedule = config.length_schedule()
        """Of a run with schedule auto, its own in the place of this."""
        self.keep: Callable[[int], None] = lambda done: None
        """Keeps the checkpoint after so many steps as the best."""

    def due(self, done: int, *, last: bool) -> bool:
        """Whether to measure after `done` steps; what was measured before a kill is not due again."""
        milestone = self.schedule.milestone(done)
        first = done in (0, self.folder.first)
        if not self.held_out or not (first or milestone or last or due(done, self.config.eval_every)):
            return False
        return not self.ranks.on_main(lambda: any(row["step"] == done for row in self.folder.evals.rows()))

    def measure(self, done: int, *, last: bool, train_tokens: int) -> dict[str, Any]:
        """Measure every benchmark, and add the row to eval.jsonl; returns it. Raises Interrupted when a signal asks for
        it: the benchmarks that are finished by then are kept."""
        known = self.ranks.on_main(lambda: self.folder.measured(done))
        try:
            figures = [Evaluation(**held) for held in known]
        except TypeError:
            raise InputError(
                f"{self.folder.partial.path}: holds figures of another form; delete it, and they are measured again"
            ) from None
        for index in range(len(figures), len(self.held_out)):
            figures.append(self._evaluation(index, done))
            if line := self.thinking.line():
                self.note(line)
            if self.ranks.main:
                self.folder.keep_measured(done, figures[-1])
        name = (self.schedule.milestone(done) or ("final" if last else f"step-{done}")) if done else "base"
        row = {"step": done, "name": name, "train_tokens": train_tokens}
        row |= average(dict(zip(self.config.eval_data, figures, strict=True)))
        if (
            done > self.folder.first
            and self.config.keep_best != "none"
            and self.ranks.on_main(lambda: self._is_best(row))
        ):
            self.keep(done)  # before the row is written: a kill in between measures again
        if self.ranks.main:
            self.folder.evals.append(row)
        return row

    def _is_best(self, row: dict[str, Any]) -> bool:
        """On rank 0: whether no earlier evaluation of the run was as good. The base is not one of its checkpoints."""
        rows = self.folder.evals.rows()
        base = next((each for each in rows if each["step"] == 0), None)
        value = figure_of_merit(self.config.keep_best, row, base)
        first = self.folder.first
        others = [figure_of_merit(self.config.keep_best, each, base) for each in rows if each["step"] > first]
        return value is not None and all(other is None or other < value for other in others)

    def _evaluation(self, index: int, done: int) -> Evaluation:
        config, prompts = self.config, self.held_out[index]

        files = [Path(name).name for name in config.eval_data]
        name = files[index] if files.count(files[index]) == 1 else f"{index + 1}-{files[index]}"
        share = self.ranks.share(len(prompts.ids))
        what = f"evaluation, {name}" + " of rank 0" * (self.ranks.size > 1)
        with self.stage(what, (share.stop - share.start) * config.eval_samples) as progress:
            return evaluate(
                self.policy,
                self.engine,
                self.rewards,
                prompts,
                cap=config.eval_cap or self.schedule.longest,
                samples=config.eval_samples,
                temperature=config.eval_temperature,
                seed=derive_seed(config.seed, 1, index, *self.ranks.seed_path),
                progress=progress,
                ranks=self.ranks,
                stop=self.stop,
                thinking=self.thinking,
                keep=partial(self.records.evaluation, done, name, prompts) if self.records.wanted else None,
                top_p=config.eval_top_p,
                budgets=config.eval_budgets,
                readable=Readable(config.reward, config.think),
            )
