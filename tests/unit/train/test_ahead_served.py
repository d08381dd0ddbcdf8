"""A whole run that samples ahead on stand-in servers: order, caps, staleness, a signal, another engine."""

import os
import signal
import threading
import time

import pytest
import torch

from siri.model.policy import load_policy
from siri.rollout.flight import Flight
from siri.store import checkpoint
from siri.train.batches import from_arrays, read
from siri.train.grading import Grading
from tests.support.fake_server import FakeServer
from tests.support.killed_ahead import trained
from tests.support.training import rows, train

score = Grading.score
COMMON = [
    "--steps",
    "5",
    "--prompts-per-step",
    "2",
    "--group-size",
    "4",
    "--mini-batch-prompts",
    "1",
    "--eval-problems",
    "4",
]
COMMON += ["--importance", "tis", "--save-every", "1", "--keep-checkpoints", "9", "--quiet"]


@pytest.fixture
def served():
    running = [FakeServer(load_policy("siri:demo/model", torch.device("cpu"))) for _ in range(2)]
    yield running
    for server in running:
        server.stop()


def ahead(servers) -> list[str]:
    return [*COMMON, "--staleness", "2", "--rollout-servers", *(server.url for server in servers)]


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in_turn") / "run"
    train(folder, *COMMON, "--rollout", "local")
    return folder


def test_a_run_in_order_under_its_caps(served, tmp_path, in_turn):
    for server in served:
        server.token_s = 0.005
    train(tmp_path / "run", *ahead(served))
    metrics = rows(tmp_path / "run")
    assert [trained(tmp_path / "run", step)[0] for step in range(5)] == [trained(in_turn, step)[0] for step in range(5)]
    for row_ahead, row_in_turn in zip(metrics, rows(in_turn), strict=True):
        assert (
            row_ahead["cap"] == row_in_turn["cap"]
            and row_ahead["response_tokens_max"] <= row_ahead["cap"]
            and row_ahead["responses"] == 8
        )
        assert (
            0 <= row_ahead["staleness_mean"] <= row_ahead["staleness_max"] <= 2
            and row_ahead["fingerprint_gap_max"] < 1e-3
        )
        assert (
            0 <= row_ahead["rollout_idle_time_share"] <= 1
            and row_ahead["rollout_began_time"] <= row_ahead["rollout_ended_time"]
        )
    assert any(row["stale_tokens_share"] > 0 for row in metrics), "nothing was sampled ahead"
    assert [row["batches_in_flight"] for row in metrics] == [3, 3, 2, 1, 0] or metrics[0]["batches_in_flight"] >= 2
    assert not any(server.paused for server in served)


def test_a_signal_saves_what_is_in_flight_and_it_goes_on(served, tmp_path, in_turn, monkeypatch):
    run = tmp_path / "run"
    for server in served:
        server.token_s = 0.05
    flights, add = [], Flight.add
    monkeypatch.setattr(Flight, "add", lambda flight, *given: flights.append(flight) or add(flight, *given))

    def begun() -> bool:
        return any(draft.confirmed and not draft.ended for draft in flights[-1]._order)

    def act() -> None:
        """After the first step, and some tokens of the next ones that a checkpoint may hold."""
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and not ((run / "metrics.jsonl").exists() and flights[-1].look(begun)):
            time.sleep(0.02)
        for server in served:
            server.token_s = 5.0  # what is begun does not end before the checkpoint, however long that takes
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=act, daemon=True).start()
    train(run, *ahead(served), expect=75)
    source, _ = checkpoint.newest_good(run / "checkpoints")
    assert source is not None
    batches = from_arrays(read(source / checkpoint.PENDING, vocabulary=10**6))
    drafts = {(batch.step, place, number): answer.draft
              for batch in batches for place, answers in batch.answers.items()
              for number, answer in enumerate(answers)}  # fmt: skip
    assert any(draft.tokens and not draft.done for draft in drafts.values()), "no response was begun"
    for server in served:
        server.token_s = 0.0
    graded = sum(answer.graded for batch in batches for answer in batch.everything())
    left, scored = 8 * (5 - len(rows(run))) - graded, []
    monkeypatch.setattr(Grading, "score", lambda *given: scored.extend(given[1]) or score(*given))
    train(run, *ahead(served), "--resume")
    assert len(scored) == left, "each is graded once, and what was is not graded again"
    policy = served[0].policy
    for step in range(5):
        prompts, texts = trained(run, step)
        assert prompts == trained(in_turn, step)[0]
        for (place, number), text in texts.items():
            draft = drafts.get((step, place, number))
            if draft is not None:
                said = policy.decode(draft.tokens.tolist())
                kept = text == said if draft.done else text.startswith(said)
                assert kept, (step, place, number, said, text, draft)


def test_what_servers_have_begun_the_embedded_engine_ends(served, tmp_path, in_turn, capsys):
    """Resumed with k = 0 and without servers: everything that is in flight is trained as it was drawn."""
    run = tmp_path / "run"
    train(run, *ahead(served), "--train-tokens", "1")
    assert len(rows(run)) == 1
    loud = [option for option in COMMON if option != "--quiet"]
    train(run, *loud, "--train-tokens", "0", "--resume")
    assert "staleness was 2 and is 0" in capsys.readouterr().out
    assert [trained(run, step)[0] for step in range(5)] == [trained(in_turn, step)[0] for step in range(5)]
