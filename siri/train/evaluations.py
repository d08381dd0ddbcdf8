"""The evaluations of a run: which are due, and what is left of those that a kill cut short."""

from collections.abc import Callable, Sequence
from typing import Any

from siri.config import Config
from siri.data.prompts import PromptSet
from siri.errors import InputError
from siri.model.policy import Policy
from siri.rewards.pool import Grader
from siri.rollout import Rollout
from siri.runtime.ranks import Ranks
from siri.runtime.signals import Stop
from siri.store.run_folder import RunFolder
from siri.train.collect import derive_seed
from siri.train.evaluate import Evaluation, average, evaluate
from siri.train.saves import due
from siri.train.thinking import ThinkingCheck


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
    ) -> None:
        """held_out: the problems of each name in `config.eval_data`. note: says a line to the user."""
        self.config, self.folder, self.policy, self.engine, self.rewards = config, folder, policy, engine, rewards
        self.held_out, self.ranks, self.stop = held_out, ranks, stop
        self.thinking, self.note = thinking, note
        self.schedule = config.length_schedule()

    def due(self, done: int, *, last: bool) -> bool:
        """Whether to measure after `done` steps; what was measured before a kill is not due again."""
        milestone = self.schedule.milestone(done)
        if not self.held_out or (done and not (milestone or last or due(done, self.config.eval_every))):
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
            figures.append(self._evaluation(index))
            if line := self.thinking.line():
                self.note(line)
            if self.ranks.main:
                self.folder.keep_measured(done, figures[-1])
        name = (self.schedule.milestone(done) or ("final" if last else f"step-{done}")) if done else "base"
        row = {"step": done, "name": name, "train_tokens": train_tokens}
        row |= average(dict(zip(self.config.eval_data, figures, strict=True)))
        if self.ranks.main:
            self.folder.evals.append(row)
        return row

    def _evaluation(self, index: int) -> Evaluation:
        config = self.config
        return evaluate(
            self.policy,
            self.engine,
            self.rewards,
            self.held_out[index],
            cap=config.eval_cap or self.schedule.longest,
            samples=config.eval_samples,
            temperature=config.eval_temperature,
            seed=derive_seed(config.seed, 1, index, *self.ranks.seed_path),
            ranks=self.ranks,
            stop=self.stop,
            thinking=self.thinking,
        )
