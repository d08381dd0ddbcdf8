"""Graded groups of responses: what they are, how they travel between ranks, and what a row of metrics.jsonl says of
them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np

from siri.rollout import Completion
from siri.runtime.ranks import Arrays
from siri.text import encoded
from siri.train.dynamics import FIGURES


@dataclass(frozen=True, slots=True)
class Group:
    """The G responses to one prompt."""

    prompt_ids: list[int]
    completions: list[Completion]
    scores: list[float]
    """What the reward function said of each response, and the cap where it cut one (`siri.rewards.shaping`)."""
    rewards: list[float]
    """Scores after penalties and rewards for length: what the advantages are made of."""
    timeouts: int = 0
    errors: int = 0
    undecided: int = 0
    """Answers whose grading timed out, failed, or came to no decision within bounds; all score 0."""
    trained: bool = True
    """False for a group that dynamic sampling dropped."""
    wording: tuple[tuple[float, ...], ...] | None = None
    """What `Dynamics.of` says of each response, on the rank that sampled it."""
    timed_out: tuple[int, ...] = ()
    """Which responses could not be graded in time, by their place: they count for nothing in the update."""
    texts: tuple[str, ...] = ()
    """The responses as text, where they are kept."""
    answer: str = ""
    """The gold answer, beside the texts."""
    uncut: tuple[int, ...] = ()
    """Tokens of each response as it was sampled, where an outlier was cut; empty = as they are."""
    weights: tuple[int, ...] = ()
    """After how many steps the oldest weights were made that sampled some of each response; empty = the step's."""

    @property
    def graded(self) -> list[bool]:
        """For each response, whether its scores say something of it."""
        return [place not in self.timed_out for place in range(len(self.completions))]

    @property
    def sampled_lengths(self) -> Sequence[int]:
        """Tokens of each response as it was sampled."""
        return self.uncut or [len(completion.token_ids) for completion in self.completions]

    def graded_scores(self) -> list[float]:
        return [score for score, graded in zip(self.scores, self.graded, strict=True) if graded]


def scores_and_lengths(groups: Sequence[Group]) -> list[tuple[list[float], list[int]]]:
    """Scores and sampled lengths of the graded responses of each group: what targets and schedules learn from."""
    return [
        (group.graded_scores(), [n for n, graded in zip(group.sampled_lengths, group.graded, strict=True) if graded])
        for group in groups
    ]


def to_arrays(groups: Sequence[Group]) -> Arrays:
    """Groups as flat arrays, to travel between ranks: ids and lengths int32, log-probs fp32, scores fp64."""
    answers = [completion for group in groups for completion in group.completions]
    words = [encoded(text) for group in groups for text in (group.answer, *group.texts)]

    def flat(lists: Iterable[Any], dtype: type) -> np.ndarray:
        return np.concatenate([np.empty(0, dtype), *(np.asarray(items, dtype) for items in lists)])

    return {
        "prompt_lengths": np.array([len(group.prompt_ids) for group in groups], np.int32),
        "prompt_ids": flat((group.prompt_ids for group in groups), np.int32),
        "responses": np.array([len(group.completions) for group in groups], np.int32),
        "response_lengths": np.array([len(answer.token_ids) for answer in answers], np.int32),
        "response_ids": flat((answer.token_ids for answer in answers), np.int32),
        "logp": flat((answer.logp for answer in answers), np.float32),
        "truncated": np.array([answer.truncated for answer in answers], bool),
        "scores": flat((group.scores for group in groups), np.float64),
        "rewards": flat((group.rewards for group in groups), np.float64),
        "faults": np.array([(group.timeouts, group.errors, group.undecided) for group in groups], np.int32).reshape(
            -1, 3
        ),
        "trained": np.array([group.trained for group in groups], bool),
        "graded": flat((group.graded for group in groups), bool),
        "wording": np.array([figures for group in groups for figures in group.wording or ()], np.float64).reshape(
            -1, len(FIGURES)
        ),
        "texts": np.array([len(group.texts) for group in groups], np.int32),
        "word_lengths": np.array([len(word) for word in words], np.int64),
        "words": np.frombuffer(b"".join(words), np.uint8),
        "cut": np.array([bool(group.uncut) for group in groups], bool),
        "uncut": flat((group.uncut or [0] * len(group.completions) for group in groups), np.int32),
        "weighed": np.array([bool(group.weights) for group in groups], bool),
        "weights": flat((group.weights or [0] * len(group.completions) for group in groups), np.int64),
    }


def from_arrays(arrays: Arrays) -> list[Group]:
    """The groups that `to_arrays` was given."""

    def pieces(name: str, lengths: np.ndarray) -> list[np.ndarray]:
        return np.split(arrays[name], np.cumsum(lengths)[:-1]) if len(lengths) else []

    def cut(name: str, lengths: np.ndarray) -> list[list[Any]]:
        return [piece.tolist() for piece in pieces(name, lengths)]

    lengths, responses = arrays["response_lengths"], arrays["responses"]
    # the tokens, which are many, stay what they are: views of what arrived
    columns = zip(pieces("response_ids", lengths), pieces("logp", lengths), arrays["truncated"].tolist(), strict=True)
    # there for all groups, or for none
    wording = cut("wording", responses) if len(arrays["wording"]) else [None] * len(responses)
    answers = iter([Completion(*fields) for fields in columns])
    said, ends = arrays["words"].tobytes(), np.cumsum(arrays["word_lengths"]).tolist()
    words = iter([said[start:end].decode() for start, end in pairwise([0, *ends])])
    return [
        Group(
            prompt_ids,
            list(islice(answers, len(scores))),
            scores,
            rewards,
            timeouts,
            errors,
            undecided,
            trained,
            wording=None if figures is None else tuple(map(tuple, figures)),
            timed_out=tuple(place for place, known in enumerate(graded) if not known),
            answer=next(words),
            texts=tuple(islice(words, texts)),
            uncut=tuple(uncut) if cut_here else (),
            weights=tuple(weights) if weighed else (),
        )
        for (
            prompt_ids,
            scores,
            rewards,
            (timeouts, errors, undecided),
            trained,
            graded,
            cut_here,
            uncut,
            weighed,
            weights,
            figures,
            texts,
        ) in zip(
            cut("prompt_ids", arrays["prompt_lengths"]),
            cut("scores", responses),
            cut("rewards", responses),
            arrays["faults"].tolist(),
            arrays["trained"].tolist(),
            cut("graded", responses),
            arrays["cut"].tolist(),
            cut("uncut", responses),
            arrays["weighed"].tolist(),
            cut("weights", responses),
            wording,
            arrays["texts"].tolist(),
            strict=True,
        )
    ]


def rollout_metrics(groups: Sequence[Group]) -> dict[str, Any]:
    """What a rollout batch looked like; every sampled response counts, dropped groups included."""
    completions = [completion for group in groups for completion in group.completions]
    right = [score >= 1 for group in groups for score in group.scores]
    lengths = np.array([length for group in groups for length in group.sampled_lengths])
    alike = [len(set(group.scores)) == 1 for group in groups]
    return {
        "reward_mean": float(np.mean([reward for group in groups for reward in group.rewards])),
        "accuracy": float(np.mean(right)),
        "response_tokens": int(lengths.sum()),
        "response_tokens_mean": float(lengths.mean()),
        "response_tokens_max": int(lengths.max()),
        "tokens_right_mean": float(lengths[right].mean()) if any(right) else math.nan,
        "tokens_wrong_mean": float(lengths[np.logical_not(right)].mean()) if not all(right) else math.nan,
        "truncation_rate": float(np.mean([completion.truncated for completion in completions])),
        "zero_variance_groups": float(np.mean(alike)),
        "responses": len(completions),
        "groups_dropped": sum(not group.trained for group in groups),
        "reward_timeouts": sum(group.timeouts for group in groups),
        "reward_errors": sum(group.errors for group in groups),
        "reward_undecided": sum(group.undecided for group in groups),
    }
