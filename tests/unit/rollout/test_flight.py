"""Responses that are written while the trainer trains, against stand-ins for `vllm serve`: they go on where they were
broken off, under the weights of then, and what breaks them off does not choose among lengths."""

import asyncio
import time

import numpy as np
import pytest
import torch

from siri.errors import InputError
from siri.rollout.dispatch import TRIES, ServerLost
from siri.rollout.draft import Draft
from tests.support.sky import STOP, Sky, check_whole, mean_length, scored
from tests.support.tiny import tiny_policy


@pytest.fixture
def sky(servers, tmp_path):
    made = Sky(servers, tmp_path)
    yield made
    made.rollout.close()


def test_all_come_from_the_weights_that_were_synced(sky, servers):
    sky.sync(3)
    assert sky.flight.figures()["rollout_servers_used"] == 2, "those that a sync has just left are not lost"
    drafts = sky.add()
    sky.wait(drafts)
    check_whole(drafts)
    assert {version for draft in drafts for version, _ in draft.versions()} == {3}
    assert all(server.served for server in servers) and len(sky.came) == len(set(sky.came)) == 12
    for draft in drafts:
        np.testing.assert_allclose(draft.logp, scored(sky.rollout.policy, draft), atol=1e-4)
    figures = sky.flight.figures()
    assert 0 <= figures["rollout_idle_time_share"] < 1 and figures["rollout_retries"] == 0


def test_nothing_is_asked_for_before_the_weights_are_proved(sky, servers):
    sky.add()
    time.sleep(0.3)
    assert not any(server.asked for server in servers)
    sky.rollout.sync()
    asked = sum(len(server.asked) for server in servers)
    time.sleep(0.3)
    assert sum(len(server.asked) for server in servers) == asked, "but for the fingerprints"


def test_weights_change_in_the_middle_of_responses(sky, servers):
    """A sync ends none of them; each token has the log-prob of the weights that its span names."""
    for server in servers:
        server.token_s = 0.02
    sky.sync(0)
    before = tiny_policy()
    drafts = sky.add(6, cap=60)
    sky.until(lambda: sum(len(draft.tokens) for draft in drafts) > 30)
    with torch.no_grad():
        for parameter in sky.rollout.policy.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    kept = {}
    for server in servers:
        server.token_s = 0.3  # no response ends before the servers are paused, however long that takes

    def resume() -> None:
        kept.update({draft: draft.tokens.tolist() for draft in drafts})
        for server in servers:
            server.token_s = 0.0
        real()

    real, sky.rollout.backend.resume = sky.rollout.backend.resume, resume
    sky.sync(1)
    assert any(kept.values())
    sky.wait(drafts)
    check_whole(drafts)
    mixed = [draft for draft in drafts if len(draft.versions()) == 2]
    assert mixed, "every response ended before the sync"
    for draft in drafts:
        assert draft.tokens.tolist()[: len(kept[draft])] == kept[draft], "sampled again"
        old, new = scored(before, draft).numpy(), scored(sky.rollout.policy, draft).numpy()
        start = 0
        for version, tokens in draft.versions():
            here = slice(start, start + tokens)
            np.testing.assert_allclose(np.array(draft.logp)[here], (new if version else old)[here], atol=1e-4)
            start += tokens
    assert all(server.pauses == 2 for server in servers) and not any(server.paused for server in servers)


def test_a_lost_servers_responses_go_on_elsewhere(sky, servers):
    for server in servers:
        server.token_s = 0.2
    sky.sync(0)
    drafts = sky.add(8, cap=60)
    sky.until(lambda: sum(draft.confirmed for draft in drafts) > 40)
    kept = sky.flight.look(lambda: {draft: draft.tokens[: draft.confirmed].tolist() for draft in drafts})
    servers[0].stop()
    sky.wait(drafts)
    check_whole(drafts)
    assert all(draft.tokens.tolist()[: len(tokens)] == tokens for draft, tokens in kept.items())
    assert any(draft.requests > 1 for draft in drafts) and sky.flight.figures()["rollout_servers_used"] == 1
    read = lambda: (sky.flight._room_s, sky.flight._since)  # noqa: E731 counted until that moment, whenever it is read
    (room, began), _, (more, ended) = sky.flight.look(read), time.sleep(0.2), sky.flight.look(read)
    places = (more - room) / (ended - began)
    assert places == pytest.approx(sky.flight._share()), "those of a lost server are no idle ones"


@pytest.mark.parametrize("fault", ["500", "cut", "reset", "die", "restart"])
def test_faults_cost_no_response(sky, servers, fault):
    sky.sync(0)
    servers[0].faults.extend(["", fault])
    drafts = sky.add()
    sky.wait(drafts)
    check_whole(drafts)
    assert len(sky.came) == 12 and sky.flight.figures()["rollout_retries"] >= 1


def test_responses_that_end_at_the_moment_their_server_is_lost(sky, servers, monkeypatch):
    """Nobody can confirm them any more, so they are written again elsewhere."""
    flight, stream, taken = sky.flight, sky.flight.engine.stream, []

    async def at_once(session, server, job, temperature, extend):
        if taken and server is not taken[0][0]:
            return await stream(session, server, job, temperature, extend)
        taken.append((server, job))
        while len(taken) < sum(owner is server for _, owner in flight.running.values()):
            await asyncio.sleep(0)
        if job is taken[0][1]:
            await asyncio.to_thread(servers[flight.servers.index(server)].stop)  # it does not come back
            together.set()
            raise ServerLost("no connection")
        await together.wait()
        extend([5] * job.max_tokens, [-1.0] * job.max_tokens)
        return "length"

    together = asyncio.Event()
    monkeypatch.setattr(flight.engine, "stream", at_once)
    sky.sync(0)
    drafts = sky.add()
    sky.wait(drafts)
    check_whole(drafts)
    assert len(taken) > 1 and len(sky.came) == 12 and {server for server, _ in taken} == {taken[0][0]}


@pytest.mark.parametrize("last", [5, STOP])
def test_a_response_whose_last_token_came_and_whose_end_did_not(sky, servers, monkeypatch, last):
    """Confirmed as it is, nothing of it is left to ask for."""
    flight, stream, whole = sky.flight, sky.flight.engine.stream, []

    async def broken(session, server, job, temperature, extend):
        if whole:
            return await stream(session, server, job, temperature, extend)
        (draft,) = [draft for draft, _ in flight.running.values() if draft.job(()).prompt_ids == job.prompt_ids]
        whole.append(draft)
        extend([5] * (job.max_tokens - 1) + [last], [-1.0] * job.max_tokens)
        while draft.confirmed < len(draft.tokens):
            await asyncio.sleep(0.01)
        raise ServerLost("no connection")

    monkeypatch.setattr(flight.engine, "stream", broken)
    sky.sync(0)
    drafts = sky.add(7)
    sky.wait(drafts)
    check_whole(drafts)
    assert len(sky.came) == 7 and whole[0].requests == 1 and whole[0].truncated == (last != STOP)


def test_what_an_unnoticed_restart_sampled_does_not_count(sky, servers):
    """Its connections hold and its weights are others: from the last token that was confirmed all is sampled again."""
    fresh = tiny_policy(seed=99)
    real = servers[0]._sampled

    def restarted(body):
        if servers[0].weights and servers[0].served >= 2:
            servers[0].weights = None
            servers[0].policy.model.load_state_dict(fresh.model.state_dict())
        return real(body)

    sky.sync(0)
    servers[0].sampler, servers[0]._sampled = None, restarted
    drafts = sky.add(24)
    sky.wait(drafts)
    check_whole(drafts)
    for draft in drafts:
        np.testing.assert_allclose(draft.logp, scored(sky.rollout.policy, draft), atol=1e-4)
    assert servers[0].weights == sky.rollout.backend.version, "it was given the weights again"


def test_a_server_that_slept_through_a_sync_gets_the_weights(sky, servers):
    """It answers nothing for a while, and is back under its address with old weights."""
    sky.sync(0)
    real, servers[0]._pause = servers[0]._pause, None
    servers[0].stop()
    with torch.no_grad():
        sky.rollout.policy.model.lm_head.weight.add_(0.1)
    sky.sync(1)
    old = servers[0].weights
    servers[0]._pause = real
    servers[0].start()
    assert old != sky.rollout.backend.version
    drafts = sky.add(40)
    sky.until(lambda: servers[0].weights == sky.rollout.backend.version)
    sky.wait(drafts)
    for draft in drafts:
        np.testing.assert_allclose(draft.logp, scored(sky.rollout.policy, draft), atol=1e-4)


@pytest.mark.parametrize("moment", ["while they are written", "once they are written"])
def test_a_server_that_is_back_before_the_next_weights_count_gets_those_of_before(sky, servers, monkeypatch, moment):
    """Files of two syncs are there at once: those that it is given are the ones that it is said to hold."""
    monkeypatch.setattr("siri.rollout.flight.CONFIRM_S", 0.1)
    for server in servers:
        server.token_s = 0.02
    sky.sync(0)
    before, held, real = tiny_policy(), sky.rollout.backend.version, sky.rollout.backend.offer
    drafts = sky.add(24, cap=60)
    sky.until(lambda: any(len(draft.tokens) for draft in drafts))

    def restart() -> None:
        servers[1].token_s = 0.5  # so that it leaves something for the one that comes back
        servers[0].weights, servers[0].processes = None, servers[0].processes + 1
        made = servers[0].made
        sky.until(lambda: servers[0].weights == held and servers[0].made > made + 20)
        servers[1].token_s = 0.02

    def offer(weights, version):
        def written():
            for number, item in enumerate(weights):
                yield item
                if not number and moment.startswith("while"):
                    restart()

        real(written(), version)
        if moment.startswith("once"):
            restart()

    sky.rollout.backend.offer = offer
    with torch.no_grad():
        sky.rollout.policy.model.lm_head.weight.add_(0.1)
    sky.sync(1)
    sky.wait(drafts)
    check_whole(drafts)
    for draft in drafts:
        old, new = scored(before, draft).numpy(), scored(sky.rollout.policy, draft).numpy()
        versions = np.repeat(*np.array(draft.versions()).T)
        np.testing.assert_allclose(draft.logp, np.where(versions, new, old), atol=1e-4)


def test_a_sync_that_breaks_off_on_one_server(sky, servers):
    for server in servers:
        server.token_s = 0.01
    sky.sync(0)
    drafts = sky.add(8, cap=40)
    sky.until(lambda: any(len(draft.tokens) for draft in drafts))
    servers[1].load_faults.extend(["crash", "crash"])
    sky.sync(1)
    sky.wait(drafts)
    check_whole(drafts)
    assert {version for draft in drafts for version, _ in draft.versions()} <= {0, 1}


def test_a_sync_does_not_wait_for_a_request_that_met_a_paused_server(servers, tmp_path, monkeypatch):
    """It has no token yet, and would have none before the sync is over."""
    monkeypatch.setattr("siri.rollout.flight.SETTLE_S", 3600.0)
    sky = Sky(servers, tmp_path, timeout_s=3600.0)
    for server in servers:
        server.token_s = 0.5
    flight, stream, late = sky.flight, sky.flight.engine.stream, []

    async def on_its_way(session, server, job, temperature, extend):
        if not late:
            late.append(job)
            while not servers[flight.servers.index(server)].paused:
                await asyncio.sleep(0.005)
        return await stream(session, server, job, temperature, extend)

    monkeypatch.setattr(flight.engine, "stream", on_its_way)
    sky.sync(0)
    drafts = sky.add()
    sky.until(lambda: sum(bool(draft.tokens) for draft in drafts) > 3)
    began = time.monotonic()
    sky.sync(1)
    assert time.monotonic() - began < 60
    for server in servers:
        server.token_s = 0.0
    sky.wait(drafts)
    check_whole(drafts)
    assert late and any(draft.versions()[0][0] == 1 for draft in drafts)
    sky.rollout.close()


def test_a_server_that_hangs_is_noticed(servers, tmp_path):
    sky = Sky(servers, tmp_path)
    sky.sync(0, timeout_s=3.0)
    servers[0].faults.extend(["hang"] * 8)
    drafts = sky.add(12)
    sky.wait(drafts)
    check_whole(drafts)
    assert sky.rollout.metrics()
    sky.rollout.close()


def test_no_server_left_ends_it_in_one_line(servers, tmp_path):
    sky = Sky(servers, tmp_path)
    sky.sync(0, timeout_s=2.0)
    drafts = sky.add(4)
    for server in servers:
        server.stop()
    with pytest.raises(InputError, match=r"no rollout server is left \(http.*start them again and use --resume"):
        sky.wait([*drafts, *sky.add(4, step=1)])
    assert sky.flight.look(lambda: 1) == 1, "what there is can still be saved"
    sky.rollout.close()


@pytest.mark.parametrize("route", ["/is_paused", "/pause", "/resume"])
def test_a_server_that_cannot_be_paused_is_one_line(servers, tmp_path, route):
    """Told before anything is sampled, and the other server is not left paused."""
    servers[1].stop()
    servers[1].missing = {route}
    servers[1].start()
    with pytest.raises(InputError, match=rf"rollout server http.* has no {route}; start it with ") as error:
        sky = Sky(servers, tmp_path)
        try:
            sky.sync(0)
        finally:
            sky.rollout.close()
    assert "\n" not in str(error.value) and not servers[0].paused and not servers[0].made


def test_a_response_that_always_fails_is_an_error(sky, servers):
    sky.sync(0)
    for server in servers:
        server.faults.extend(["500"] * 100)
    with pytest.raises(InputError, match=rf"failed {TRIES} times, the last time with: .*out of memory"):
        sky.wait(sky.add(4))


def test_steps_come_in_order(servers, tmp_path):
    """The earliest step first, whenever it was added."""
    sky = Sky(servers[:1], tmp_path)
    sky.rollout.backend.cache_tokens = 40
    late, early = sky.add(6, step=5), sky.add(6, step=4)
    sky.sync(0)
    sky.wait([*late, *early])
    assert set(sky.came[:5]) <= set(early)
    sky.rollout.close()


def test_servers_without_work_stand_idle_but_for_evaluations(sky):
    """A trainer that is too slow for its servers has to show: they wait with nothing to write."""
    sky.sync(0)
    sky.wait(sky.add())
    sky.flight.figures()
    time.sleep(0.2)
    assert sky.flight.figures()["rollout_idle_time_share"] == 1.0
    sky.rollout.backend.answers = True
    time.sleep(0.2)
    sky.flight.figures()
    time.sleep(0.2)
    assert "rollout_idle_time_share" not in sky.flight.figures(), "they answer an evaluation"


# --- lengths ---


@pytest.mark.parametrize("forgetful", [False, True], ids=["kept", "sampled again"])
def test_lost_servers_do_not_move_the_lengths(servers, tmp_path, monkeypatch, forgetful):
    """The mean is 40. Sampling what was lost from its beginning, as others do, is what would shorten it: with the
    prefixes thrown away the same losses show."""
    monkeypatch.setattr("siri.rollout.flight.CONFIRM_S", 0.1)
    if forgetful:
        real = Draft.cut

        def forget(draft: Draft) -> None:
            draft.confirmed = 0
            real(draft)

        monkeypatch.setattr(Draft, "cut", forget)
    sky = Sky(servers, tmp_path)

    def lose() -> None:
        for task in sky.flight.running:
            task.cancel()

    mean, error = mean_length(sky, servers, lose)
    if forgetful:
        assert mean < 40 - 4 * error, "the test cannot fail"
    else:
        assert abs(mean - 40) < 4 * error, mean
    sky.rollout.close()
