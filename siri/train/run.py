"""A training run: what it is made of, and what each of its steps consists of."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from siri.config import Config
from siri.data.prompts import PromptSet
from siri.data.sampler import Sampler
from siri.errors import InputError, first_line
from siri.model.offload import HostAdamW
from siri.packing.step_plan import StepTimes
from siri.planning.gpus import model_flops_utilisation
from siri.planning.memory_plan import MemoryPlan, update_peak
from siri.rewards.pool import RewardPool
from siri.rollout import NotFinite
from siri.rollout.engines import make_engine
from siri.runtime.ranks import Ranks
from siri.runtime.signals import Stop
from siri.runtime.stopwatch import Stopwatch, profiled
from siri.store import checkpoint
from siri.store.lock import check_seen
from siri.store.run_folder import RunFolder
from siri.store.saver import MAX_FAILURES, Saver
from siri.text import say
from siri.train.collect import Collector, Group, rollout_metrics
from siri.train.dynamics import Dynamics
from siri.train.edges import blown_up, plan_memory
from siri.train.evaluations import Evaluations
from siri.train.judge import Judge
from siri.train.learner import Learner, Update
from siri.train.mirror import Mirror
from siri.train.samples import make_samples
from siri.train.saves import Agreed, Saves
from siri.train.setup import prepare, training_sources
from siri.train.thinking import ThinkingCheck
from siri.train.view import View

DONE, STOPPED = 0, 75
"""Exit codes: trained to the end; stopped by a signal with the state saved."""


@dataclass(frozen=True)
class Step:
    """One turn of the loop."""

    number: int
    """From 0."""
    cap: int
    """Longest response, tokens."""
    phase: str


class Run:
    """A run that is ready to go on from `done` steps. Every rank has one and makes the same calls.

    It is made before anything is written; as a context it holds the engine, the graders, the display and the signals.
    """

    def __init__(
        self, config: Config, folder: RunFolder, ranks: Ranks, device: torch.device, view: View, *, quiet: bool
    ) -> None:
        """Set everything up, from the newest checkpoint if the folder holds one. InputError names what does not fit."""
        self.config, self.folder, self.ranks, self.device, self.view = config, folder, ranks, device, view
        self.quiet = quiet or not ranks.main
        self.schedule = config.length_schedule()
        later = ranks.sharded and folder.checkpoint is not None
        self.sources = training_sources(config)
        setup = self.setup = prepare(
            config,
            device=device,
            ranks=ranks,
            sources=self.sources,
            weights="later" if later else "read",
            held=folder.checkpoint,
        )
        folder.compute_with(setup.threads)
        self.policy = setup.policy
        prompts, *held_out = setup.problems
        self.optimizer = (HostAdamW if config.optimizer_offload else torch.optim.AdamW)(
            self.policy.model.parameters(),
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
        )
        self.sampler = ranks.on_main(lambda: self._known_sampler(prompts, held_out))
        if folder.checkpoint:
            checkpoint.restore(folder.checkpoint, self.policy, self.optimizer, ranks=ranks)
        self.engine = make_engine(config, self.policy, ranks=ranks, folder=folder.path)
        self.watch, self.times, self.stop = Stopwatch(device), StepTimes(), Stop()
        self.dynamics = Dynamics(self.policy.tokenizer)
        self.thinking = ThinkingCheck(config.reward, config.think)
        self.progress = view.progress(config.steps, folder.start, self.quiet)
        self.logger = Mirror(config.logger if ranks.main else "none", folder.path, config, self.progress.note)
        self.rewards = RewardPool(
            config.reward,
            workers=config.reward_workers,
            timeout_s=config.reward_timeout_s,
            think=config.think,
            memory_bytes=int(config.reward_memory_gb * 2**30),
        )
        self.judge = Judge(config, folder.path, self.policy, self.optimizer, ranks=ranks)
        self.judge.streaks |= folder.state.get("health", {})
        kept = {"keep": config.keep_checkpoints, "keep_every": config.keep_every}
        saver = Saver(folder.checkpoints, **kept, ranks=ranks, record=folder.saved)
        self.saves = Saves(saver, config, self.policy, self.optimizer, folder.start)
        self.collector = Collector(
            config,
            self.policy,
            self.engine,
            self.rewards,
            prompts,
            self.sampler,
            self.watch,
            ranks,
            self.stop,
            self.thinking,
        )
        self.learner = Learner(
            self.policy,
            self.optimizer,
            config,
            token_budget=setup.token_budget,
            watch=self.watch,
            ranks=ranks,
            cost=setup.cost,
            judge=self.judge,
        )
        self.evaluations = Evaluations(
            config,
            folder,
            self.policy,
            self.engine,
            self.rewards,
            held_out,
            ranks=ranks,
            stop=self.stop,
            thinking=self.thinking,
            note=self.progress.note,
        )
        self.memory: MemoryPlan | None = None
        self.done, self.train_tokens = folder.start, folder.state["train_tokens"]
        self.stopped = False
        """A signal, here or on another rank, or work that a signal cut short."""
        self.state = self._state()
        """What a checkpoint of the last finished step holds beside the weights."""
        self._warned = False
        self._whole = False
        """Whether weights and state belong together: from the first row on, but for the time of an update."""
        self._context = ExitStack()

    def __enter__(self) -> "Run":
        with ExitStack() as stack:
            stack.enter_context(closing(self.engine))
            for part in (self.rewards, self.progress, self.stop):
                stack.enter_context(part)
            self._context = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._context.__exit__(*exception)

    @property
    def last(self) -> bool:
        """No step is left."""
        limit = self.config.train_tokens
        return self.done >= self.config.steps or bool(limit and self.train_tokens >= limit)

    @property
    def over(self) -> bool:
        """There is nothing more to train, or a signal came."""
        return self.stopped or self.last

    def begin(self) -> None:
        """Try the reward, write the folder, hand the weights to the engine, and say what there is to say."""
        config, prompts = self.config, self.setup.problems[0]
        self.ranks.on_main(lambda: self.rewards.try_gold(prompts.answers))
        token = self.ranks.on_main(self._create)
        try:
            check_seen(self.folder.path, token, self.ranks)
        except InputError:
            self.folder.withdraw()
            raise
        self._whole = True
        self.engine.sync()
        if self.device.type == "cuda":
            settled = replace(config, token_budget=self.setup.token_budget, max_prompt_tokens=prompts.longest)
            self.memory = plan_memory(settled, self.policy, self.ranks, quiet=self.quiet)
        for line in filter(None, [*self.folder.notes, *self.engine.notes, *self.setup.notes(), self.rewards.cell()]):
            self.progress.note(line)

    def _known_sampler(self, prompts: PromptSet, held_out: Sequence[PromptSet]) -> Sampler:
        """On rank 0: where the data goes on, once data and model are known for those that the run began with."""
        self.folder.know_model()
        limits = [f"{source.name}, first {source.limit}" if source.limit else source.name for source in self.sources]
        return self.folder.sampler(prompts, self.policy.tokenizer, dict(zip(limits[1:], held_out, strict=True)))

    def _create(self) -> str:
        """On rank 0: the folder and the logger's own; a run that cannot have its logger has not begun."""
        token = self.folder.create()
        try:
            self.logger.start()
        except InputError:
            self.folder.withdraw()
            raise
        return token

    def next_step(self) -> Step:
        """The step that comes now."""
        return Step(self.done, self.schedule.cap(self.done), self.schedule.phase(self.done))

    @contextmanager
    def timed(self, step: Step) -> Iterator[None]:
        """Measures the step, and profiles it where the configuration asks for it."""
        name = f"trace_step_{step.number:06d}_rank_{self.ranks.rank}.json"
        trace = self.folder.path / name if step.number == self.config.profile else None
        with profiled(trace), self.watch("step_time"):
            yield

    def collect(self, step: Step) -> list[Group]:
        """Sample and grade the groups of a step; Interrupted when a signal cut that short."""
        with self.watch("rollout"):
            self.engine.wake()
            try:
                groups = self.collector.collect(step.number, step.cap)
            except NotFinite:
                self._whole = False  # such weights are not worth a checkpoint, which would be the newest
                raise InputError(blown_up(self.folder, step.number)) from None
            self.engine.sleep()
        return groups

    def learn(self, step: Step, groups: Sequence[Group]) -> Update:
        """Update the policy with the groups."""
        with self.watch("train"):
            self._whole = False
            if self.memory:
                torch.cuda.reset_peak_memory_stats(self.device)  # the peak of the update, not of the rollout
            self.judge.begin(step.number, groups, self.state["sampler"])
            update = self.learner.update(make_samples(self.config, groups))
            if self.memory:
                update.metrics["memory_peak"] = torch.cuda.max_memory_allocated(self.device)
        return update

    def sync(self) -> InputError | None:
        """Hand the new weights to the engine; what keeps it from taking them, which is raised once the step that made
        them has its row."""
        with self.watch("sync"):
            try:
                self.engine.sync()
            except InputError as error:
                error.everybody = True  # as `siri.rollout` has it
                return error
        return None

    def record(self, step: Step, groups: Sequence[Group], update: Update) -> None:
        """The one row of the step: in metrics.jsonl, in the logger and on the screen."""
        row: dict[str, Any] = {"step": step.number, "phase": step.phase, "cap": step.cap}
        row |= rollout_metrics(groups) | self.dynamics.metrics(groups) | self.engine.metrics() | update.metrics
        row |= self.times.note(update.plan, self.watch.laps("forward", "backward"))
        if self.memory:
            largest, several = update.plan.largest(self.ranks.rank), update.plan.several
            row["memory_predicted"] = update_peak(self.policy.model.config, self.memory, largest, several=several)
        self.train_tokens += row["response_tokens"]
        row |= {"epoch": self.sampler.epoch, "train_tokens": self.train_tokens} | self.watch.seconds()
        row["tokens_per_s"] = row["response_tokens"] / row["step_time_s"]
        row["mfu"] = model_flops_utilisation(update.flops, row["train_s"], self.ranks.size, self.device)
        self.done, self.state = step.number + 1, self._state()
        if not self.ranks.main:
            self._whole = True
            return
        self.folder.check_lease()
        self.folder.metrics.append(row)
        self._whole = True
        self.logger.log(row, step.number)
        self.progress.update(row)
        if row["reward_errors"] and not self._warned:
            self._warned = True
            self.progress.note(
                f"warning: the reward failed on {row['reward_errors']} answers: {self.rewards.first_error}"
            )
        if row["reward_timeouts"]:
            self.progress.note(f"note: {row['reward_timeouts']} answers could not be graded in time: out of the loss")
        if row["reward_undecided"]:
            self.progress.note(f"note: {row['reward_undecided']} answers were too close to call, and score 0")
        self._keep_plan(step, update)

    def agree(self) -> Agreed:
        """What every rank has to know after an update; the one collective between steps."""
        notes, ill = self.judge.end()
        notes += [line] if (line := self.thinking.line()) else []
        votes = self.ranks.gather((bool(self.stop), *self.saves.saver.failure(), self.saves.saver.warning()))
        self.stopped = any(asked for asked, *_ in votes)
        _, fault, failures, warning = votes[0]
        return Agreed(notes, ill, fault, failures, warning)

    def save_if_due(self, agreed: Agreed) -> None:
        """Save where that is due. InputError when the judge has seen enough, or when no save succeeds."""
        for line in agreed.notes:
            self.progress.note(line)
        if agreed.warning:
            self.progress.note(f"warning: {agreed.warning}")
        if self.saves.due(self.done, agreed, ends=self.over):
            if agreed.fault:
                self.progress.note(f"warning: a checkpoint could not be saved ({agreed.fault}); trying again")
            with self.watch("save"):  # goes into the row of the next step, as does eval
                self.saves.save(self.done, self.state, agreed)
        if agreed.ill:
            self._finish_saves()
            raise InputError(
                f"stopped after step {self.done - 1}: {agreed.ill}; the state is saved, siri replay shows the update"
            )

    def evaluate_if_due(self) -> None:
        """Evaluate where that is due; Interrupted when a signal cut that short."""
        if not self.stopped and self.evaluations.due(self.done, last=self.last):
            with self.watch("eval"):
                row = self.evaluations.measure(self.done, last=self.last, train_tokens=self.train_tokens)
            if self.ranks.main:
                self.logger.log(row, self.done)
            figures = f"accuracy {row['accuracy']:.1%}, {row['tokens_mean']:.1f} tokens"
            self.progress.note(f"step {self.done} {row['name']}: {figures}")

    def leave(self) -> None:
        """The last save and the report. All ranks leave together: torchrun ends the others once one has left with 75.
        And before the context ends, because vLLM takes the process group down with its engine."""
        self._finish_saves()
        self.logger.close()
        if self.ranks.main and self.done:  # a signal before the first step leaves nothing to draw
            try:
                self.view.write_report(self.folder.path)
            except OSError as error:
                self.progress.note(f"warning: the report could not be written ({first_line(error)}); see siri report")
        self.ranks.gather(None)

    def rescue(self, error: InputError) -> None:
        """Save the steps that are done before `error` ends the run, where that can be: weights and state belong
        together, and every rank is here. What keeps it from being saved is told beside the error."""
        gave_up = self.saves.saver.failures >= MAX_FAILURES
        if gave_up or not self._whole or not (self.ranks.size == 1 or error.everybody):
            return
        try:
            self._finish_saves()
        except InputError as fault:
            if str(fault) != str(error):
                self.progress.note(f"warning: {fault}")
        self.logger.close()

    def _finish_saves(self) -> None:
        self.ranks.on_main(self.folder.check_lease)  # nothing goes into a folder that another process has taken over
        if line := self.saves.finish(self.done, self.state):
            self.progress.note(line)
        if line := self.saves.saver.warning():
            self.progress.note(f"warning: {line}")

    def closing_words(self) -> int:
        """Say how it ended; returns the exit code."""
        if self.stopped:
            if not self.quiet:
                print(f"stopped at step {self.done}, state saved; continue with --resume")
            return STOPPED
        if not self.quiet:
            self.view.print_closing(self.folder.path)
            say(f"report: {self.folder.path / 'report.html'}")
        return DONE

    def _state(self) -> dict[str, Any]:
        streaks = dict(self.judge.streaks)
        return {"sampler": self.sampler.state(), "train_tokens": self.train_tokens, "health": streaks}

    def _keep_plan(self, step: Step, update: Update) -> None:
        """Keep the packing plan of the first step of a process and of the ends of phases, for the picture."""
        if self.schedule.milestone(self.done) or self.over or step.number == self.folder.start:
            budget = self.setup.token_budget
            plan = update.plan.record(step=step.number, phase=step.phase, cap=step.cap, token_budget=budget)
            self.folder.plans.append(plan)
