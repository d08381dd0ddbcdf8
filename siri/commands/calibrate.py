"""`siri bench calibrate RECIPE`: how much longer a FLOP of attention takes than one of the matrix products, here.

Packs of equally many tokens, cut into few long or many short sequences, go forward and backward through the recipe's
model (random weights) as the trainer runs them: attention, checkpointing, fused head and loss. The time that grows
with the length is attention's. One process, one device.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from siri.config import Config
from siri.config.recipe import RecipeOptions
from siri.config.settings import setting
from siri.errors import InputError
from siri.packing.flops import forward_flops
from siri.text import say

if TYPE_CHECKING:
    import torch

    from siri.train.micro_batch import MicroBatch

SHARES = (1 / 16, 1 / 4, 1 / 2, 1)
"""Lengths that are timed, as shares of the longest prompt and cap."""


@dataclass(frozen=True)
class CalibrateOptions(RecipeOptions):
    """What is timed, and how often."""

    lengths: tuple[int, ...] = ()
    """Tokens of the sequences that are timed; none = 1/16, 1/4, 1/2 and all of the longest prompt and cap."""
    tokens: int = setting(0, least=0)
    """Tokens of a pack; 0 = the longest of the lengths."""
    layers: int = setting(0, least=0)
    """Layers of the model that are timed, fewer for a quick look; 0 = all."""
    repeats: int = setting(5, least=1)
    """Times that every pack runs; the median counts."""
    out: str = "cost_ratio.json"
    """The file to write."""


def fit_ratio(model_config: Any, packs: Sequence[tuple[int, int]], seconds: Sequence[float]) -> tuple[float, float]:
    """(cost ratio, largest relative error of the fit) from the times of packs of (sequences, tokens of each).

    seconds = x * FLOPs of the matrix products + y * FLOPs of attention, by least squares of the relative error; the
    ratio is y / x. Raises InputError where the times show no part that grows with the length.
    """
    layers, head, attention = forward_flops(model_config)
    counts, lengths = np.array(packs, dtype=np.float64).T
    flops = np.stack([counts * lengths * (layers + head), counts * lengths**2 * attention], axis=1)
    measured = np.asarray(seconds, dtype=np.float64)
    (linear, quadratic), *_ = np.linalg.lstsq(flops / measured[:, None], np.ones(len(measured)), rcond=None)
    if linear <= 0 or quadratic <= 0:
        raise InputError(
            "calibrate: the times do not grow with the length of the sequences; take longer --lengths, more --repeats, "
            "or a machine that nobody else uses"
        )
    error = np.abs(flops @ np.array([linear, quadratic]) / measured - 1).max()
    return float(quadratic / linear), float(error)


def pack_times(
    packs: Sequence["MicroBatch"], run: Callable[["MicroBatch"], None], device: "torch.device", repeats: int
) -> list[float]:
    """Median seconds of run(pack). Every pack runs once before, and rounds over all packs, so that a drift of the clock
    is shared by all."""
    import torch

    def timed(pack: "MicroBatch") -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        run(pack)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    for pack in packs:
        run(pack)
    rounds = [[timed(pack) for pack in packs] for _ in range(repeats)]
    return [median(column) for column in zip(*rounds, strict=True)]


def calibrate(config: Config, options: CalibrateOptions) -> dict[str, Any]:
    """Measure the ratio on this machine; returns what the file holds: cost_ratio, what was timed, and with what."""
    import torch

    from siri.model.policy import pick_device
    from siri.runtime.stopwatch import Stopwatch
    from siri.train.learner import policy_loss
    from siri.train.setup import prepare

    device = pick_device(config.device)
    lengths, tokens = _lengths(config, options)
    torch.manual_seed(config.seed)
    try:
        # one process has all of a head that several would share
        whole = replace(config, vocab_parallel=False)
        setup = prepare(whole, device=device, weights="random", layers=options.layers)
        for line in setup.notes():
            say(line)
        config = setup.config
        model, model_config = setup.policy.model, setup.policy.model.config
        packs = [_pack(model_config, tokens // length, length, device, setup.backend) for length in lengths]
        watch = Stopwatch(device)

        def update(pack: "MicroBatch") -> None:
            policy_loss(model, pack, config, None, float(tokens), watch).loss.backward()
            model.zero_grad(set_to_none=True)
            watch.spans.clear()

        seconds = pack_times(packs, update, device, options.repeats)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"calibrate: {tokens} tokens do not fit ({str(error).splitlines()[0]}); lower --tokens and --lengths, or "
            "--layers, or set --checkpointing full"
        ) from None
    ratio, error = fit_ratio(model_config, [(tokens // length, length) for length in lengths], seconds)
    return {
        "cost_ratio": round(ratio, 4),
        "fit_error": round(error, 4),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "model": config.model,
        "layers": model_config.num_hidden_layers,
        "attention": setup.backend,
        "liger": bool(setup.liger.parts),
        "checkpointing": config.checkpointing,
        "threads": setup.threads,
        "tokens": tokens,
        "lengths": list(lengths),
        "ms": [round(1e3 * second, 3) for second in seconds],
        "repeats": options.repeats,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def _lengths(config: Config, options: CalibrateOptions) -> tuple[list[int], int]:
    longest = config.max_prompt_tokens + config.length_schedule().longest
    lengths = sorted(set(options.lengths or [max(2, int(share * longest)) for share in SHARES]))
    if len(lengths) < 2 or lengths[0] < 2:
        raise InputError(f"lengths is {' '.join(map(str, lengths))}; give at least two lengths of 2 tokens and more")
    tokens = options.tokens or lengths[-1]
    if tokens < lengths[-1]:
        raise InputError(f"tokens is {tokens}, less than the longest of the lengths, {lengths[-1]}; raise --tokens")
    return lengths, tokens


def _pack(model_config: Any, sequences: int, length: int, device: "torch.device", backend: str) -> "MicroBatch":
    """Responses after prompts of one token, random, and all with a gradient."""
    from siri.train.micro_batch import MicroBatch
    from siri.train.samples import Sample

    draw = np.random.default_rng(length)
    ids = draw.integers(0, model_config.vocab_size, (sequences, length)).tolist()
    samples = [Sample(sequence[:1], sequence[1:], [-1.0] * (length - 1), 1.0) for sequence in ids]
    return MicroBatch.of(samples, entropy_bonus=False, device=device, backend=backend)


def run_calibrate(options: CalibrateOptions) -> int:
    """`siri bench calibrate RECIPE [--KEY VALUE ...]`: measure, write the file, and say how to use it."""
    from siri.store.files import check_target
    from siri.store.jsonl import write_atomic
    from siri.text import encoded, say

    config = options.config("model")
    path = Path(options.out)
    check_target(path, "--out")
    measured = calibrate(config, options)
    try:
        write_atomic(path, encoded(json.dumps(measured, indent=1) + "\n"))
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); give --out FILE") from None
    for length, ms in zip(measured["lengths"], measured["ms"], strict=True):
        print(f"{measured['tokens'] // length:>5} x {length:>6} tokens  {ms:10.2f} ms")
    print(f"cost_ratio {measured['cost_ratio']:g} on {measured['device']}, fit within {measured['fit_error']:.1%}")
    say(f'{path}: name it in a recipe (cost_ratio = "{path}") or with --cost-ratio {path}')
    return 0
