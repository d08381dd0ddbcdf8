"""Rollout batches that are sampled ahead of the step that trains on them, and how they lie in a checkpoint.

A batch knows its step, the cap of that step and where the sampler stood after it was drawn, so that it can be saved
half-way and go on: finished responses as they are, with their grades, and of the others the tokens so far.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from siri.errors import InputError, first_line
from siri.rewards.pool import RewardBatch
from siri.rollout.draft import Draft
from siri.runtime.ranks import Arrays
from siri.text import encoded
from siri.train.collect import Drawn
from siri.train.rounds import Sampled

LARGEST = 2**31


@dataclass(eq=False, slots=True)
class Answer:
    """A response with its grade, once it has one."""

    draft: Draft
    text: str = ""
    reward: float = 0.0
    timed_out: bool = False
    graded: bool = False


@dataclass(eq=False, slots=True)
class Batch:
    """What a rank samples for a step."""

    step: int
    cap: int
    sampler: dict[str, int]
    """Where the sampler stood after the batch was drawn."""
    prompts: dict[int, Drawn]
    """This rank's, by their places in the batch."""
    answers: dict[int, list[Answer]]
    """To each of them."""
    dealt: list[list[int]] = field(default_factory=list)
    """The places of each rank's prompts."""
    faults: list[int] = field(default_factory=lambda: [0, 0, 0])
    """Answers whose grading timed out, failed, or came to no decision."""
    began: float = 0.0
    """When it was begun, seconds since 1970,"""
    ended: float = 0.0
    """and when its last response was graded; 0 = not yet."""
    complete: bool = False
    """All is sampled and graded, on every rank."""

    def everything(self) -> list[Answer]:
        return [answer for answers in self.answers.values() for answer in answers]

    def copy(self) -> "Batch":
        """As it is now; what is sampled and graded later does not show."""
        answers = {
            place: [replace(answer, draft=answer.draft.copy()) for answer in group]
            for place, group in self.answers.items()
        }
        return replace(self, answers=answers, faults=list(self.faults))

    def sampled(self) -> Sampled:
        """The responses and their grades, prompt by prompt; all of them are graded."""
        rewards = [answer.reward for answer in self.everything()]
        timed_out = {place for place, answer in enumerate(self.everything()) if answer.timed_out}
        timeouts, errors, undecided = self.faults
        graded = RewardBatch(rewards, timeouts, errors, "", undecided, timed_out)
        return Sampled([[answer.draft.completion() for answer in group] for group in self.answers.values()], graded)

    def staleness(self) -> np.ndarray:
        """[versions, 2]: steps by which the weights are older than those that train, and tokens that they sampled."""
        pairs = [pair for answer in self.everything() for pair in answer.draft.versions()]
        return np.array([(self.step - version, tokens) for version, tokens in pairs], np.int64).reshape(-1, 2)


def to_arrays(batches: Sequence[Batch]) -> Arrays:
    """Batches as flat arrays; they are copies (`Batch.copy`), or nothing is sampled of them any more."""
    entries = [(batch, place) for batch in batches for place in batch.prompts]
    prompts = [batch.prompts[place] for batch, place in entries]
    answers = [answer for batch, place in entries for answer in batch.answers[place]]
    drafts = [answer.draft for answer in answers]
    spans = [draft.spans for draft in drafts]
    words = [encoded(prompt.answer) for prompt in prompts]

    def flat(lists: Iterable[Any], dtype: Any) -> np.ndarray:
        return np.concatenate([np.empty(0, dtype), *(np.asarray(items, dtype) for items in lists)])

    return {
        "steps": np.array([batch.step for batch in batches], np.int64),
        "caps": np.array([batch.cap for batch in batches], np.int64),
        "samplers": np.array([[batch.sampler[key] for key in SAMPLER] for batch in batches], np.int64).reshape(-1, 4),
        "faults": np.array([batch.faults for batch in batches], np.int64).reshape(-1, 3),
        "times": np.array([(batch.began, batch.ended) for batch in batches], np.float64).reshape(-1, 2),
        "batch_prompts": np.array([len(batch.prompts) for batch in batches], np.int64),
        "places": np.array([place for _, place in entries], np.int64),
        "asked": np.array([prompt.asked for prompt in prompts], np.int64),
        "prompt_lengths": np.array([len(prompt.ids) for prompt in prompts], np.int64),
        "prompt_ids": flat((prompt.ids for prompt in prompts), np.int32),
        "word_lengths": np.array([len(word) for word in words], np.int64),
        "words": np.frombuffer(b"".join(words), np.uint8).copy(),
        "responses": np.array([len(batch.answers[place]) for batch, place in entries], np.int64),
        "max_tokens": np.array([draft.max_tokens for draft in drafts], np.int64),
        "requests": np.array([draft.requests for draft in drafts], np.int64),
        "done": np.array([draft.done for draft in drafts], bool),
        "truncated": np.array([draft.truncated for draft in drafts], bool),
        "graded": np.array([answer.graded for answer in answers], bool),
        "timed_out": np.array([answer.timed_out for answer in answers], bool),
        "rewards": np.array([answer.reward for answer in answers], np.float64),
        "lengths": np.array([len(draft.tokens) for draft in drafts], np.int64),
        "tokens": flat((draft.tokens for draft in drafts), np.int32),
        "logp": flat((draft.logp for draft in drafts), np.float32),
        "span_counts": np.array([len(each) for each in spans], np.int64),
        "spans": np.array([span for each in spans for span in each], np.int64).reshape(-1, 2),
    }


SAMPLER = ("epoch", "cursor", "seed", "size")


def merged(parts: Sequence[Arrays]) -> Arrays:
    """The batches of all ranks as those of one, each prompt in its place."""
    if len(parts) == 1:
        return parts[0]
    batches: dict[int, Batch] = {}
    for part in parts:
        for batch in from_arrays(part):
            whole = batches.setdefault(batch.step, batch)
            if whole is not batch:
                whole.prompts |= batch.prompts
                whole.answers |= batch.answers
                whole.faults = [count + added for count, added in zip(whole.faults, batch.faults, strict=True)]
    for batch in batches.values():
        batch.prompts = dict(sorted(batch.prompts.items()))
        batch.answers = dict(sorted(batch.answers.items()))
    return to_arrays(list(batches.values()))


def from_arrays(arrays: Mapping[str, np.ndarray]) -> list[Batch]:
    """The batches that `to_arrays` was given. Seeds are the caller's."""

    def cut(name: str, lengths: np.ndarray) -> list[list[Any]]:
        ends = np.cumsum(lengths).tolist()
        return [arrays[name][start:end].tolist() for start, end in pairwise([0, *ends])]

    columns = zip(
        arrays["max_tokens"].tolist(),
        cut("tokens", arrays["lengths"]),
        cut("logp", arrays["lengths"]),
        cut("spans", arrays["span_counts"]),
        arrays["requests"].tolist(),
        arrays["done"].tolist(),
        arrays["truncated"].tolist(),
        arrays["graded"].tolist(),
        arrays["timed_out"].tolist(),
        arrays["rewards"].tolist(),
        strict=True,
    )
    answers = iter(
        [
            Answer(_draft(most, tokens, logp, spans, requests, done, truncated), "", reward, timed_out, graded)
            for most, tokens, logp, spans, requests, done, truncated, graded, timed_out, reward in columns
        ]
    )
    said = [bytes(word).decode() for word in cut("words", arrays["word_lengths"])]
    prompts = iter(
        [
            (place, Drawn(ids, answer, asked), [next(answers) for _ in range(count)])
            for place, ids, answer, asked, count in zip(
                arrays["places"].tolist(),
                cut("prompt_ids", arrays["prompt_lengths"]),
                said,
                arrays["asked"].tolist(),
                arrays["responses"].tolist(),
                strict=True,
            )
        ]
    )
    batches = []
    for step, cap, sampler, faults, (began, ended), count in zip(
        arrays["steps"].tolist(),
        arrays["caps"].tolist(),
        arrays["samplers"].tolist(),
        arrays["faults"].tolist(),
        arrays["times"].tolist(),
        arrays["batch_prompts"].tolist(),
        strict=True,
    ):
        mine = [next(prompts) for _ in range(count)]
        where: dict[str, int] = dict(zip(SAMPLER, sampler, strict=True))
        batch = Batch(step, cap, where, {place: drawn for place, drawn, _ in mine}, {}, [], faults, began, ended)
        for place, drawn, group in mine:
            for answer in group:
                answer.draft.prompt_ids = drawn.ids
            batch.answers[place] = group
        batches.append(batch)
    return batches


def _draft(
    most: int, tokens: list[int], logp: list[float], spans: list[list[int]], requests: int, done: bool, truncated: bool
) -> Draft:
    written = {"tokens": array("i", tokens), "logp": array("f", logp), "confirmed": len(tokens)}
    return Draft(
        [],
        most,
        (),
        **written,
        spans=[(version, first) for version, first in spans],
        requests=requests,
        ended=done,
        truncated=truncated,
        done=done,
    )


def read(path: Path, *, vocabulary: int) -> Arrays:
    """The arrays of a checkpoint's file. InputError where they are no batches that could have been saved."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
        fault = _fault(arrays, vocabulary)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        fault = first_line(error) or type(error).__name__
    if fault:
        raise InputError(f"{path}: holds no rollouts that can go on ({fault}); choose an older checkpoint")
    return arrays


def _fault(arrays: Mapping[str, np.ndarray], vocabulary: int) -> str:
    """What is wrong with arrays of strangers, in words."""
    empty = to_arrays([])
    for name, like in empty.items():
        if name not in arrays:
            return f"no {name}"
        if (
            arrays[name].dtype != like.dtype
            or arrays[name].shape[1:] != like.shape[1:]
            or arrays[name].ndim != like.ndim
        ):
            return f"{name} is of another kind"
    whole = {name: array for name, array in arrays.items() if array.dtype.kind == "i"}
    if any(array.size and (array.min() < 0 or array.max() >= 2**62) for array in whole.values()):
        return "a number is out of bounds"
    if any(arrays[name].max(initial=0) >= vocabulary for name in ("tokens", "prompt_ids")):
        return "a token is none of the model's"
    for name in (
        "max_tokens",
        "prompt_lengths",
        "word_lengths",
        "lengths",
        "responses",
        "batch_prompts",
        "span_counts",
    ):
        if arrays[name].max(initial=0) >= LARGEST:
            return f"{name} are out of bounds"
    batches, prompts, answers = (len(arrays[name]) for name in ("steps", "places", "max_tokens"))
    sizes = {"caps": batches, "samplers": batches, "faults": batches, "times": batches, "batch_prompts": batches}
    sizes |= dict.fromkeys(("asked", "prompt_lengths", "word_lengths", "responses"), prompts)
    sizes |= dict.fromkeys(("requests", "done", "truncated", "graded", "timed_out", "rewards", "lengths"), answers)
    sizes |= {"span_counts": answers, "places": int(arrays["batch_prompts"].sum())}
    sizes |= {"max_tokens": int(arrays["responses"].sum()), "prompt_ids": int(arrays["prompt_lengths"].sum())}
    sizes |= {"words": int(arrays["word_lengths"].sum()), "spans": int(arrays["span_counts"].sum())}
    sizes |= dict.fromkeys(("tokens", "logp"), int(arrays["lengths"].sum()))
    for name, size in sizes.items():
        if len(arrays[name]) != size:
            return f"{name} has {len(arrays[name])} entries instead of {size}"
    if not np.isfinite(arrays["rewards"]).all() or not np.isfinite(arrays["times"]).all():
        return "a number is not finite"
    if not ((arrays["logp"] <= 1e-4) & (arrays["logp"] > -1e30)).all():
        return "a log-prob is none"
    if (arrays["lengths"] > arrays["max_tokens"]).any() or (arrays["graded"] & ~arrays["done"]).any():
        return "a response is longer than its cap, or graded before its end"
    if (arrays["done"] & (arrays["lengths"] == 0)).any() or (np.diff(arrays["steps"]) != 1).any():
        return "a response is empty, or a step is missing"
    if any(not span for span in _starts(arrays)):
        return "a token is of no weights"
    if any(sorted(places) != list(range(len(places))) for places in _places(arrays)):
        return "a prompt has no place"
    bytes(arrays["words"]).decode()
    return ""


def _places(arrays: Mapping[str, np.ndarray]) -> list[list[int]]:
    ends = np.cumsum(arrays["batch_prompts"]).tolist()
    return [arrays["places"][start:end].tolist() for start, end in pairwise([0, *ends])]


def _starts(arrays: Mapping[str, np.ndarray]) -> list[bool]:
    """Of each response, whether its spans begin with its first token and go up within it."""
    ends = np.cumsum(arrays["span_counts"]).tolist()
    starts = [arrays["spans"][start:end, 1].tolist() for start, end in pairwise([0, *ends])]
    return [
        (not length and not first)
        or (bool(first) and first[0] == 0 and first[-1] < length and all(a < b for a, b in pairwise(first)))
        for first, length in zip(starts, arrays["lengths"].tolist(), strict=True)
    ]
