"""`siri report RUN --live`: a page on this machine that follows a run while it goes on.

A server of Python's own library, bound to the loopback address. It only reads the run folder, fetches nothing, and
answers nobody who calls it by another name than this machine's: a page elsewhere that has its name resolved to
127.0.0.1 must not read what is here.
"""

import errno
import json
import threading
import time
from dataclasses import asdict
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files as resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from zlib import crc32

from siri.errors import InputError
from siri.report.page import subtitle
from siri.report.progress import LOG
from siri.report.samples import shortened
from siri.report.style import DARK, LIGHT
from siri.store import files
from siri.store.jsonl import RunRecord, plain, read_run
from siri.store.responses import read_responses, response_files
from siri.text import encoded, printable

HOST = "127.0.0.1"
NAMES = ("127.0.0.1", "localhost")
"""What a browser on this machine may call it."""
KEYS = ("step", "phase", "cap", "response_tokens_mean", "accuracy", "truncation_rate", "reward_mean", "entropy", "loss")
KEYS += ("grad_norm", "clip_low_fraction", "clip_high_fraction", "approx_kl", "mismatch_k3", "tokens_per_s")
KEYS += ("step_time_s", "rollout_s", "train_s", "gpu_memory", "memory_peak")
"""What the page gets of a step."""
EVAL_KEYS = ("step", "name", "accuracy", "tokens_mean", "truncation_rate")
LINES = 12
"""Newest lines of the log that are shown."""
TAIL = 1 << 16
"""Bytes from the end of the log among which they are looked for."""
MOST = 64
"""Responses of a file that are shown."""
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
POLICY += "form-action 'none'; frame-ancestors 'none'"


class Followed:
    """What the page shows of a run. Its logs are read again when they have changed."""

    def __init__(self, run: Path) -> None:
        """InputError where the folder holds no run."""
        self.run = run
        self._lock = threading.Lock()
        self._stamp: Any = None
        self._record: RunRecord | None = None
        self.record()

    def record(self) -> RunRecord:
        """The run as it is now."""
        with self._lock:
            stamp = [_stamp(self.run / name) for name in ("config.json", "metrics.jsonl", "eval.jsonl")]
            if self._record is None or stamp != self._stamp:
                self._record = read_run(self.run, begun=True)
                self._stamp = stamp
            return self._record

    def data(self, after: int, mark: int) -> dict[str, Any]:
        """The steps after `after`, and everything else. mark: what the page was told of that step; where it is another
        one now, because the run went back to a checkpoint, all steps are sent, with `whole`."""
        record = self.record()
        rows = [{key: row[key] for key in KEYS if row.get(key) is not None} for row in record.metrics]
        known = next((row for row in rows if row["step"] == after), None)
        whole = known is None or _mark(known) != mark
        newest = max(filter(None, (_stamp(self.run / name) for name in ("metrics.jsonl", LOG))), default=None)
        return {
            "title": printable(record.config.get("recipe") or self.run.resolve().name),
            "subtitle": subtitle(record),
            "steps": record.config.get("steps"),
            "whole": whole,
            "rows": rows if whole else [row for row in rows if row["step"] > after],
            "mark": _mark(rows[-1]) if rows else 0,
            "evals": [{key: row[key] for key in EVAL_KEYS if row.get(key) is not None} for row in record.evals],
            "log": self.log(),
            "age_s": None if newest is None else max(0.0, time.time() - newest[0] / 1e9),
        }

    def log(self) -> list[str]:
        """The newest lines of log.txt; none where there is no such file."""
        try:
            with (self.run / LOG).open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - TAIL))
                lines = file.read().decode(errors="backslashreplace").splitlines()
        except OSError:
            return []
        return [printable(line) for line in lines[-LINES:]]

    def samples(self) -> list[str]:
        """Names of the files of responses, the newest first."""
        return [path.stem for path in reversed(response_files(self.run))]

    def responses(self, name: str) -> list[dict[str, Any]] | None:
        """Responses of a file, evenly from all of it; None where there is no such file."""
        path = next((path for path in response_files(self.run) if path.stem == name), None)
        if path is None:
            return None
        rows = read_responses(path)
        count = min(MOST, len(rows))
        shown = [asdict(rows[index * len(rows) // count]) for index in range(count)]
        return [row | {"prompt": shortened(row["prompt"]), "text": shortened(row["text"])} for row in shown]


def _stamp(path: Path) -> tuple[int, int] | None:
    """When a file was changed, and its bytes; None where it is not there."""
    try:
        told = path.stat()
    except OSError:
        return None
    return told.st_mtime_ns, told.st_size


def _mark(row: dict[str, Any]) -> int:
    return crc32(json.dumps(row).encode())


class LiveServer(ThreadingHTTPServer):
    """Serves the page of a run on the loopback address."""

    daemon_threads = True

    def __init__(self, run: Path, port: int) -> None:
        """port: 0 = any that is free. InputError where it cannot be had, or there is no run."""
        self.followed = Followed(run)
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise InputError(f"port {port} is in use here; choose another with --port, or --port 0") from None
            raise InputError(
                f"port {port} cannot be opened ({files.reason(error)}); choose another with --port"
            ) from None

    @property
    def port(self) -> int:
        return self.server_address[1]

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/"

    @cached_property
    def pages(self) -> dict[str, tuple[str, bytes]]:
        """The fixed parts of the page: type and bytes of each path."""
        from jinja2 import Environment, PackageLoader, StrictUndefined

        environment = Environment(loader=PackageLoader("siri.report"), autoescape=True, undefined=StrictUndefined)
        style = environment.get_template("style.css").render(light=LIGHT, dark=DARK)
        folder = resources("siri.report") / "templates"
        html, more, script = (folder / name for name in ("live.html", "live.css", "live.js"))
        return {
            "/": ("text/html", html.read_bytes()),
            "/live.css": ("text/css", style.encode() + b"\n" + more.read_bytes()),
            "/live.js": ("text/javascript", script.read_bytes()),
        }


class Handler(BaseHTTPRequestHandler):
    """Answers GET."""

    server: LiveServer
    server_version, sys_version = "siri", ""

    def do_GET(self) -> None:
        if self.headers.get("Host", "") not in {f"{name}:{self.server.port}" for name in NAMES}:
            return self._send(403, "text/plain", b"this page is for browsers on its own machine\n")
        parts = urlsplit(self.path)
        if page := self.server.pages.get(parts.path):
            return self._send(200, *page)
        try:
            answer = self._answer(parts.path, parse_qs(parts.query))
        except InputError as error:  # a log that is damaged; the page goes on asking
            answer = {"error": str(error)}
        except OSError as error:
            answer = {"error": files.reason(error)}
        if answer is None:
            return self._send(404, "text/plain", b"no such page\n")
        return self._send(200, "application/json", encoded(json.dumps(plain({"": answer})[""])))

    def _answer(self, path: str, query: dict[str, list[str]]) -> Any:
        followed = self.server.followed
        if path == "/data":
            after, mark = (_number(query.get(key, [""])[0]) for key in ("after", "mark"))
            return followed.data(after, mark)
        if path == "/samples":
            return followed.samples()
        if path.startswith("/samples/"):
            return followed.responses(unquote(path.removeprefix("/samples/")))
        return None

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", f"{kind}; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Content-Security-Policy", POLICY),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a page that asks every two seconds would fill the terminal."""


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 16 else -1
