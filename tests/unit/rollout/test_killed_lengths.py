"""Kills of the trainer do not choose among lengths: what a checkpoint holds of unfinished responses goes on where it
was, so that the distribution of lengths stays what it is without kills."""

import numpy as np
import pytest

from siri.rollout.draft import Draft
from siri.store.shards import write_arrays
from siri.train.batches import Answer, Batch, from_arrays, read, to_arrays
from siri.train.collect import Drawn
from tests.support.sky import Sky, chain

RESPONSES, CAP, MEAN = 400, 400, 40
KILLS = 12
"""Each after 25 more responses are in a checkpoint, and a few more are done that are not."""


def lengths(servers, folder, *, forgetful: bool) -> np.ndarray:
    """Of responses whose trainer is killed again and again. forgetful: checkpoints hold finished ones alone."""
    prompts = {place: Drawn([5 + place % 7, 6, 7], "", 0) for place in range(RESPONSES)}
    answers = {place: [Answer(Draft(prompt.ids, CAP, ()))] for place, prompt in prompts.items()}
    batch = Batch(0, CAP, {"epoch": 0, "cursor": 0, "seed": 0, "size": RESPONSES}, prompts, answers)
    path = folder / "pending.safetensors"
    for life in range(KILLS + 1):
        sky = Sky(servers, folder / str(life))
        sky.sync(0)
        drafts = [answer.draft for answer in batch.everything()]
        for place, draft in enumerate(drafts):
            draft.seed = (7, place)
        left = [draft for draft in drafts if not draft.done]
        sky.flight.add(left, [(0, place) for place in range(len(left))])
        if life == KILLS:
            sky.wait(drafts)
            sky.rollout.close()
            return np.array([len(draft.tokens) for draft in drafts])
        sky.until(lambda sky=sky: len(sky.came) >= 25)
        held = sky.flight.look(batch.copy)
        if forgetful:
            for answer in held.everything():
                if not answer.draft.done:
                    answer.draft.confirmed = 0
                    answer.draft.cut()
        write_arrays(path, to_arrays([held]))
        sky.until(lambda sky=sky: len(sky.came) >= 30)
        sky.rollout.close()  # what has come since is lost
        (batch,) = from_arrays(read(path, vocabulary=96))
    raise AssertionError


@pytest.mark.parametrize("forgetful", [False, True], ids=["kept", "sampled again"])
def test_kills_do_not_move_the_lengths(servers, tmp_path, monkeypatch, forgetful):
    """Every token may be the last with probability 1/40. Sampling unfinished responses from their beginning is what
    would shorten them: with the prefixes left out of the checkpoints the same kills show."""
    monkeypatch.setattr("siri.rollout.flight.CONFIRM_S", 0.1)
    for server in servers:
        server.sampler, server.token_s, server.streamed = chain, 0.002, 4
    drawn = lengths(servers, tmp_path, forgetful=forgetful)
    error = float(np.std(drawn)) / RESPONSES**0.5
    if forgetful:
        assert drawn.mean() < MEAN - 4 * error, "the test cannot fail"
    else:
        assert abs(drawn.mean() - MEAN) < 4 * error, drawn.mean()
