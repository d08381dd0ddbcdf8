"""Sampling ahead with real `vllm serve` processes: weights that change in the middle of responses, faults of servers,
and a trainer that is killed."""

import random
import threading
import time

import pytest
import torch

from siri.errors import InputError
from siri.model.policy import load_policy
from siri.rollout.draft import Draft
from tests.support.killed_ahead import OPTIONS, assert_nothing_lost, survive
from tests.support.processes import finish, start
from tests.vllm.checks import TEMPERATURE, make, step, transformers_logp
from tests.vllm.demo_model import widen
from tests.vllm.server import Server

PATIENCE_S = 240.0
KILLS = 10


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return widen(tmp_path_factory.mktemp("demo") / "model")


@pytest.fixture(scope="module")
def servers(demo, tmp_path_factory):
    """Two `vllm serve` processes of the demo's model, which every test leaves running."""
    logs = tmp_path_factory.mktemp("servers")
    pair = [Server(demo, logs / f"{number}.txt") for number in (0, 1)]
    try:
        for server in pair:
            server.start(wait=False)
        for server in pair:
            server.wait()
        yield pair
    finally:
        for server in pair:
            server.kill()


class Sky:
    """A flight over the servers, and what has come of it."""

    def __init__(self, servers, folder, **settings) -> None:
        settings = {"l_max": 200, "l_min": 100, "rollout_timeout_s": 60.0, **settings}
        urls = tuple(server.url for server in servers)
        self.policy, self.rollout = make(servers[0].model, folder, rollout_servers=urls, **settings)
        self.flight = self.rollout.fly()
        self.more = threading.Condition()
        self.flight.done = self._done

    def _done(self, _: Draft) -> None:
        with self.more:
            self.more.notify_all()

    def sync(self, version: int) -> None:
        self.rollout.sync()
        self.flight.release(version)

    def add(self, count: int, cap: int = 200) -> list[Draft]:
        """Responses that do not end before their cap, or hardly."""
        drafts = [Draft([6 + i % 9, 7, 8, 9], cap, (17, i)) for i in range(count)]
        self.flight.stop_ids = ()
        self.flight.add(drafts, [(0, i) for i in range(count)])
        return drafts

    def until(self, condition) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not self.flight.look(condition):
            self.flight.check()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def wait(self, drafts) -> None:
        self.until(lambda: all(draft.done for draft in drafts))

    def check(self, drafts, policies) -> None:
        """Each token has the log-prob of the weights that its span names. policies: by version."""
        for draft in drafts:
            assert len(draft.tokens) == len(draft.logp) == draft.max_tokens and draft.truncated
            answer, begun = draft.tokens.tolist(), 0
            for version, tokens in draft.versions():
                true = transformers_logp(policies[version], draft.prompt_ids, answer, TEMPERATURE)
                here = slice(begun, begun + tokens)
                torch.testing.assert_close(torch.tensor(draft.logp.tolist())[here], true[here], atol=1e-3, rtol=0)
                begun += tokens
            assert begun == len(answer)


@pytest.fixture
def sky(servers, tmp_path):
    made = Sky(servers, tmp_path)
    yield made
    made.rollout.close()


def copied(policy):
    """The policy as it is now."""
    other = load_policy(policy.model.config.name_or_path, torch.device("cpu"))
    other.model.load_state_dict(policy.model.state_dict())
    return other


def test_weights_change_in_the_middle_of_responses(sky):
    sky.sync(0)
    old = copied(sky.policy)
    drafts = sky.add(48)  # several times as many as there are places: some are under way, however slow the sync
    sky.until(lambda: sum(len(draft.tokens) for draft in drafts) > 100)
    step(sky.policy)
    sky.sync(1)
    assert sky.rollout.metrics()["fingerprint_gap_max"] < 1e-3
    sky.wait(drafts)
    mixed = [draft for draft in drafts if len(draft.versions()) == 2]
    assert mixed, "all had ended before the sync"
    sky.check(drafts, {0: old, 1: sky.policy})


def test_an_evaluation_is_of_exact_weights_while_responses_are_written(sky):
    from siri.rollout import Request

    sky.sync(0)
    drafts = sky.add(24)
    sky.until(lambda: any(draft.tokens for draft in drafts))
    (group,) = sky.rollout.generate([Request([6, 7, 8], 20, 4)], temperature=TEMPERATURE, seed=3)
    for completion in group:
        true = transformers_logp(sky.policy, [6, 7, 8], list(completion.token_ids), TEMPERATURE)
        torch.testing.assert_close(torch.tensor(completion.logp), true, atol=1e-3, rtol=0)
    sky.wait(drafts)


def test_a_server_that_is_killed_and_one_that_comes_back_under_its_address(sky, servers):
    """Its prefixes go on at the other one; back, it holds the weights of the files, is found out and given them."""
    sky.sync(0)
    step(sky.policy)
    sky.sync(1)
    drafts = sky.add(24)
    sky.until(lambda: sum(draft.confirmed for draft in drafts) > 60)
    kept = sky.flight.look(lambda: {draft: draft.tokens[: draft.confirmed].tolist() for draft in drafts})
    servers[0].kill()
    threading.Thread(target=servers[0].start, kwargs={"wait": False}, daemon=True).start()
    sky.wait(drafts)
    assert all(draft.tokens[: len(tokens)].tolist() == tokens for draft, tokens in kept.items())
    sky.check(drafts, {1: sky.policy})
    servers[0].wait()
    sky.until(lambda: not any(server.fault for server in sky.flight.servers))
    more = sky.add(48)
    sky.until(lambda: any(server.url == servers[0].url for _, server in sky.flight.running.values()))
    sky.wait(more)
    sky.check(more, {1: sky.policy})


def test_one_that_hangs_through_a_sync_is_back_with_old_weights(servers, tmp_path):
    sky = Sky(servers, tmp_path, rollout_timeout_s=6.0)
    sky.sync(0)
    old = copied(sky.policy)
    drafts = sky.add(16)
    sky.until(lambda: sum(draft.confirmed for draft in drafts) > 30)
    servers[1].freeze()
    try:
        step(sky.policy)
        sky.sync(1)
    finally:
        servers[1].thaw()
    more = sky.add(24)
    sky.wait([*drafts, *more])
    sky.check([*drafts, *more], {0: old, 1: sky.policy})
    sky.until(lambda: not any(server.fault for server in sky.flight.servers))
    sky.rollout.close()


def test_one_that_is_ten_times_slower_hands_over(sky, servers, monkeypatch):
    monkeypatch.setattr("siri.rollout.balance.BALANCE_S", 2.0)
    sky.sync(0)
    over = threading.Event()

    def slow_down() -> None:
        while not over.is_set():
            servers[0].freeze()
            over.wait(0.9)
            servers[0].thaw()
            over.wait(0.1)

    thread = threading.Thread(target=slow_down)
    thread.start()
    try:
        drafts = sky.add(12)
        sky.wait(drafts)
    finally:
        over.set()
        thread.join()
    sky.check(drafts, {0: sky.policy})


def test_a_sync_that_breaks_off_in_the_middle(sky, servers):
    """The server dies once the files are there: the sync goes on without it, and so do its responses."""
    sky.sync(0)
    old = copied(sky.policy)
    drafts = sky.add(12)
    sky.until(lambda: any(draft.tokens for draft in drafts))
    real = sky.rollout.backend.load

    def killing(weights, version):
        servers[1].kill()
        real(weights, version)

    sky.rollout.backend.load = killing
    step(sky.policy)
    sky.sync(1)
    threading.Thread(target=servers[1].start, kwargs={"wait": False}, daemon=True).start()
    sky.wait(drafts)
    sky.check(drafts, {0: old, 1: sky.policy})
    servers[1].wait()
    sky.until(lambda: not any(server.fault for server in sky.flight.servers))


def test_a_trainer_that_is_killed_loses_nothing(servers, demo, tmp_path):
    """kill -9 ten times at random moments; the servers live on, and may be left paused."""
    seed = time.time_ns() % 10**6
    print(f"seed {seed}")
    model = ["--model", str(demo)]
    assert finish(start(tmp_path / "calm", [*OPTIONS, *model, "--rollout", "local"])) == 0
    options = [*OPTIONS, *model, "--staleness", "2", "--rollout-servers", *(server.url for server in servers)]
    policy = load_policy(str(demo), torch.device("cpu"))
    kills, storms, draw = 0, 0, random.Random(seed)
    while kills < KILLS:
        run = tmp_path / f"run-{storms}"
        storms += 1
        assert storms <= KILLS, "runs end before they are killed"
        moments, kept = survive(run, options, KILLS - kills, draw)
        kills += len(moments)
        assert_nothing_lost(run, tmp_path / "calm", kept, policy)


def test_a_server_without_pause_is_refused(servers, tmp_path, monkeypatch):
    monkeypatch.setattr("siri.rollout.served.PAUSED", "/no_such_route")
    with pytest.raises(InputError, match=r"has no /no_such_route; start it with VLLM_SERVER_DEV_MODE=1"):
        Sky(servers, tmp_path)
