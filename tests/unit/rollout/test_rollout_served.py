"""The served mode against a stand-in for `vllm serve` that fails on demand: nothing is lost, nothing is done twice, and
nothing comes from other weights than the trainer's."""

import os
import signal
import threading
import time
from dataclasses import replace

import pytest

from siri.errors import InputError
from siri.rollout import Completion
from siri.rollout.dispatch import TRIES
from siri.rollout.proof import ANSWER_TOKENS
from siri.rollout.vllm import Job
from siri.runtime.ranks import Ranks
from siri.runtime.signals import Interrupted, Stop
from tests.support.served import again, engine, requests, tokens
from tests.support.tiny import tiny_policy


def test_both_servers_sample_from_the_trainers_weights(synced, servers, undisturbed):
    assert [len(group) for group in undisturbed] == [4] * 6
    assert tokens(again(synced)) == tokens(undisturbed)
    assert all(server.served for server in servers) and sum(server.served for server in servers) == 24
    assert {server.weights for server in servers} == {synced.backend.version} and all(s.resets for s in servers)
    assert synced.metrics()["rollout_servers_used"] == 2


def test_sampling_is_plain(synced, servers):
    """Everything that could bias the log-probs is switched off in each request, whatever the server's defaults are."""
    again(synced)
    asked = [body for server in servers for body in server.asked]
    assert {body["max_tokens"] for body in asked} == {request.max_tokens for request in requests()}
    assert len({body["seed"] for body in asked}) == 24
    plain = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "temperature": 0.8, "logprobs": 0}
    plain |= {"presence_penalty": 0.0, "frequency_penalty": 0.0, "ignore_eos": True, "stop_token_ids": [2]}
    assert all(body.items() >= plain.items() for body in asked)


@pytest.mark.parametrize("fault", ["500", "cut", "short", "abort", "html", "reset"])
def test_a_failed_response_is_sampled_again_as_it_would_have_been(synced, servers, undisturbed, fault):
    servers[0].faults.extend([fault, "", fault])
    assert tokens(again(synced)) == tokens(undisturbed)
    assert synced.metrics()["rollout_retries"] >= 2


def test_a_response_that_always_fails_is_an_error(synced, servers):
    for server in servers:
        server.faults.extend(["500"] * 100)
    with pytest.raises(InputError, match=rf"failed {TRIES} times, the last time with: .*HTTP 500: 'out of memory'"):
        again(synced)


def test_a_refused_request_is_an_error_at_once(synced, servers):
    servers[0].faults.append("400")
    with pytest.raises(InputError, match=r"refuses /v1/completions: HTTP 400: .*no such field"):
        again(synced)


def test_the_wrong_model_answers(synced, servers):
    servers[1].faults.append("other model")
    with pytest.raises(InputError, match="answered as 'another' instead of 'tiny'"):
        again(synced)


def test_one_server_dies_and_the_other_takes_over(synced, servers, undisturbed):
    servers[0].faults.extend(["", "die"])
    assert tokens(again(synced)) == tokens(undisturbed)
    assert synced.metrics()["rollout_servers_used"] == 1
    servers[0].start()
    synced.sync()  # the next sync finds it again
    assert synced.metrics()["rollout_servers_used"] == 2
    assert tokens(again(synced)) == tokens(undisturbed)


def test_all_servers_die(synced, servers):
    synced.backend.options = replace(synced.backend.options, timeout_s=3.0)
    for server in servers:
        server.faults.append("die")
    began = time.monotonic()
    with pytest.raises(InputError, match=r"no rollout server is left \(http.*no connection.*start them again"):
        again(synced)
    assert time.monotonic() - began < 60


def test_a_hang_is_noticed_within_the_time_out(synced, servers, undisturbed):
    synced.backend.options = replace(synced.backend.options, timeout_s=3.0)
    servers[0].faults.extend(["hang"] * 8)
    began = time.monotonic()
    assert tokens(again(synced)) == tokens(undisturbed)
    assert 3 < time.monotonic() - began < 50, "the server would be silent for a minute"
    assert any("no new token for 3 s" in reason for reason in synced.backend.retries)


def test_a_restarted_server_is_given_the_weights_again(synced, servers, undisturbed):
    loads = servers[0].loads
    servers[0].faults.extend(["", "restart"])
    assert tokens(again(synced)) == tokens(undisturbed)
    again(synced)
    assert servers[0].loads == loads + 1 and servers[0].weights == synced.backend.version


def test_what_an_unnoticed_restart_sampled_is_thrown_away(synced, servers, undisturbed):
    """Between two responses, so that no connection broke: only the weights' version tells."""
    fresh = tiny_policy(seed=99)
    real, sampled = servers[0]._by_the_model, []

    def restarted(body):
        if len(sampled) == 3 and servers[0].weights:
            servers[0].weights = None
            servers[0].policy.model.load_state_dict(fresh.model.state_dict())
        sampled.append(body)
        return real(body)

    servers[0]._by_the_model = restarted
    assert tokens(again(synced)) == tokens(undisturbed)
    assert sum(server.served for server in servers) > 24
    assert any("restarted in the middle" in reason for reason in synced.backend.retries)


def test_so_is_what_it_sampled_before_another_rank_gave_it_the_weights_again(synced, servers, undisturbed):
    """The version is right by the end of the batch: only the process's name tells."""
    good, fresh = servers[0].policy.model.state_dict(), tiny_policy(seed=99).model.state_dict()
    good = {name: tensor.clone() for name, tensor in good.items()}
    real, sampled = servers[0]._by_the_model, []

    def restarted(body):
        if len(sampled) == 3:
            servers[0].processes += 1
            servers[0].policy.model.load_state_dict(fresh)
        elif len(sampled) == 6:
            servers[0].policy.model.load_state_dict(good)
        sampled.append(body)
        return real(body)

    servers[0]._by_the_model = restarted
    assert tokens(again(synced)) == tokens(undisturbed)
    assert sum(server.served for server in servers) > 24
    assert any("restarted in the middle" in reason for reason in synced.backend.retries)


def test_longest_first_and_never_more_than_the_cache_holds(servers, tmp_path):
    rollout = engine(servers[:1], tmp_path)
    rollout.sync()
    servers[0].asked.clear()
    servers[0].most_running = 0
    asked = requests(4, 3)
    rollout.lengths.record(rollout.lengths.row([request.prompt_ids for request in asked], [3.0, 9.0, 5.0, 11.0]))
    rollout.backend.cache_tokens = 40  # three or four sequences of a prompt of 3 and 7 tokens on average
    rollout.generate(asked, temperature=0.8, seed=1)
    first = [body["prompt"][0] for body in servers[0].asked]
    assert first == [8] * 3 + [6] * 3 + [7] * 3 + [5] * 3
    assert servers[0].most_running == 4
    figures = rollout.metrics()
    assert figures["rollout_in_flight"] == 4 and 0 <= figures["rollout_idle_time_share"] < 1


def test_a_fingerprint_is_always_whole(synced, servers):
    """Probes must not end early, or an engine that ends every response at once would prove nothing."""
    synced.sync()
    probes = [body for body in servers[0].asked if body["max_tokens"] == ANSWER_TOKENS and not body["stop_token_ids"]]
    assert {body["temperature"] for body in probes} == {0.0, 0.8} and len(probes) == 4


def test_a_signal_breaks_a_rollout_off_and_leaves_nothing_behind(synced, servers, undisturbed):
    for server in servers:
        server.faults.extend(["hang"] * 4)
    with Stop() as stop:
        threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(Interrupted):
            stop.heed(lambda: again(synced))
    for server in servers:
        server.faults.clear()
    assert tokens(again(synced)) == tokens(undisturbed)


def test_what_fails_on_one_rank_is_everybodys(synced, monkeypatch):
    """Else the other ranks would wait for it in the next collective."""
    fault = InputError("the server of another rank is gone")
    monkeypatch.setattr(Ranks, "gather", lambda _ranks, mine: [mine, fault])
    with pytest.raises(InputError, match="of another rank is gone"):
        again(synced)


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"token_ids": [5] * 13, "logp": [-1.0] * 13}, "13 tokens under a cap of 12"),
        ({"token_ids": [5, 2, 5], "logp": [-1.0] * 3}, "3 tokens under a cap of 12"),
        ({"token_ids": [5, 2], "logp": [-1.0]}, "1 log-probs"),
        ({"token_ids": [5, 2], "logp": [-1.0, 0.5]}, "cannot be"),
        ({"token_ids": [5, 2], "logp": [-1.0, float("nan")]}, "cannot be"),
        ({"token_ids": [5, 5], "logp": [-1.0] * 2, "truncated": True}, "2 tokens under a cap of 12"),
        ({"token_ids": [], "logp": []}, "0 tokens"),
    ],
)
def test_a_response_that_the_loss_could_not_use_is_refused(synced, change, shown):
    job = Job([1], 12, 0, (2,))
    synced._check(job, Completion([5, 2], [-1.0, -0.5], False))
    with pytest.raises(InputError, match=f"a response that cannot be.*{shown}" if shown != "cannot be" else shown):
        synced._check(job, Completion(**{"truncated": False, **change}))


def test_servers_tell_of_each_response_as_it_ends(synced):
    told = []
    answers = synced.generate(
        requests(), temperature=0.8, seed=3, done=lambda number, completion: told.append((number, completion))
    )
    assert len(told) == 24
    assert all(any(completion is each for each in answers[number]) for number, completion in told)
