"""`siri replay BUNDLE`: run the update of a post-mortem again, from its own weights, and say whether it is the same."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from siri.config import Config
from siri.config.settings import setting
from siri.errors import InputError
from siri.model.fsdp import full
from siri.model.policy import pick_device
from siri.runtime.ranks import join_ranks, leave_ranks
from siri.runtime.stopwatch import Stopwatch
from siri.store.checkpoint import read_state, verify
from siri.text import say
from siri.train.learner import policy_loss
from siri.train.micro_batch import MicroBatch
from siri.train.samples import Sample
from siri.train.setup import prepare


@dataclass(frozen=True)
class ReplayOptions:
    bundle: str = setting("", positional=True)
    """Folder of a post-mortem: RUN/postmortem/step_NNNNNN."""


@dataclass(frozen=True)
class Replay:
    """What was recorded, and what came out now."""

    step: int
    cases: dict[str, Any]
    recorded: tuple[float, float]
    """Loss and gradient norm."""
    replayed: tuple[float, float]
    worst: str
    """The micro-batch with the first loss that is not finite, or the largest one."""
    notes: tuple[str, ...] = ()
    """What of the settings could not be had here."""

    @property
    def same(self) -> bool:
        """Whether the loss is the same bit for bit (NaN is NaN)."""
        recorded, replayed = self.recorded[0], self.replayed[0]
        return recorded == replayed or (math.isnan(recorded) and math.isnan(replayed))


def replay(folder: Path, device: str = "auto") -> Replay:
    """Run the update in a bundle again, on one process. Of a run of one process on the same kind of machine the loss is
    the same bit for bit; with several, the sums of their shares are."""
    if not (folder / "state.json").is_file():
        raise InputError(f"{folder}: no post-mortem bundle there; they are RUN/postmortem/step_NNNNNN")
    if fault := verify(folder):
        raise InputError(f"{folder}: damaged, {fault}")
    bundle = read_state(folder).get("bundle")
    if bundle is None:
        raise InputError(f"{folder}: a checkpoint, and no post-mortem bundle; they are RUN/postmortem/step_NNNNNN")
    try:
        config = Config(**{key: _tuples(value) for key, value in bundle["config"].items()})
        samples = [Sample(**sample) for sample in bundle["samples"]]
        plan, old_logps = bundle["plan"], bundle["old_logps"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder}: written by another version of siri ({error})") from None
    ranks, where = join_ranks(pick_device(device))
    if ranks.size > 1:
        raise InputError("siri replay runs on one process; start it without torchrun")
    # as the trainer does: on a GPU the layers compute in bf16 and perhaps in Liger's kernels. One process has all of a
    # head that several shared
    alone = replace(config, model=str(folder.absolute()), vocab_parallel=False)
    setup = prepare(alone, device=where, ranks=ranks)
    policy = setup.policy
    torch.set_num_threads(bundle["threads"])  # how many share a sum decides its last bit
    torch.set_rng_state(torch.frombuffer(bytearray.fromhex(bundle["rng"]["torch"]), dtype=torch.uint8))
    watch = Stopwatch(policy.device)
    idle = Sample(samples[0].prompt_ids[:1], samples[0].response_ids[:1], [0.0], 0.0, counted=False)
    shares, worst, largest = [], "", -math.inf
    for rank in range(len(plan[0])):
        total = torch.zeros((), device=policy.device)
        for number, step in enumerate(plan):
            members = [samples[index] for index in step[rank]] or [idle]
            micro = MicroBatch.of(
                members, entropy_bonus=config.entropy_coef != 0, device=policy.device, backend=setup.backend
            )
            old = old_logps[rank].get(str(number))
            old = None if old is None else torch.tensor(old, dtype=torch.float32, device=policy.device)
            result = policy.call(policy_loss, micro, config, old, bundle["denominator"], watch, None)
            result.loss.backward()
            total += result.loss.detach()
            size = abs(result.loss.item())
            if not math.isfinite(size):
                size = math.inf
            if size > largest:
                worst, largest = f"micro-step {number} of rank {rank}: samples {step[rank]}", size
        shares.append(total.item())
    norm = full(torch.nn.utils.clip_grad_norm_(policy.model.parameters(), config.grad_clip))
    recorded = (float(bundle["loss"]), float(bundle["grad_norm"]))
    return Replay(bundle["step"], bundle["cases"], recorded, (sum(shares), norm.item()), worst, tuple(setup.notes()))


def run_replay(options: ReplayOptions) -> int:
    """Print a replay; 0 if the loss is the same bit for bit, else 1."""
    outcome = replay(Path(options.bundle))
    leave_ranks()
    for line in outcome.notes:
        say(line)
    say(f"step {outcome.step}: {', '.join(f'{case} {value}' for case, value in outcome.cases.items())}")
    for name, recorded, replayed in zip(("loss", "grad norm"), outcome.recorded, outcome.replayed, strict=True):
        print(f"{name:9}  recorded {recorded!r}  replayed {replayed!r}")
    say(f"largest    {outcome.worst}")
    print("the same, bit for bit" if outcome.same else "not the same: another machine, number of ranks or version?")
    return 0 if outcome.same else 1


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
