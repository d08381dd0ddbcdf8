"""`train()`: schedule -> rollout -> reward -> advantages -> packing -> loss -> step -> log -> evaluate -> save."""

from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from siri.config import Config
from siri.data.problems import resolve_path
from siri.data.prompts import PromptSet, load_prompts
from siri.data.sampler import Sampler
from siri.errors import InputError
from siri.model.attention import choose
from siri.model.liger import apply_liger
from siri.model.offload import HostAdamW
from siri.model.policy import Policy, allocate, check_context, checkpoint_activations, load_policy, pick_device
from siri.packing.flops import read_cost_ratio, sequence_cost
from siri.packing.step_plan import StepTimes
from siri.planning.budget import token_budget as plan_token_budget
from siri.planning.gpus import model_flops_utilisation
from siri.planning.memory_plan import Machine, MemoryPlan, memory_plan, update_peak
from siri.report.html import write_report
from siri.report.terminal import TrainProgress, print_closing
from siri.rewards.pool import RewardPool
from siri.rollout.engines import make_engine
from siri.runtime.ranks import Ranks, join_ranks, shard
from siri.runtime.signals import Interrupted, Stop
from siri.runtime.stopwatch import Stopwatch, profiled
from siri.store import checkpoint
from siri.store.loggers import make_logger
from siri.store.run_folder import Resume, RunFolder
from siri.store.saver import MAX_FAILURES, Saver
from siri.train.collect import collect, derive_seed, make_samples, rollout_metrics
from siri.train.dynamics import Dynamics
from siri.train.evaluate import Evaluation, average, evaluate
from siri.train.judge import Health
from siri.train.learner import update_policy

DONE, STOPPED = 0, 75
"""Exit codes: trained to the end; stopped by a signal with the state saved."""


def train(config: Config, run_dir: Path, *, recipe: str, resume: Resume = "never", quiet: bool = False) -> int:
    """Train `config` in the folder `run_dir`; returns the exit code. Bad input is an InputError, before any writing.

    Under torchrun every process calls it with the same arguments.
    """
    ranks, device = join_ranks(pick_device(config.device), across_nodes=config.shard_across_nodes)
    quiet = quiet or not ranks.main
    run = ranks.on_main(lambda: RunFolder(run_dir, config, recipe, resume))
    if run.finished():
        if ranks.main and not (run_dir / "report.html").exists():  # a kill came before it
            with suppress(OSError):
                write_report(run_dir)
        if not quiet:
            print_closing(run_dir)
        return DONE
    schedule = config.length_schedule()
    cost_ratio = ranks.on_main(lambda: read_cost_ratio(config.cost_ratio))
    policy = load_policy(config.model, device, weights=not ranks.sharded)
    choose(config.attention, device, policy.model.config, config.checkpointing)  # says what cannot be had
    apply_liger(policy.model, config.liger, device)
    prompts = load_prompts(config.data, policy.tokenizer, config)
    held_out = [
        load_prompts(source, policy.tokenizer, config, limit=config.eval_problems) for source in config.eval_data
    ]
    eval_cap = config.eval_cap or schedule.longest
    check_context(policy, prompts.longest, schedule.longest)
    for problems in held_out:
        check_context(policy, problems.longest, eval_cap)
    token_budget = plan_token_budget(config, longest=prompts.longest + schedule.longest, on_gpu=device.type == "cuda")
    if ranks.sharded:
        compute_dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        shard(policy.model, ranks, compute_dtype=compute_dtype, vocab_parallel=config.vocab_parallel)
        allocate(policy.model, device)
    checkpoint_activations(policy.model, config.checkpointing)
    optimizer = (HostAdamW if config.optimizer_offload else torch.optim.AdamW)(
        policy.model.parameters(), lr=config.lr, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay
    )
    sampler = Sampler(len(prompts.ids), config.seed)
    train_tokens = run.state["train_tokens"]
    if run.checkpoint:
        state = checkpoint.restore(run.checkpoint, policy, optimizer, ranks=ranks)
        sampler = Sampler(len(prompts.ids), **state["sampler"])
    elif ranks.sharded:
        checkpoint.load_weights(resolve_path(config.model), policy, ranks=ranks)
    engine = make_engine(config, policy, ranks=ranks, folder=run_dir)
    watch, times = Stopwatch(device), StepTimes()
    dynamics = Dynamics(policy.tokenizer)
    cost = sequence_cost(policy.model.config, cost_ratio=cost_ratio)
    rewards = RewardPool(
        config.reward,
        workers=config.reward_workers,
        timeout_s=config.reward_timeout_s,
        think=config.think,
        memory_bytes=int(config.reward_memory_gb * 2**30),
    )
    health = Health(config, run.path, policy, optimizer, ranks=ranks)
    health.streaks |= run.state.get("health", {})
    saver = Saver(run.checkpoints, keep=config.keep_checkpoints, keep_every=config.keep_every, ranks=ranks)

    with closing(engine), rewards, TrainProgress(config.steps, run.start, quiet) as progress, Stop() as stop:
        logger = make_logger(config.logger if ranks.main else "none", run_dir, config.to_json())
        ranks.on_main(lambda: try_reward(config, rewards, prompts))
        ranks.on_main(run.create)  # nothing is written before all that may be bad input was tried
        engine.sync()
        settled = replace(config, token_budget=token_budget, max_prompt_tokens=prompts.longest)
        memory = _plan_memory(settled, policy, ranks, quiet) if device.type == "cuda" else None
        sources = [(config.data, prompts), *zip(config.eval_data, held_out, strict=True)]
        for line in [*run.notes, *engine.notes, *(line for source, one in sources for line in one.notes(source))]:
            progress.note(line)

        def measure(done: int) -> None:
            """Evaluate what is due after `done` steps, unless that was done before a kill."""
            last = done == config.steps or bool(config.train_tokens and train_tokens >= config.train_tokens)
            name = schedule.milestone(done) or ("final" if last else f"step-{done}")
            if done and not (schedule.milestone(done) or last or due(done, config.eval_every)):
                return
            if ranks.on_main(lambda: any(row["step"] == done for row in run.evals.rows())):
                return
            figures = [Evaluation(**figures) for figures in ranks.on_main(lambda: run.measured(done))]
            for index, problems in enumerate(held_out[len(figures) :], start=len(figures)):
                found = evaluate(
                    policy,
                    engine,
                    rewards,
                    problems,
                    cap=eval_cap,
                    samples=config.eval_samples,
                    temperature=config.eval_temperature,
                    seed=derive_seed(config.seed, 1, index, *ranks.seed_path),
                    ranks=ranks,
                    stop=stop,
                )
                figures.append(found)
                if ranks.main:
                    run.keep_measured(done, found)
            if figures and ranks.main:
                row = average(dict(zip(config.eval_data, figures, strict=True)))
                row = {"step": done, "name": name if done else "base", "train_tokens": train_tokens, **row}
                run.evals.append(row)
                logger.log(row, done)
                progress.note(
                    f"step {done} {row['name']}: accuracy {row['accuracy']:.1%}, {row['tokens_mean']:.1f} tokens"
                )

        warned = False
        done, last, saved = run.start, run.trained(), run.start
        owed: str | None = None  # the name of the last save, until it is known to be there
        state = {"sampler": sampler.state(), "train_tokens": train_tokens, "health": dict(health.streaks)}
        try:
            measure(run.start)
            stopped = any(ranks.gather(bool(stop)))
        except Interrupted:
            stopped = True
        for step in [] if last or stopped else range(run.start, config.steps):
            cap = schedule.cap(step)
            trace = run.path / f"trace_step_{step:06d}_rank_{ranks.rank}.json" if step == config.profile else None
            with profiled(trace), watch("step_time"):
                with watch("rollout"):
                    engine.wake()
                    options = {"step": step, "cap": cap, "watch": watch, "ranks": ranks, "stop": stop}
                    try:
                        groups = collect(config, policy, engine, rewards, prompts, sampler, **options)
                    except Interrupted:  # nothing of this step has happened; a resumed run samples the same
                        stopped = True
                        break
                    except RuntimeError as error:
                        if "probability tensor" not in str(error):  # torch's words for NaN among what it samples from
                            raise
                        raise InputError(blown_up(run.checkpoints, step)) from None
                    engine.sleep()
                with watch("train"):
                    if memory:
                        torch.cuda.reset_peak_memory_stats(device)  # the peak of the update, not of the rollout
                    health.begin(step, groups, state["sampler"])
                    mini_batches = make_samples(config, groups)
                    update = update_policy(
                        policy,
                        optimizer,
                        mini_batches,
                        config,
                        token_budget=token_budget,
                        watch=watch,
                        ranks=ranks,
                        cost=cost,
                        allows=health.allows,
                    )
                    if memory:
                        update["memory_peak"] = torch.cuda.max_memory_allocated(device)
                with watch("sync"):
                    engine.sync()

            row: dict[str, Any] = {"step": step, "phase": schedule.phase(step), "cap": cap}
            row |= rollout_metrics(groups) | dynamics.metrics(groups) | engine.metrics() | update
            plan, flops = row.pop("plan"), row.pop("training_flops")
            row |= times.compare(plan, watch.laps("forward", "backward"))
            if memory:
                largest = plan.largest(ranks.rank)
                row["memory_predicted"] = update_peak(policy.model.config, memory, largest, several=plan.several)
            train_tokens += row["response_tokens"]
            row |= {"epoch": sampler.epoch, "train_tokens": train_tokens} | watch.seconds()
            row["tokens_per_s"] = row["response_tokens"] / row["step_time_s"]
            row["mfu"] = model_flops_utilisation(flops, row["train_s"], ranks.size, device)
            if ranks.main:
                run.metrics.append(row)
                logger.log(row, step)
                progress.update(row)
                if row["reward_errors"] and not warned:
                    warned = True
                    progress.note(
                        f"warning: the reward failed on {row['reward_errors']} answers: {rewards.first_error}"
                    )

            notes, ill = health.end()
            for line in notes:
                progress.note(line)
            done = step + 1
            last = done == config.steps or bool(config.train_tokens and train_tokens >= config.train_tokens)
            votes = ranks.gather((bool(stop), *saver.failure()))
            stopped, (_, fault, failures) = any(asked for asked, *_ in votes), votes[0]
            milestone = schedule.milestone(done)
            if ranks.main and (milestone or last or stopped or step == run.start):
                run.plans.append(plan.record(step=step, phase=row["phase"], cap=cap, token_budget=token_budget))
            state = {"sampler": sampler.state(), "train_tokens": train_tokens, "health": dict(health.streaks)}
            if failures >= MAX_FAILURES:
                saver.give_up(fault)
            if fault:
                progress.note(f"warning: a checkpoint could not be saved ({fault}); trying again")
                milestone = milestone or owed  # a step or so late is better than never
            if (
                fault
                or milestone
                or last
                or stopped
                or ill
                or due(done, config.save_every or max(1, config.cycle // 4))
            ):
                with watch("save"):  # goes into the row of the next step, as does eval
                    saver.save(done, policy, optimizer, state, name=milestone)
                    saved, owed = done, milestone
            if ill:
                saver.wait()
                raise InputError(f"stopped after step {step}: {ill}; the state is saved, siri replay shows the update")
            if stopped:
                break
            try:
                with watch("eval"):
                    measure(done)
            except Interrupted:  # a resumed run makes up for it
                stopped = True
                break
            if last:
                break
        if saved != done:
            saver.save(done, policy, optimizer, state, name=schedule.milestone(done))
        saver.wait()
        logger.close()
        if ranks.main and done:  # a signal before the first step leaves nothing to draw
            write_report(run_dir)
        # all leave together: torchrun ends the others once one has left with 75. And within this block, because vLLM
        # takes the process group down with its engine
        ranks.gather(None)
    if stopped:
        if not quiet:
            print(f"stopped at step {done}, state saved; continue with --resume")
        return STOPPED
    if not quiet:
        print_closing(run_dir)
        print(f"report: {run_dir / 'report.html'}")
    return DONE


def _plan_memory(config: Config, policy: Policy, ranks: Ranks, quiet: bool) -> MemoryPlan:
    """Print what the run will need of a GPU's memory."""
    from siri.planning.tables import print_plan
    from siri.rollout import engines

    gpu = torch.cuda.get_device_properties(policy.device)
    machine = Machine(ranks.size, gpu.total_memory, ranks.mesh.shape[-1], multiprocessors=gpu.multi_processor_count)
    plan = memory_plan(policy.model.config, config, machine, rollout=engines.choose(config, policy.device))
    if not quiet:
        print_plan(plan)
    return plan


def try_reward(config: Config, rewards: RewardPool, prompts: PromptSet) -> None:
    """Refuse a reward that fails on each of a few gold answers: it would call every response of the run wrong."""
    gold = prompts.answers[:4]
    graded = rewards.score([f"</think> \\boxed{{{answer}}}" for answer in gold], gold)
    if graded.errors == len(gold):
        raise InputError(f"reward {config.reward} fails on every answer; the first time with: {rewards.first_error}")


def blown_up(folder: Path, step: int) -> str:
    """What to do about weights that sample nothing but NaN."""
    found = [path.name for path in checkpoint.checkpoints(folder)]
    return (
        f"step {step}: the model's probabilities are not finite, the weights have blown up; lower --lr or --grad-clip "
        f"and start again, or delete the checkpoints after the last good one ({', '.join(found) or 'there is none'})"
    )


def due(done: int, every: int) -> bool:
    """Whether something that happens every `every` steps (0 = never) happens after `done` steps."""
    return every > 0 and done % every == 0
