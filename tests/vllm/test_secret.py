"""A real `vllm serve` behind the lock of launch/serve.sh: who may do what with it, and where the secret is not."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from siri.errors import InputError
from siri.rollout.guard import SECRET, SECRET_FILE
from tests.vllm.checks import TEMPERATURE, assert_current, make, requests, step
from tests.vllm.demo_model import widen
from tests.vllm.server import CPU, ROOT, Server

HUSH, LATER = "hush-6f1c22d09b", "later-77aa10c3e4"
COMMANDS = (
    "/collective_rpc",
    "/reset_prefix_cache",
    "/v1/completions",
    "/pause",
    "/resume",
    "/server_info",
    "/metrics",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("locked")
    with Server(
        widen(folder / "model"), folder / "log.txt", "--middleware", "siri.rollout.guard.Guard", secret=HUSH
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in (SECRET, SECRET_FILE):
        monkeypatch.delenv(name, raising=False)


def served(server, folder):
    return make(server.model, folder, rollout_servers=(server.url,), rollout_timeout_s=60.0)


def status(url: str, verb: str = "GET", secret: str = "", body: bytes | None = None) -> int:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {secret}"} if secret else {})
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data=body, method=verb, headers=headers), timeout=60
        ) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def assert_locked(server) -> None:
    """What changes weights, samples or tells of the server is closed to a stranger, and to one with another secret."""
    body = json.dumps({"method": "siri_mark", "args": ["mine"], "prompt": [7], "model": str(server.model)}).encode()
    for path in COMMANDS:
        for verb in ("GET", "POST"):
            for secret in ("", "another", HUSH[:-1]):
                assert status(server.url + path, verb, secret, body if verb == "POST" else None) == 401, (path, verb)


def test_every_route_asks_for_the_secret(server):
    request = urllib.request.Request(server.url + "/openapi.json", headers={"Authorization": f"Bearer {HUSH}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        routes = json.loads(answer.read())["paths"]
    assert {"/collective_rpc", "/reset_prefix_cache", "/v1/completions", "/health"} <= routes.keys()
    for path, verbs in routes.items():
        for verb in verbs:
            for secret in ("", "another"):
                assert status(server.url + path, verb.upper(), secret, b"{}" if verb == "post" else None) == 401, path
    assert status(server.url + "/health") == 401 and status(server.url + "/health", secret=HUSH) == 200


@pytest.mark.parametrize("secret", ["", "another", HUSH + "x"])
def test_a_trainer_without_it_or_with_another_is_refused(server, tmp_path, monkeypatch, secret):
    monkeypatch.setenv(SECRET, secret)
    with pytest.raises(InputError, match=rf"{server.url} wants another secret; set {SECRET}") as told:
        served(server, tmp_path)
    assert HUSH not in str(told.value) and "another\n" not in str(told.value)


def test_a_stranger_in_the_middle_of_a_sync_gets_nowhere(server, tmp_path, monkeypatch):
    path = tmp_path / "secret"
    path.write_text(HUSH + "\n")
    monkeypatch.setenv(SECRET_FILE, str(path))
    policy, engine = served(server, tmp_path)
    backend, done = engine.backend, []
    write, settle = backend.files.write, backend.settle

    def between(weights, version):
        write(weights, version)
        assert_locked(server)
        done.append("written, not loaded")

    async def unnamed(session, where, held, sums):
        assert_locked(server)
        done.append("loaded, not named")
        await settle(session, where, held, sums)

    backend.files.write, backend.settle = between, unnamed
    engine.sync()
    step(policy)
    engine.sync()
    assert done == 2 * ["written, not loaded", "loaded, not named"]
    assert_current(policy, engine)
    engine.close()


def test_the_secret_is_nowhere_to_be_read(server, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "siri", "train", "demo", "--model", str(server.model), "--steps", "2"]
    command += ["--eval-problems", "8", "--prompts-per-step", "2", "--group-size", "4", "--rollout-servers", server.url]
    command += ["--keep-responses", "1", "--run-dir", str(run)]
    outputs = []
    for secret, code in (("wrong-secret-3c1d", 2), (HUSH, 0)):
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | CPU | {SECRET: secret}, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == code, done.stdout[-2000:] + done.stderr[-3000:]
        outputs.append(done.stdout + done.stderr)
    texts = {"output": "".join(outputs), "server": server.log.read_text()}
    texts |= {str(path): path.read_bytes().decode(errors="replace") for path in run.rglob("*") if path.is_file()}
    names = {Path(name).name for name in texts}
    assert {"config.json", "metrics.jsonl", "report.html", "state.json"} <= names
    for name, text in texts.items():
        assert HUSH not in text and "wrong-secret-3c1d" not in text, name
    assert SECRET in outputs[0]


def test_an_old_secret_ends_a_rollout_with_a_line(server, tmp_path, monkeypatch):
    """The server was started again with another one while the trainer ran."""
    monkeypatch.setenv(SECRET, HUSH)
    _, engine = served(server, tmp_path)
    engine.sync()
    server.kill()
    server.secret = LATER
    server.start()
    with pytest.raises(InputError, match=rf"wants another secret; set {SECRET}") as told:
        engine.generate(requests(), temperature=TEMPERATURE, seed=1)
    assert HUSH not in str(told.value) and LATER not in str(told.value)
    engine.close()
