"""`siri report --live`: what the server answers, and to whom."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial

import pytest

from siri.cli import main
from siri.errors import InputError
from siri.report.live import KEYS, LINES, POLICY, Followed, LiveServer
from siri.store.responses import Response, Responses
from tests.support.synthetic_run import make_run


def response(number, text="it is 7", **more):
    usual = {"prompt": f"what is {number}?", "gold": "7", "extracted": "7", "score": 1.0, "reward": 1.0}
    usual |= {"tokens": 5, "truncated": False, "logp_mean": -0.25, "weights": 3}
    return Response(prompt_number=number, text=text, **{**usual, **more})


@contextmanager
def serving(run):
    with LiveServer(run, 0) as server:
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def get(server, path, host=None, method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    if host != "":
        connection.putheader("Host", host or f"127.0.0.1:{server.port}")
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def data(server, after="", mark=0):
    return json.loads(get(server, f"/data?after={after}&mark={mark}")[1])


@pytest.fixture
def run(tmp_path):
    folder = make_run(tmp_path / "run", upto=30)
    kept = Responses(folder, 4)
    kept.write_evaluation(0, "a b.jsonl", [response(number) for number in range(100)])
    kept.write_step(29, [response(0, float("nan") and "x", logp_mean=float("nan"))])
    (folder / "log.txt").write_text("".join(f"line {number}\n" for number in range(40)) + "\x1b[31mred\n")
    return folder


def test_it_listens_to_this_machine_only_and_fetches_nothing(run):
    with serving(run) as server:
        assert server.server_address[0] == "127.0.0.1" and server.url == f"http://127.0.0.1:{server.port}/"
        for path in ("/", "/live.css", "/live.js"):
            answer, body = get(server, path)
            text = body.decode()
            assert answer.status == 200 and answer.headers["Content-Security-Policy"] == POLICY
            assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert "http" not in text.replace("http://www.w3.org/2000/svg", ""), path
            assert "innerHTML" not in text and "eval(" not in text
    assert "default-src 'none'" in POLICY and "connect-src 'self'" in POLICY


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost.evil:{port}", ""]
)
def test_whoever_calls_it_by_another_name_is_refused(run, host):
    with serving(run) as server:
        for path in ("/", "/data", "/samples", "/samples/eval-000000-a-b", "/nothing"):
            answer, body = get(server, path, host.format(port=server.port))
            assert answer.status == 403 and b"what is" not in body
        assert get(server, "/", f"localhost:{server.port}")[0].status == 200


def test_other_methods_and_paths_are_none(run, tmp_path):
    (tmp_path / "secret.parquet").write_text("x")
    with serving(run) as server:
        for path in (
            "/config.json",
            "/../secret",
            "/samples/../../secret",
            "/samples/%2e%2e%2f%2e%2e%2fsecret",
        ):
            assert get(server, path)[0].status == 404, path
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert get(server, "/data", method=method)[0].status == 501


def test_only_new_steps_are_sent_and_all_of_them_when_the_run_went_back(run):
    with serving(run) as server:
        first = data(server)
        assert first["whole"] and [row["step"] for row in first["rows"]] == list(range(30)) and first["steps"] == 120
        assert first["rows"][0].keys() <= set(KEYS) and first["evals"][0]["name"] == "base"
        assert first["title"] == "demo" and "30 of 120 steps" in first["subtitle"]
        again = data(server, 29, first["mark"])
        assert not again["whole"] and again["rows"] == []
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        added = json.dumps(json.loads(lines[-1]) | {"step": 30}) + "\n"
        (run / "metrics.jsonl").write_text("".join([*lines, added, '{"torn']))
        more = data(server, 29, first["mark"])
        assert [row["step"] for row in more["rows"]] == [30] and not more["whole"]
        changed = json.dumps(json.loads(lines[20]) | {"loss": 7.0}) + "\n"
        (run / "metrics.jsonl").write_text("".join([*lines[:20], changed]))
        back = data(server, 30, more["mark"])
        assert back["whole"] and len(back["rows"]) == 21 and back["rows"][-1]["loss"] == 7.0
        assert data(server, "x", -3)["whole"] and data(server, "9" * 40)["whole"]


def test_the_log_ends_with_its_newest_lines(run):
    followed = Followed(run)
    assert followed.log()[-1] == "\\x1b[31mred" and len(followed.log()) == LINES
    (run / "log.txt").unlink()
    assert followed.log() == []


def test_responses_are_listed_the_newest_first_and_are_json(run):
    with serving(run) as server:
        assert json.loads(get(server, "/samples")[1]) == ["step-000029", "eval-000000-a-b"]
        rows = json.loads(get(server, "/samples/eval-000000-a-b")[1])
        assert len(rows) == 64 and rows[0]["prompt"] == "what is 0?" and rows[-1]["prompt_number"] == 98
        (only,) = json.loads(get(server, "/samples/step-000029")[1])
        assert only["logp_mean"] is None
        assert get(server, "/samples/eval-000009-a-b")[0].status == 404


def test_a_damaged_log_is_told_and_the_server_goes_on(run):
    whole = (run / "metrics.jsonl").read_text()
    with serving(run) as server:
        (run / "metrics.jsonl").write_text("no row\n" + whole)
        assert "metrics.jsonl, line 1" in data(server)["error"]
        (run / "metrics.jsonl").write_text(whole)
        assert len(data(server)["rows"]) == 30


def test_a_run_without_a_step_can_be_followed_and_a_folder_without_a_run_cannot(tmp_path):
    folder = make_run(tmp_path / "run", upto=0)
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    assert Followed(folder).data(-1, 0)["rows"] == []
    with pytest.raises(InputError, match="is not a run folder"):
        LiveServer(tmp_path, 0)


def test_bad_options_are_one_line_each(run, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for arguments, line in (
            ([str(run), "--live", "--port", str(port)], f"port {port} is in use here; choose another with --port"),
            ([str(run), "--live", "--port", "70000"], "port is 70000; it must be from 0 to 65535"),
            ([str(run), "--live", "--port", "-1"], "port is -1"),
            ([str(run / "none"), "--live"], "is not a run folder"),
            ([str(run), "--port", "http"], "port"),
            ([str(run), "--port", "8401"], "--port is of the page that --live serves"),
        ):
            assert main(["report", *arguments]) == 2
            error = capsys.readouterr().err
            assert line in error and error.count("\n") == 1, error


def test_the_command_says_where_it_is_and_ends_with_ctrl_c(run):
    before = sorted(run.rglob("*"))
    command = [sys.executable, "-m", "siri", "report", str(run), "--live", "--port", "0"]
    hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background inherits that it is ignored
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, preexec_fn=hears) as process:
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:") and f"follows {run}; Ctrl-C ends it" in line
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(30) == 0 and process.stderr.read() == ""
    assert sorted(run.rglob("*")) == before, "nothing is written"
