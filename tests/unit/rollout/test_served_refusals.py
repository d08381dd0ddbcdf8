"""Servers that are refused before the first rollout: other settings, other models, other programs."""

import socket
import threading
from types import SimpleNamespace

import pytest

from siri.errors import InputError
from siri.rollout.address import version_of
from siri.rollout.served import LAUNCH, REQUIRED
from tests.support.fake_server import FakeServer
from tests.support.served import engine
from tests.support.tiny import tiny_policy


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
    wanted = r"its tie_word_embeddings is False, the trainer's True; .*--hf-overrides '{\"tie_word_embeddings\": true}'"
    with pytest.raises(InputError, match=wanted):
        engine(servers, tmp_path, policy=tiny_policy(tie_word_embeddings=True))
    with pytest.raises(InputError, match="rollout_sync is nccl, which needs a trainer on GPUs"):
        engine(servers, tmp_path, sync="nccl")
    with pytest.raises(InputError, match="name a folder they see with --rollout-sync-dir"):
        engine(servers, tmp_path, sync_dir=None)
    with pytest.raises(InputError) as error:
        engine([SimpleNamespace(url="http://127.0.0.1:9")], tmp_path)
    assert str(error.value).startswith("rollout server http://127.0.0.1:9: no connection") and LAUNCH in str(
        error.value
    )


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
