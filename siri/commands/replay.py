"""`siri replay BUNDLE`: run the update of a post-mortem again, from its own weights, and say whether it is the same."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from siri.config import Config, of_today
from siri.config.settings import setting
from siri.errors import InputError, first_line
from siri.model.adapters import Adapter
from siri.model.fsdp import full
from siri.model.policy import pick_device
from siri.runtime.ranks import Ranks, join_ranks, leave_ranks
from siri.runtime.stopwatch import Stopwatch
from siri.store.checkpoint import read_state, restore, verify
from siri.text import say
from siri.train.learner import policy_loss
from siri.train.micro_batch import MicroBatch
from siri.train.samples import Sample
from siri.train.setup import prepare

MOST_THREADS = 4096


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
        config = Config(**{key: _tuples(value) for key, value in of_today(bundle["config"]).items()})
        samples = [Sample(**sample) for sample in bundle["samples"]]
        fault = next(_faults(bundle, samples), "")
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder}: written by another version of siri ({first_line(error)})") from None
    if fault:
        raise InputError(f"{folder}: holds no update that can be run: {fault}")
    ranks, where = join_ranks(pick_device(device))
    if ranks.size > 1:
        raise InputError("siri replay runs on one process; start it without torchrun")
    try:
        return _run_again(folder, config, samples, bundle, where, ranks)
    except (RuntimeError, ValueError, IndexError, OverflowError, MemoryError) as error:
        raise InputError(f"{folder}: its update cannot be run here ({first_line(error)})") from error


def _run_again(
    folder: Path, config: Config, samples: list[Sample], bundle: dict[str, Any], where: torch.device, ranks: Ranks
) -> Replay:
    plan, old_logps = bundle["plan"], bundle["old_logps"]
    # as the trainer does: on a GPU the layers compute in bf16 and perhaps in Liger's kernels. One process has all of a
    # head that several shared
    model = config.model if config.lora_rank else str(folder.absolute())  # an adapter needs its base
    alone = replace(config, model=model, vocab_parallel=False)
    setup = prepare(alone, device=where, ranks=ranks)
    policy, vocab = setup.policy, setup.policy.model.config.vocab_size
    if any(not 0 <= token < vocab for sample in samples for token in (*sample.prompt_ids, *sample.response_ids)):
        raise InputError(f"{folder}: holds no update that can be run: a token id is none of the model's {vocab:,}")
    if config.lora_rank:
        Adapter.read(folder)  # says what is wrong with its base
        restore(folder, policy, None)
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


def _faults(bundle: dict[str, Any], samples: list[Sample]) -> Iterator[str]:
    """What keeps an update from being run, in words. The file is whole, but whoever wrote it may have meant harm."""
    for number, sample in enumerate(samples):
        if not (_is_list_of(sample.prompt_ids, int) and _is_list_of(sample.response_ids, int)):
            yield f"the token ids of sample {number} are no whole numbers, or none"
        elif not _is_list_of(sample.rollout_logp, float, int) or len(sample.rollout_logp) != len(sample.response_ids):
            yield f"sample {number} has not one log-prob for each token of its response"
        elif not _is_list_of([sample.advantage], float, int) or type(sample.counted) is not bool:
            yield f"the advantage of sample {number} is no number, or `counted` is neither true nor false"
    plan, old_logps, whole = bundle["plan"], bundle["old_logps"], not bundle["config"]["vocab_parallel"]
    if not samples or not _is_list_of(plan, list) or not _is_list_of(plan[0], list):
        yield "it has no samples, or no plan"
        return
    width = len(plan[0])
    if any(len(step) != width or not all(isinstance(part, list) for part in step) for step in plan):
        yield "its plan has not the same ranks in every micro-step"
    elif not all(type(index) is int and 0 <= index < len(samples) for step in plan for part in step for index in part):
        yield f"its plan names a sample beyond the {len(samples)} that there are"
    elif not isinstance(old_logps, list) or len(old_logps) != width or not _is_list_of(old_logps, dict):
        yield f"its old log-probs are not those of {width} ranks"
    else:
        for rank, of_rank in enumerate(old_logps):
            for step, values in of_rank.items():
                known = re.fullmatch("[0-9]{1,6}", step) and int(step) < len(plan)
                members = [samples[i] for i in plan[int(step)][rank]] if known else []
                tokens = sum(len(sample.response_ids) for sample in members) or 1  # of an idle rank
                if not known or not _is_list_of(values, float, int) or (whole and len(values) != tokens):
                    yield f"the old log-probs of micro-step {step[:20]} of rank {rank} do not fit its tokens"
    if type(bundle["threads"]) is not int or not 1 <= bundle["threads"] <= MOST_THREADS:
        yield f"its number of threads is none from 1 to {MOST_THREADS}"
    if not re.fullmatch(r"(?:[0-9a-f]{2})+", str(bundle["rng"]["torch"])):
        yield "its state of the random numbers is no hexadecimal text"
    if not (_is_list_of([bundle["denominator"]], float, int) and 0 < bundle["denominator"] < math.inf):
        yield "its divisor is no number above 0"
    for name in ("loss", "grad_norm"):
        if not isinstance(bundle[name], (float, int)) and bundle[name] not in ("nan", "inf", "-inf"):
            yield f"its {name} is no number"
    if type(bundle["step"]) is not int or not isinstance(bundle["cases"], dict):
        yield "its step is no number, or its cases are no table"


def _is_list_of(values: Any, *kinds: type) -> bool:
    """Whether it is a list, not an empty one, of nothing but these types."""
    return isinstance(values, list) and bool(values) and all(type(value) in kinds for value in values)


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
