"""A training run: what it is made of, and what each of its steps consists of."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from siri.config import Config
from siri.data.prompts import PromptSet
from siri.data.sampler import Sampler
from siri.errors import InputError
from siri.model.offload import HostAdamW
from siri.packing.step_plan import StepTimes
from siri.planning.gpus import model_flops_utilisation
from siri.planning.memory_plan import MemoryPlan
from siri.rewards.pool import RewardPool
from siri.rollout import NotFinite
from siri.rollout.engines import make_engine
from siri.runtime.ranks import Ranks
from siri.runtime.signals import Stop
from siri.runtime.stopwatch import Stopwatch, profiled
from siri.schedule import learning_rate
from siri.store import checkpoint
from siri.store.lock import check_seen
from siri.store.run_folder import RunFolder
from siri.store.saver import MAX_FAILURES
from siri.text import say
from siri.train.ahead import Ahead
from siri.train.auto import AutoSchedule, schedule_of
from siri.train.collect import Collector
from siri.train.dynamics import Dynamics
from siri.train.edges import blown_up, idle_gpus, memory_figures, plan_memory
from siri.train.evaluations import BEST, Evaluations
from siri.train.groups import Group, rollout_metrics, scores_and_lengths
from siri.train.judge import Judge
from siri.train.laser import LaserTargets
from siri.train.learner import Learner, Update
from siri.train.mirror import Mirror
from siri.train.records import Records
from siri.train.samples import make_samples
from siri.train.saves import Agreed, Saves, make_saver
from siri.train.setup import prepare, training_sources
from siri.train.shown import GradingNotes, ReportDrawer, evaluations_left
from siri.train.step import Step
from siri.train.thinking import ThinkingCheck
from siri.train.view import View

DONE, STOPPED = 0, 75
"""Exit codes: trained to the end; stopped by a signal with the state saved."""


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
        self.schedule = schedule_of(config, folder.state)
        # of a run with an adapter, the checkpoint has nothing but that
        later = ranks.sharded and bool(folder.source or folder.weights) and not config.lora_rank
        self.sources = training_sources(config)
        filled = {"weights": "later" if later else "read", "held": None if config.lora_rank else folder.source}
        setup = self.setup = prepare(config, device=device, ranks=ranks, sources=self.sources, **filled)
        config = self.config = setup.config  # with what was left to the memory plan
        folder.compute_with(setup.threads, steps=config.steps)
        self.policy = setup.policy
        prompts, *held_out = setup.problems
        self.optimizer = (HostAdamW if config.optimizer_offload else torch.optim.AdamW)(
            [parameter for parameter in self.policy.model.parameters() if parameter.requires_grad],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
        )
        self.sampler = ranks.on_main(lambda: self._known_sampler(prompts, held_out))
        if folder.source:
            checkpoint.restore(folder.source, self.policy, self.optimizer, ranks=ranks)
        elif folder.weights:
            checkpoint.load_weights(folder.weights.folder, self.policy, ranks=ranks)
        self.watch, self.times, self.stop = Stopwatch(device), StepTimes(), Stop()
        self.engine = make_engine(config, self.policy, ranks=ranks, folder=folder.path, stop=self.stop)
        self.dynamics, self.thinking = Dynamics(self.policy.tokenizer), ThinkingCheck(config.reward, config.think)
        shown = {"cap": self.schedule.cap, "evaluations": evaluations_left(config, self.schedule)}
        shown["log"] = folder.path if ranks.main else None
        self.progress = view.progress(config.steps, folder.start, self.quiet, **shown)
        self.drawer = ReportDrawer(view, folder.path, self.progress.note)
        self.logger = Mirror(config.logger if ranks.main else (), folder.path, config, self.progress.note)
        self.rewards = RewardPool(
            config.reward,
            workers=config.reward_workers,
            timeout_s=config.reward_timeout_s,
            think=config.think,
            memory_bytes=int(config.reward_memory_gb * 2**30),
        )
        self.judge = Judge(config, folder.path, self.policy, self.optimizer, ranks=ranks)
        self.judge.streaks |= folder.state.get("health", {})
        saver = make_saver(config, folder, ranks)
        self.saves = Saves(saver, config, self.policy, self.optimizer, folder.start, self.schedule)
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
            dynamics=self.dynamics,
            laser=LaserTargets(config, folder.state.get("laser")) if config.length_reward == "laser_d" else None,
            stage=self.progress.stage,
        )
        self.ahead = Ahead(config, self.collector, self.schedule, done=folder.start)
        folder.notes += self.ahead.restore(folder.checkpoint, folder.state)
        self.saves.pending = self.ahead.arrays
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
        self.records = Records(config, folder.path, self.policy, self.progress.note, self.logger.table)
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
            records=self.records,
            stage=self.progress.stage,
        )
        self.evaluations.schedule = self.schedule
        self.evaluations.keep = lambda done: self.saves.keep(done, self.state, BEST)
        self.memory: MemoryPlan | None = None
        self.done, self.train_tokens = folder.start, folder.state["train_tokens"]
        self.stopped = False
        """A signal, here or on another rank, or work that a signal cut short."""
        self.state = self._state()
        """What a checkpoint of the last finished step holds beside the weights."""
        self.trace: Path | None = None
        """Where the update of this step is profiled to."""
        self.rate = config.lr
        """Learning rate of the newest step."""
        self.grading = GradingNotes(self.progress.note, lambda: self.rewards.first_error)
        self._whole = False
        """Whether weights and state belong together: from the first row on, but for the time of an update."""
        self._context = ExitStack()

    def __enter__(self) -> "Run":
        with ExitStack() as stack:
            for part in (closing(self.engine), self.rewards, closing(self.ahead), self.progress, self.stop):
                stack.enter_context(part)
            self._context = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._context.__exit__(*exception)

    @property
    def last(self) -> bool:
        """No step is left."""
        return self.done >= self.config.steps or 0 < self.config.train_tokens <= self.train_tokens

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
        self.ahead.begin()
        self.engine.sync()
        self.ahead.advance(self.done)
        if self.device.type == "cuda":
            lengths = {"token_budget": self.setup.token_budget, "max_prompt_tokens": prompts.longest}
            settled = replace(config, attention=self.setup.backend, **lengths)
            self.memory = plan_memory(settled, self.policy, self.ranks, quiet=self.quiet, liger=self.setup.liger)
        notes = [*self.folder.notes, *self.engine.notes, *self.setup.notes(), self.rewards.cell()]
        for line in filter(None, [*notes, idle_gpus(self.device)]):
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
        """Measures the step, and has its update profiled where the configuration asks for it."""
        name = f"trace_step_{step.number:06d}_rank_{self.ranks.rank}.json"
        self.trace = self.folder.path / name if step.number == self.config.profile else None
        with self.watch("step_time"):
            yield

    def collect(self, step: Step) -> list[Group]:
        """Sample and grade the groups of a step; Interrupted when a signal cut that short."""
        with self.watch("rollout"):
            self.engine.wake()
            try:
                here = self.ahead.covers(step.number)
                groups = self.ahead.collect(step.number) if here else self.collector.collect(step.number, step.cap)
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
            c = self.config
            self.rate = learning_rate(c.lr_schedule, c.lr, step.number, c.steps, c.lr_warmup)
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate
            self.judge.begin(step.number, groups, self.state["sampler"])
            with profiled(self.trace, self.watch), self.progress.stage("update"):
                update = self.learner.update(make_samples(self.config, groups))
            if self.memory:
                asleep = int(self.engine.metrics().get("rollout_memory_asleep", 0))
                update.metrics["memory_peak"] = torch.cuda.max_memory_allocated(self.device) - asleep
        return update

    def sync(self) -> InputError | None:
        """Hand the new weights to the engine; what keeps it from taking them, which is raised once the step that made
        them has its row."""
        with self.watch("sync"), self.progress.stage("weights to the engine"):
            try:
                self.engine.sync()
            except InputError as error:
                if error.stuck:
                    raise
                error.everybody = True  # as `siri.rollout` has it
                return error
        self.ahead.advance(self.done + 1)
        return None

    def record(self, step: Step, groups: Sequence[Group], update: Update) -> None:
        """The one row of the step: in metrics.jsonl, in the logger and on the screen."""
        row: dict[str, Any] = {"step": step.number, "phase": step.phase, "cap": step.cap}
        row |= rollout_metrics(groups) | self.collector.method_metrics(step.number, groups)
        row |= self.dynamics.metrics(groups) | self.engine.metrics() | update.metrics | self.ahead.trained(step.number)
        row |= self.times.note(update.plan, self.watch.laps("forward", "backward"))
        row |= memory_figures(self.device, self.policy, self.memory, update.plan, self.ranks.rank)
        self.train_tokens += row["response_tokens"]
        if isinstance(self.schedule, AutoSchedule) and (
            turn := self.schedule.observe(step.number, scores_and_lengths(groups))
        ):
            row["turn"] = f"{turn.phase} to {turn.cap}: {turn.reason}"
            self.progress.note(f"step {turn.step}: {row['turn']}")
        row |= {"epoch": self.sampler.epoch, "train_tokens": self.train_tokens, "lr": self.rate} | self.watch.seconds()
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
        if self.records.wanted:
            self.records.step(step.number, groups, self.schedule.milestone(self.done))
        self.grading.see(row)
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
        if self.ranks.main and self.schedule.milestone(self.done) and not self.over:
            self.drawer.milestone()

    def leave(self) -> None:
        """The last save and the report. All ranks leave together: torchrun ends the others once one has left with 75.
        And before the context ends, because vLLM takes the process group down with its engine."""
        self._finish_saves()
        self.logger.close()
        if self.ranks.main and self.done:  # a signal before the first step leaves nothing to draw
            self.drawer.draw()
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
        if line := self.saves.finish(self.done, self.state, again=self.stopped and self.ahead.flies):
            self.progress.note(line)
        if line := self.saves.saver.warning():
            self.progress.note(f"warning: {line}")

    def closing_words(self) -> int:
        """Say how it ended; returns the exit code."""
        if self.stopped and not self.quiet:
            print(f"stopped at step {self.done}, state saved; continue with --resume")
        elif not self.quiet:
            self.view.print_closing(self.folder.path)
            say(f"report: {self.folder.path / 'report.html'}")
        return STOPPED if self.stopped else DONE

    def _state(self) -> dict[str, Any]:
        state = {"sampler": self.ahead.position, "train_tokens": self.train_tokens, "health": dict(self.judge.streaks)}
        auto = {"auto": self.schedule.state()} if isinstance(self.schedule, AutoSchedule) else {}
        state |= {"staleness": self.config.staleness} if self.config.staleness else {}
        return state | auto | ({"laser": self.collector.laser.state()} if self.collector.laser else {})

    def _keep_plan(self, step: Step, update: Update) -> None:
        """Keep the packing plan of the first step of a process and of the ends of phases, for the picture."""
        if self.schedule.milestone(self.done) or self.over or step.number == self.folder.start:
            about = {"step": step.number, "phase": step.phase, "cap": step.cap}
            self.folder.plans.append(update.plan.record(**about, token_budget=self.setup.token_budget))
