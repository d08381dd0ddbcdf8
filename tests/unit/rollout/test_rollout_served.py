"""The served mode against a stand-in for `vllm serve` that fails on demand: nothing is lost, nothing is done twice, and
nothing comes from other weights than the trainer's."""

import os
import signal
import socket
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from siri.errors import InputError
from siri.rollout import Completion, Request
from siri.rollout.dispatch import TRIES
from siri.rollout.fleet import ServedEngine
from siri.rollout.order import ExpectedLengths
from siri.rollout.proof import ANSWER_TOKENS
from siri.rollout.served import LAUNCH, REQUIRED, version_of
from siri.rollout.vllm import Job, VllmOptions, VllmRollout, weights
from siri.runtime.ranks import Ranks
from siri.runtime.signals import Interrupted, Stop
from tests.support.fake_server import FakeServer
from tests.support.tiny import tiny_policy


@pytest.fixture
def servers():
    running = [FakeServer(), FakeServer()]
    yield running
    for server in running:
        server.stop()


def options(servers, folder, **changes) -> VllmOptions:
    base = VllmOptions(
        model="tiny",
        context=128,
        sequences=8,
        memory=0.5,
        servers=tuple(server.url for server in servers),
        sync="auto",
        sync_dir=folder / "weights",
        timeout_s=1.5,
        sync_timeout_s=5.0,
    )
    return replace(base, **changes)


def engine(servers, folder, policy=None, **changes) -> VllmRollout:
    policy = policy or tiny_policy()
    backend = ServedEngine(options(servers, folder, **changes), policy)
    return VllmRollout(policy, backend, temperature=0.8, lengths=ExpectedLengths())


def requests(count: int = 6, n: int = 4) -> list[Request]:
    return [Request([5 + i, 6, 7], 12 + i, n) for i in range(count)]


def tokens(answers) -> list[list[list[int]]]:
    return [[one.token_ids for one in group] for group in answers]


@pytest.fixture
def synced(servers, tmp_path):
    rollout = engine(servers, tmp_path)
    rollout.sync()
    for server in servers:
        server.asked.clear()
        server.served = 0
    return rollout


@pytest.fixture
def undisturbed(synced, servers):
    """What the requests give without faults."""
    answers = synced.generate(requests(), temperature=0.8, seed=3)
    for server in servers:
        server.asked.clear()
        server.served = 0
    return answers


def again(rollout):
    return rollout.generate(requests(), temperature=0.8, seed=3)


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
    for server in servers:
        server.faults.append("die")
    began = time.monotonic()
    with pytest.raises(InputError, match=r"no rollout server is left \(http.*no connection.*start them again"):
        again(synced)
    assert time.monotonic() - began < 60


def test_a_hang_is_noticed_within_the_time_out(synced, servers, undisturbed):
    servers[0].faults.extend(["hang"] * 8)
    began = time.monotonic()
    assert tokens(again(synced)) == tokens(undisturbed)
    assert 1.5 < time.monotonic() - began < 50, "the server would be silent for a minute"
    assert any("no new token for 1.5 s" in reason for reason in synced.backend.retries)


def test_a_restarted_server_is_given_the_weights_again(synced, servers, undisturbed):
    loads = servers[0].loads
    servers[0].faults.extend(["", "restart"])
    assert tokens(again(synced)) == tokens(undisturbed)
    again(synced)
    assert servers[0].loads == loads + 1 and servers[0].weights == synced.backend.version


def test_what_an_unnoticed_restart_sampled_is_thrown_away(synced, servers, undisturbed):
    """Between two responses, so that no connection broke: only the weights' version tells."""
    fresh = tiny_policy(seed=99)
    real = servers[0]._answer

    async def restarted(request, body, fault):
        if servers[0].served == 3 and servers[0].weights:
            servers[0].weights = None
            servers[0].policy.model.load_state_dict(fresh.model.state_dict())
        return await real(request, body, fault)

    servers[0]._answer = restarted
    assert tokens(again(synced)) == tokens(undisturbed)
    assert sum(server.served for server in servers) > 24
    assert any("restarted in the middle" in reason for reason in synced.backend.retries)


def test_a_sync_that_is_interrupted_is_tried_again(synced, servers, undisturbed):
    servers[1].load_faults.append("crash")
    synced.sync()
    assert synced.metrics()["rollout_servers_used"] == 2
    servers[1].load_faults.extend(["crash", "crash"])
    synced.sync()
    assert synced.metrics()["rollout_servers_used"] == 1, "it is left out, it may hold half of the weights"
    assert tokens(again(synced)) == tokens(undisturbed)
    for server in servers:
        server.load_faults.extend(["crash"] * 2)
    with pytest.raises(InputError, match=r"reached no rollout server: .*weight sync interrupted"):
        synced.sync()


def test_a_stale_server_is_found_out(synced, servers):
    with torch.no_grad():
        synced.policy.model.lm_head.weight.add_(torch.randn_like(synced.policy.model.lm_head.weight) * 0.1)
    servers[1].load_faults.append("stale")
    with pytest.raises(InputError, match=rf"server {servers[1].url} does not sample from the trainer's weights"):
        synced.sync()


def test_a_damaged_tensor_is_named(synced, servers):
    servers[1].load_faults.append("wrong")
    with pytest.raises(InputError, match=rf"{servers[1].url} does not hold what was sent: model.norm.weight"):
        synced.sync()


def test_weights_that_cannot_be_written(servers, tmp_path):
    (tmp_path / "weights").write_text("a file where the folder should be")
    with pytest.raises(InputError, match="weights cannot be written there"):
        engine(servers, tmp_path).sync()


@pytest.mark.parametrize(("path", "allowed", "remedy"), REQUIRED, ids=[path for path, *_ in REQUIRED])
def test_a_server_that_would_bias_the_loss_is_refused(servers, tmp_path, path, allowed, remedy):
    wrong = {"model_config.logprobs_mode": "raw_logprobs", "model_config.generation_config": "auto"}
    at = servers[1].config
    *parents, last = path.split(".")
    for key in parents:
        at = at[key]
    at[last] = wrong.get(path, {"something": 2})
    with pytest.raises(InputError, match=rf"{servers[1].url}: {path} is .*; {remedy}"):
        engine(servers, tmp_path)


def test_other_reasons_to_refuse_a_server(servers, tmp_path):
    servers[0].version_string = "0.20.1"
    with pytest.raises(InputError, match=r"vLLM 0.20.1 http.* is not among the versions"):
        engine(servers, tmp_path)
    servers[0].version_string = "0.33.1"
    with pytest.raises(InputError, match="holds 512 tokens, but the longest prompt and cap make 600; start it with"):
        engine(servers, tmp_path, context=600)
    with pytest.raises(InputError, match="serves another model: its num_hidden_layers is 2, the trainer's 3"):
        engine(servers, tmp_path, policy=tiny_policy(num_hidden_layers=3))
    with pytest.raises(InputError, match="rollout_sync is nccl, which needs a trainer on GPUs"):
        engine(servers, tmp_path, sync="nccl")
    with pytest.raises(InputError, match="name a folder they see with --rollout-sync-dir"):
        engine(servers, tmp_path, sync_dir=None)
    with pytest.raises(InputError) as error:
        engine([SimpleNamespace(url="http://127.0.0.1:9")], tmp_path)
    assert str(error.value).startswith("rollout server http://127.0.0.1:9: no connection") and LAUNCH in str(
        error.value
    )


def test_longest_first_and_never_more_than_the_cache_holds(servers, tmp_path):
    rollout = engine(servers[:1], tmp_path)
    rollout.sync()
    servers[0].asked.clear()
    servers[0].most_running = 0
    asked = requests(4, 3)
    rollout.lengths.record(rollout.lengths.row([one.prompt_ids for one in asked], [3.0, 9.0, 5.0, 11.0]))
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
    theirs = InputError("the server of another rank is gone")
    monkeypatch.setattr(synced, "ranks", SimpleNamespace(gather=lambda own: [own, theirs], main=True))
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


def test_a_server_whose_cache_was_not_cleared_is_not_used(synced, servers, undisturbed):
    """Keys and values of the old weights would bias what it samples, although the new ones are in place."""
    servers[1].reset_faults.extend(["busy"] * 2)
    synced.sync()
    assert synced.metrics()["rollout_servers_used"] == 1
    resets, loads = servers[1].resets, servers[1].loads
    assert servers[1].weights is None, "weights without a name are given again"
    assert tokens(again(synced)) == tokens(undisturbed)
    for _ in range(50):  # it may come back only after the others have finished
        if servers[1].weights:
            break
        again(synced)
    assert servers[1].resets > resets and servers[1].loads > loads


def test_a_rank_that_did_not_write_the_files_can_give_them(synced, servers, undisturbed, tmp_path):
    """Any rank may be the one that finds a restarted server."""
    first = synced.backend
    backend = ServedEngine(options(servers, tmp_path), synced.policy, ranks=Ranks(rank=1, size=1))
    backend.load(weights(synced.policy, torch.float32), first.version)
    assert (backend.files.folder, backend.files.sums) == (first.files.folder, first.files.sums)
    servers[0].faults.extend(["", "restart"])
    loads = servers[0].loads
    other = VllmRollout(synced.policy, backend, temperature=0.8, lengths=ExpectedLengths())
    assert tokens(again(other)) == tokens(undisturbed)
    again(other)
    assert servers[0].loads == loads + 1 and servers[0].weights == first.version


def test_what_a_killed_run_left_behind_goes_at_the_first_sync(servers, tmp_path):
    (tmp_path / "weights" / "sync-7-dead").mkdir(parents=True)
    rollout = engine(servers, tmp_path)
    rollout.sync()
    assert [one.name for one in (tmp_path / "weights").iterdir()] == [rollout.backend.version]
    real = rollout.policy.model.named_parameters

    def broken():
        yield next(iter(real()))
        raise RuntimeError("lost on the way")

    rollout.policy.model.named_parameters = broken
    with pytest.raises(InputError, match="lost on the way"):
        rollout.sync()
    assert len(list((tmp_path / "weights").iterdir())) == 1, "half of a sync was left behind"
    rollout.close()
    assert not (tmp_path / "weights").exists()
    deep = engine(servers, tmp_path, sync_dir=tmp_path / "figures.json.weights" / "rollout-weights")
    deep.sync()
    deep.close()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_servers_do_not_see(servers, tmp_path):
    rollout = engine(servers, tmp_path)
    servers[0].siri_load = lambda folder: {"unseen": True}
    with pytest.raises(
        InputError, match=rf"{servers[0].url} does not see .*sync-1.*; name a folder .*--rollout-sync-dir"
    ):
        rollout.sync()


def test_a_stranger_at_the_address(servers, tmp_path):
    """Any other web server, two models, or one without figures to tell a hang by: one clear line each."""
    from aiohttp import web

    async def two(_):
        return web.json_response({"data": [{"id": "a"}, {"id": "b"}]})

    async def none(_):
        return web.Response(text="")

    for place, handler, message in (
        ("_info", two, "vllm_config is None, no object"),
        ("_models", two, "the models that it serves is .*, no list of at most 1"),
        ("_metrics", none, "does not count its tokens; start it without --disable-log-stats"),
    ):
        odd = FakeServer.__new__(FakeServer)
        setattr(odd, place, handler)
        odd.__init__()
        try:
            with pytest.raises(InputError, match=message):
                engine([odd], tmp_path)
        finally:
            odd.stop()


def test_the_version_at_an_address_that_is_no_web_server():
    """A dry run asks for it; it must not end in a traceback."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def greet():
            connection, _ = listening.accept()
            connection.recv(100)
            connection.sendall(b"SSH-2.0-hello\r\n")
            connection.close()

        threading.Thread(target=greet, daemon=True).start()
        assert version_of(f"http://127.0.0.1:{listening.getsockname()[1]}") is None
    assert version_of("http://127.0.0.1:99999") is None


def test_a_failed_sync_still_goes_through_all_tensors(synced, monkeypatch):
    """Gathering a tensor takes every rank: one that stopped at the first would leave the others waiting."""
    seen = []

    def counted(policy, dtype):
        for name, tensor in weights(policy, dtype):
            seen.append(name)
            yield name, tensor

    def load(stream, version):
        next(stream)
        raise RuntimeError("the engine fell over")

    monkeypatch.setattr("siri.rollout.vllm.weights", counted)
    monkeypatch.setattr(synced.backend, "load", load)
    with pytest.raises(InputError, match=r"weight sync-2-.* failed: the engine fell over"):
        synced.sync()
    assert seen == [name for name, _ in synced.policy.model.named_parameters()]
