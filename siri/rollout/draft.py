"""A response on its way: what is sampled of it so far, and under which weights each token was."""

from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from siri.errors import InputError
from siri.rollout import Completion
from siri.rollout.vllm import Job


@dataclass(eq=False, slots=True)
class Draft:
    """One response that several requests may write, one after the other: each goes on from the tokens before.

    Where one is broken off (a sync, a lost server, a checkpoint) depends on time and not on the tokens that would have
    followed, so what is drawn from there on is a sample as good as theirs: lengths keep their distribution.
    """

    prompt_ids: list[int]
    max_tokens: int
    seed: tuple[int, ...]
    """Entropy of this response's own random numbers; each request adds its number."""
    tokens: array = field(default_factory=partial(array, "i"))
    """int32,"""
    logp: array = field(default_factory=partial(array, "f"))
    """fp32, of each token under the weights that sampled it, nats."""
    spans: list[tuple[int, int]] = field(default_factory=list)
    """(weights, first token): after how many steps the weights were made, from which token on."""
    requests: int = 0
    """How many have written it."""
    asked: int = 0
    """Tokens that were there when the last of them was sent."""
    confirmed: int = 0
    """Tokens from the beginning that are known to come from the weights that `spans` names."""
    ended: bool = False
    """Its last token is the end-of-sequence token, or the last that the cap allows."""
    truncated: bool = False
    done: bool = False
    """Ended, and all of it confirmed."""

    def job(self, stop_ids: tuple[int, ...]) -> Job:
        """The next request: what is left of it, after the tokens that are there."""
        entropy = self.seed if not self.requests else (*self.seed, self.requests)
        seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint32)[0])
        return Job([*self.prompt_ids, *self.tokens], self.max_tokens - len(self.tokens), seed, stop_ids)

    def begin(self, version: int) -> None:
        """A request is sent to weights of this version."""
        self.requests += 1
        self.asked = len(self.tokens)
        if self.spans and self.spans[-1][1] == len(self.tokens):
            self.spans.pop()  # the one before has sampled nothing
        if not self.spans or self.spans[-1][0] != version:
            self.spans.append((version, len(self.tokens)))

    def extend(self, tokens: Sequence[int], logp: Sequence[float]) -> None:
        self.tokens.extend(tokens)
        self.logp.extend(logp)

    def end(self, *, truncated: bool) -> None:
        self.ended, self.truncated = True, truncated

    def whole(self, stop_ids: Collection[int]) -> bool:
        """Whether its last token is there, said to be the last or not."""
        return bool(self.tokens) and (self.tokens[-1] in stop_ids or len(self.tokens) == self.max_tokens)

    def close(self, stop_ids: Collection[int]) -> None:
        """After a request that broke off: it may have given the last token, and not have come to say that it did."""
        if self.whole(stop_ids):
            self.end(truncated=self.tokens[-1] not in stop_ids)
            self.confirm(self.confirmed)

    def confirm(self, tokens: int | None = None) -> None:
        """The first `tokens` tokens, all by default, are those that they say they are."""
        self.confirmed = max(self.confirmed, len(self.tokens) if tokens is None else tokens)
        self.done = self.ended and self.confirmed == len(self.tokens)

    def cut(self) -> None:
        """Take back what is not confirmed; it is sampled again from there."""
        del self.tokens[self.confirmed :], self.logp[self.confirmed :]
        self.spans = [span for span in self.spans if span[1] < self.confirmed]
        self.ended = self.truncated = self.done = False

    def fill(self, completion: Completion, version: int) -> None:
        """The rest, from an engine that answers as a whole."""
        self.begin(version)
        self.extend(np.asarray(completion.token_ids).tolist(), np.asarray(completion.logp).tolist())
        self.end(truncated=completion.truncated)
        self.confirm()

    def copy(self) -> "Draft":
        """What is confirmed of it; later tokens do not show. What is done is itself: it changes no more."""
        if self.done:
            return self
        kept = replace(self, tokens=self.tokens[:], logp=self.logp[:], spans=self.spans[:])
        kept.cut()
        return kept

    def completion(self) -> Completion:
        assert self.done
        return Completion(np.array(self.tokens, np.int32), np.array(self.logp, np.float32), self.truncated)

    def versions(self) -> list[tuple[int, int]]:
        """(weights, tokens that they sampled), in order."""
        ends = [start for _, start in self.spans[1:]] + [len(self.tokens)]
        return [(version, end - start) for (version, start), end in zip(self.spans, ends, strict=True)]

    def check(self, stop_ids: tuple[int, ...]) -> None:
        """InputError for what is no beginning of a response: a setting of the server must override what was asked
        for."""
        inside = self.tokens[:-1] if self.ended and not self.truncated else self.tokens
        if (
            len(self.tokens) > self.max_tokens
            or any(token in stop_ids for token in inside)
            or (self.ended and self.truncated != (self.tokens[-1] not in stop_ids))
            or (self.ended and self.truncated and len(self.tokens) < self.max_tokens)
        ):
            how = "cut" if self.truncated else "ended" if self.ended else "not ended"
            raise InputError(
                f"vLLM gave a response that cannot be: {len(self.tokens)} tokens under a cap of {self.max_tokens}, "
                f"{how} at token {self.tokens[-1:].tolist()}; a setting of the server must override what was asked for"
            )
