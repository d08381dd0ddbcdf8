"""An engine with a flight over stand-in servers, and what is asked of its responses."""

import random
import threading
import time
from dataclasses import replace

import numpy as np
import torch

from siri.rollout.draft import Draft
from tests.support.served import engine

STOP = 2
PATIENCE_S = 300.0


class Sky:
    """An engine with a flight over stand-in servers, and what has come of it."""

    def __init__(self, servers, folder, **changes) -> None:
        self.rollout = engine(servers, folder, **changes)
        self.flight = self.rollout.fly()
        self.came: list[Draft] = []
        self.more = threading.Condition()
        self.flight.done = self._done

    def _done(self, draft: Draft) -> None:
        with self.more:
            self.came.append(draft)
            self.more.notify_all()

    def sync(self, version: int, *, timeout_s: float = 0.0) -> None:
        """timeout_s: from then on, where it is given; the sync itself has all the time that it needs."""
        self.rollout.sync()
        if timeout_s:
            self.rollout.backend.options = replace(self.rollout.backend.options, timeout_s=timeout_s)
        self.flight.release(version)

    def add(self, count: int = 12, cap: int = 30, step: int = 0) -> list[Draft]:
        drafts = [Draft([5 + i % 7, 6, 7], cap, (step, i)) for i in range(count)]
        self.flight.add(drafts, [(step, i) for i in range(count)])
        return drafts

    def wait(self, drafts) -> None:
        deadline = time.monotonic() + PATIENCE_S
        with self.more:
            while not all(draft.done for draft in drafts):
                self.flight.check()
                assert time.monotonic() < deadline, [len(draft.tokens) for draft in drafts if not draft.done]
                self.more.wait(0.1)

    def until(self, condition) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not self.flight.look(condition):
            self.flight.check()
            assert time.monotonic() < deadline
            time.sleep(0.02)


def scored(policy, draft: Draft) -> torch.Tensor:
    """Log-probs of a draft's tokens by a plain forward pass, at the temperature of the tests."""
    from siri.model.attention import PackedLayout

    ids = torch.tensor([[*draft.prompt_ids, *draft.tokens]])
    with torch.no_grad():
        logits = policy.model(input_ids=ids, layout=PackedLayout.of([ids.shape[1]])).logits[0]
    logp = torch.log_softmax(logits[len(draft.prompt_ids) - 1 : -1].float() / 0.8, -1)
    return logp.gather(1, torch.tensor(draft.tokens.tolist())[:, None])[:, 0]


def check_whole(drafts) -> None:
    for draft in drafts:
        assert draft.done and len(draft.tokens) == len(draft.logp) <= draft.max_tokens
        assert draft.truncated == (draft.tokens[-1] != STOP) and STOP not in draft.tokens[:-1]
        assert not draft.truncated or len(draft.tokens) == draft.max_tokens
        assert sum(tokens for _, tokens in draft.versions()) == len(draft.tokens)


def chain(body) -> tuple[list[int], list[float], str]:
    """Tokens of a language in which every token may be the last with probability 1/40: geometric lengths, whatever came
    before."""
    draw = random.Random(body["seed"])
    tokens = []
    while len(tokens) < body["max_tokens"]:
        tokens.append(STOP if draw.random() < 1 / 40 else 5)
        if tokens[-1] == STOP:
            return tokens, [-1.0] * len(tokens), "stop"
    return tokens, [-1.0] * len(tokens), "length"


def mean_length(sky, servers, disturb) -> tuple[float, float]:
    """Mean and its standard error of the lengths of 400 responses, of which all that are written at a time are broken
    off whenever 25 more are done."""
    for server in servers:
        server.sampler, server.token_s, server.streamed = chain, 0.002, 4
    sky.sync(0)
    drafts = sky.add(400, cap=400)
    for done in range(25, 400, 25):
        sky.until(lambda done=done: len(sky.came) >= done)
        sky.flight.look(disturb)
    sky.wait(drafts)
    lengths = [len(draft.tokens) for draft in drafts]
    return float(np.mean(lengths)), float(np.std(lengths) / len(lengths) ** 0.5)
