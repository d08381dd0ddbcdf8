"""Servers that answer what no vLLM would, and workers whose frames are none: each is read as what it should be, or
refused in one line, and never ends in a traceback. `hostile.jsonl` holds what once did, or might."""

import asyncio
import gzip
import json
import random
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiohttp import web

from siri.config import Config
from siri.errors import InputError
from siri.rewards.worker import read_message
from siri.rollout import Completion, address, answers, guard
from siri.rollout.address import version_of
from siri.rollout.checksums import differing
from siri.rollout.dispatch import BadAnswer
from siri.rollout.vllm import Job
from siri.rollout.worker import checksum
from tests.support.fake_server import FakeServer
from tests.support.hostile import damaged, mutated
from tests.support.tiny import tiny_policy
from tests.unit.rollout.test_rollout_served import engine, requests

JOB, VOCABULARY = Job([5, 6], 4, 0, (2,)), 100
SENT = {"a.weight": checksum(tiny_policy().model.lm_head.weight)}
WEIGHTS = {"damaged": [], "sums": {"a.weight": [SENT["a.weight"]]}, "fused": {"qkv": ["q", "k", "v"]}}
GOOD = {
    "completion": {
        "model": "tiny",
        "choices": [{"token_ids": [7, 2], "logprobs": {"token_logprobs": [-1.5, 0]}, "finish_reason": "stop"}],
        "usage": {"completion_tokens": 2},
    },
    "results": {"results": [json.dumps(WEIGHTS), json.dumps({"unseen": True})]},
    "about": [{"model": {"vocab_size": 9}, "dtype": "bfloat16", "cache_tokens": 4096}],
    "version": ["sync-1", "sync-1"],
    "weights": [WEIGHTS],
    "started": {"error": "", "layers": ["memory", "seccomp", "audit"]},
    "graded": {"error": "", "reward": 1.0, "undecided": False, "retire": False},
}


def read(kind: str, body: bytes) -> None:
    """Read a body as the trainer would, and check whatever was believed."""
    if kind in ("started", "graded"):
        message = read_message(body, first=kind == "started")
        if message is not None and kind == "graded" and not message["error"]:
            assert type(message["reward"]) is float and abs(message["reward"]) < float("inf")
        return
    value = answers.parsed(body, kind)
    if kind == "completion":
        model, completion = answers.read_completion(value, JOB, vocabulary=VOCABULARY)
        assert type(model) is str and 0 < len(completion.token_ids) == len(completion.logp) <= JOB.max_tokens
        assert all(type(token) is int and 0 <= token < VOCABULARY for token in completion.token_ids)
        assert all(type(logp) is float and -1e30 <= logp <= 1e-4 for logp in completion.logp)
    elif kind == "results":
        assert len(answers.read_results(value, "siri_load", workers=2)) == 2
    elif kind == "about":
        model, dtype, room = answers.read_about(answers.array(value, kind, most=9) or [None])
        assert type(model) is dict and dtype in answers.DTYPES and room > 0
    elif kind == "version":
        assert type(answers.read_version(answers.array(value, kind, most=9))) in (str, type(None))
    else:
        held = answers.read_held(answers.array(value, kind, most=9))
        if held and not any("unseen" in worker for worker in held):
            differing(SENT, held)


def tried(kind: str, body: bytes) -> str:
    try:
        read(kind, body)
    except BadAnswer as refusal:
        assert len(str(refusal)) < 400 and str(refusal).isprintable()
        return "refused"
    return "read"


CORPUS = [json.loads(line) for line in Path(__file__).with_name("hostile.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", CORPUS, ids=[f"{case['kind']} {number}" for number, case in enumerate(CORPUS)])
def test_what_is_known(case):
    body = case["body"].encode() * case.get("times", 1)
    if case["kind"] in ("started", "graded"):
        assert (read_message(body, first=case["kind"] == "started") is None) == (case["outcome"] == "refused")
    assert tried(case["kind"], body) == (case["outcome"] if case["kind"] not in ("started", "graded") else "read")


@pytest.mark.torture
@pytest.mark.parametrize("kind", GOOD)
def test_mutated_answers(kind, long, fault):
    """Half of the mutants have a changed structure, half changed bytes; the good one is read."""
    read(kind, json.dumps(GOOD[kind]).encode())
    seed = time.time_ns() % 10**6
    draw, count = random.Random(seed), long(1500, 100_000)
    outcomes = {"read": 0, "refused": 0}
    for number in range(count):
        value = mutated(draw, GOOD[kind], draw.randint(1, 3)) if number % 2 else GOOD[kind]
        body = json.dumps(value).encode(errors="surrogatepass")
        body = body if number % 2 else damaged(draw, body)
        try:
            outcomes[tried(kind, body)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, {kind}: {body[:500]!r}") from error
    fault(f"hostile {kind}", f"{count:,} (seed {seed})", f"{outcomes['refused']:,} refused, the others sound")


def test_figures_of_tokens():
    line = 'vllm:generation_tokens_total{{engine="0"}} {}\n'.format
    assert answers.read_tokens_made(line("12.0") + line("3e2")) == 312
    assert answers.read_tokens_made("nothing") is None
    for figure in ("nan", "inf", "1e999", "abc", "1" * 5000):
        with pytest.raises(BadAnswer, match="it has sampled"):
            answers.read_tokens_made(line(figure))


# --- over HTTP ---


@contextmanager
def answering(status: int = 200, body: bytes = b"{}", headers: dict | None = None):
    """A server that gives one answer to everything, and counts."""
    asked: list[str] = []
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    async def answer(request):
        asked.append(request.path)
        return web.Response(status=status, body=body, headers=headers)

    async def begin():
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, site._server.sockets[0].getsockname()[1]

    runner, port = asyncio.run_coroutine_threadsafe(begin(), loop).result(10)
    try:
        yield f"http://127.0.0.1:{port}", asked
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)


class At:
    def __init__(self, url: str) -> None:
        self.url = url


def test_no_redirect_is_followed(tmp_path):
    """It would carry the secret, and the run, to wherever the server likes."""
    with answering(body=b'{"version": "0.32.0"}') as (elsewhere, asked):
        for status in (301, 302, 307, 308):
            with answering(status, headers={"Location": f"{elsewhere}/version"}) as (url, _):
                assert version_of(url) is None
                with pytest.raises(InputError, match=rf"HTTP {status}: it sends elsewhere"):
                    engine([At(url)], tmp_path)
        assert not asked


def test_bodies_have_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr("siri.rollout.served.MOST_BYTES", 10**5)
    bomb = gzip.compress(b"[" * 10**7)
    for body, headers, message in (
        (b" " * 10**6, {}, "its answer has more than"),
        (bomb, {"Content-Encoding": "gzip"}, "it compresses its answers, for which it was not asked"),
    ):
        with answering(body=body, headers=headers) as (url, _):
            with pytest.raises(InputError, match=message):
                engine([At(url)], tmp_path)
            assert version_of(url) is None


@pytest.mark.parametrize(
    "version", ['{"version": 3}', '{"version": "\\u001b[2J"}', "[]", "[" * 10**5, '{"version": "not a version"}']
)
def test_odd_versions(tmp_path, version):
    with answering(body=version.encode()) as (url, _), pytest.raises(InputError) as told:
        engine([At(url)], tmp_path)
    assert str(told.value).isprintable()


def spoilt(change):
    """A server whose completions, from the third on, are changed."""
    server = FakeServer()
    real = server._answer

    async def answer(request, body, fault):
        response = await real(request, body, fault)
        if server.served > 2:
            said = json.loads(response.text)
            change(said, said["choices"][0])
            response = web.Response(text=json.dumps(said), content_type="application/json")
        return response

    server._answer = answer
    return server


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda said, choice: choice["logprobs"].update(token_logprobs=[None] * 99), "log-probs is .*, no list"),
        (lambda said, choice: choice["logprobs"]["token_logprobs"].__setitem__(0, None), "a log-prob is None"),
        (lambda said, choice: choice["token_ids"].__setitem__(0, 10**9), "a token is 1000000000, no whole number"),
        (lambda said, choice: choice["token_ids"].__setitem__(0, True), "a token is True, no whole number"),
        (lambda said, choice: choice["logprobs"]["token_logprobs"].__setitem__(0, float("nan")), "a log-prob is nan"),
        (lambda said, choice: said.update(model=["tiny"]), r"the model is \['tiny'\], no text"),
    ],
)
def test_an_answer_that_the_loss_could_not_use_is_asked_for_again(tmp_path, change, message):
    """Until it has failed as often as any other failure may."""
    server = spoilt(change)
    try:
        rollout = engine([server], tmp_path)
        server.served = -100  # what a sync asks
        rollout.sync()
        server.served = 0
        with pytest.raises(InputError, match=rf"failed 4 times, the last time with: .*{message}"):
            rollout.generate(requests(3, 2), temperature=0.8, seed=1)
    finally:
        server.stop()


# --- the lock ---


def asked_of_guard(monkeypatch, headers, kind="http", secret="hush"):
    monkeypatch.setenv(guard.SECRET, secret)
    sent, reached = [], []

    async def app(scope, receive, send):
        reached.append(scope["type"])

    async def send(message):
        sent.append(message)

    asyncio.run(guard.Guard(app)({"type": kind, "headers": headers, "path": "/collective_rpc"}, None, send))
    return reached, sent


def test_the_lock_is_on_every_route(monkeypatch):
    for headers in ([], [(b"authorization", b"Bearer hus")], [(b"authorization", b"hush")], [(b"x", b"Bearer hush")]):
        reached, sent = asked_of_guard(monkeypatch, headers)
        assert not reached and sent[0]["status"] == 401
    twice = [(b"authorization", b"Bearer hush"), (b"authorization", b"Bearer other")]
    assert not asked_of_guard(monkeypatch, twice)[0]
    assert asked_of_guard(monkeypatch, [], "websocket") == ([], [{"type": "websocket.close", "code": 1008}])
    assert asked_of_guard(monkeypatch, [], "lifespan")[0] == ["lifespan"]
    for name in (b"authorization", b"Authorization"):
        assert asked_of_guard(monkeypatch, [(name, b"Bearer hush")])[0] == ["http"]
    monkeypatch.setenv(guard.SECRET, "")
    with pytest.raises(RuntimeError, match="a lock without a key"):
        guard.Guard(None)


def test_the_trainer_brings_the_secret_along(monkeypatch, tmp_path):
    monkeypatch.delenv(guard.SECRET, raising=False)
    assert guard.headers() == {}
    seen = []
    real = FakeServer._version

    async def version(self, request):
        seen.append(request.headers.get("Authorization"))
        return web.Response(status=401) if seen[-1] != "Bearer hush" else await real(self, request)

    monkeypatch.setattr(FakeServer, "_version", version)
    server = FakeServer()
    try:
        with pytest.raises(InputError, match=rf"wants another secret; set {guard.SECRET}"):
            engine([server], tmp_path)
        with pytest.raises(InputError, match=rf"refuses this machine \(401\); set {guard.SECRET}"):
            version_of(server.url)  # as a dry run asks
        monkeypatch.setenv(guard.SECRET, "hush")
        assert engine([server], tmp_path).backend.servers[0].workers == 1
        assert version_of(server.url) == "0.32.0" and seen == [None, None, "Bearer hush", "Bearer hush"]
    finally:
        server.stop()


def test_the_secret_may_lie_in_a_file(monkeypatch, tmp_path):
    path = tmp_path / "secret"
    monkeypatch.delenv(guard.SECRET, raising=False)
    monkeypatch.setenv(guard.SECRET_FILE, str(path))
    for content, says in ((None, "cannot be read"), (b"", "one line"), (b"a\nb\n", "one line"), (b"\xff", "no ASCII")):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=says) as told:
            version_of("http://127.0.0.1:9")
        assert "\n" not in str(told.value) and str(path) in str(told.value)
    path.write_text("hush\n")
    assert guard.headers() == {"Authorization": "Bearer hush"}
    monkeypatch.setenv(guard.SECRET, "louder")
    assert guard.headers() == {"Authorization": "Bearer louder"}, "the variable itself comes first"


def test_a_server_of_another_node_without_a_lock_is_refused(monkeypatch, tmp_path):
    """It would take weights and commands from anybody. One on this node listens where nobody else reaches it."""
    monkeypatch.setenv(guard.SECRET, "hush")
    real, locked = FakeServer._version, []

    async def version(self, request):
        lets_in = not locked or request.headers.get("Authorization") == "Bearer hush"
        return await real(self, request) if lets_in else web.Response(status=401)

    monkeypatch.setattr(FakeServer, "_version", version)
    server = FakeServer()
    try:
        engine([server], tmp_path)
        monkeypatch.setattr(address, "_of_this_node", lambda url: False)
        with pytest.raises(InputError, match=rf"{server.url} takes weights and commands .* {guard.SECRET} set") as told:
            engine([server], tmp_path)
        assert "hush" not in str(told.value)
        engine([server], tmp_path, insecure=True)
        locked.append(True)
        engine([server], tmp_path)
    finally:
        server.stop()


def test_which_addresses_are_of_this_node():
    here = ["http://127.0.0.1:8000", "http://127.9.9.9", "http://localhost:1", "http://[::1]:8000"]
    assert all(map(address._of_this_node, here))
    assert not any(map(address._of_this_node, ["http://node1:8000", "http://10.0.0.1", "http://localhost.evil.org"]))


@pytest.mark.parametrize("url", ["http://user:pass@node1:8000", "https://token@node1", "http://user:p@ss@node1:8000/"])
def test_a_password_in_an_address_is_refused_unshown(url):
    with pytest.raises(InputError, match="holds a user or a password") as told:
        Config(model="m", data="d", rollout_servers=(url,))
    assert not any(word in str(told.value) for word in ("user:", "token@", ":p", "p@ss", "ss@"))


def test_addresses_are_addresses():
    for url in ("http://node1:8000?key=secret", "http://node1#x", "node1:8000"):
        with pytest.raises(InputError, match="is no address"):
            Config(model="m", data="d", rollout_servers=(url,))


def test_a_completion_is_read_as_it_is():
    body = json.dumps(GOOD["completion"]).encode()
    assert answers.read_completion(answers.parsed(body, ""), JOB, vocabulary=VOCABULARY) == (
        "tiny",
        Completion([7, 2], [-1.5, 0.0], False),
    )
