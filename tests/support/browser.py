"""A real browser for tests of pages: Chromium without a window, over its DevTools protocol."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_S = 60.0


def chromium() -> str | None:
    """The browser's path; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page. A context; every address that it asks for is in `asked`, every error of its scripts in `errors`."""

    def __init__(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        path = chromium()
        assert path is not None
        self._profile = tempfile.TemporaryDirectory(prefix="siri-browser-", ignore_cleanup_errors=True)
        flags = [
            "--headless",
            "--disable-gpu",
            "--no-first-run",
            "--remote-debugging-port=0",
            "--disable-dev-shm-usage",
        ]
        flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio"]
        flags += ["--no-sandbox"] * (os.geteuid() == 0)  # which it refuses to root
        environment = {**os.environ, "HOME": self._profile.name}
        arguments = [path, *flags, f"--user-data-dir={self._profile.name}", "about:blank"]
        self._process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment)
        self.asked: list[str] = []
        self.errors: list[str] = []
        self._number, self._answers = 0, dict[int, Future[Any]]()
        self._loop = asyncio.new_event_loop()
        self._open: Future[None] = Future()
        threading.Thread(target=lambda: self._loop.run_until_complete(self._work()), daemon=True).start()
        self._open.result(PATIENCE_S)
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.resize(width, height)
        theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=theme)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()
        self._profile.cleanup()

    async def _work(self) -> None:
        try:
            assert self._process.stderr is not None
            for line in self._process.stderr:
                if address := re.search(rb"DevTools listening on ws://([^/]+)/", line):
                    break
            else:
                raise AssertionError("the browser did not start")
            threading.Thread(target=self._process.stderr.read, daemon=True).start()  # or its pipe would fill
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://{address[1].decode()}/json/list") as answer:
                    pages = [page for page in await answer.json() if page["type"] == "page"]
                async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as self._socket:
                    self._open.set_result(None)
                    async for message in self._socket:
                        self._take(json.loads(message.data))
        except BaseException as error:
            if not self._open.done():
                self._open.set_exception(error)

    def _take(self, message: dict[str, Any]) -> None:
        if future := self._answers.pop(message.get("id", -1), None):
            future.set_result(message)
        elif message.get("method") == "Network.requestWillBeSent":
            self.asked.append(message["params"]["request"]["url"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(message["params"]["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            self.errors.append(message["params"]["entry"]["text"])

    def send(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol; its result."""
        self._number += 1
        future = self._answers[self._number] = Future()
        text = json.dumps({"id": self._number, "method": method, "params": parameters})
        asyncio.run_coroutine_threadsafe(self._socket.send_str(text), self._loop).result(PATIENCE_S)
        message = future.result(PATIENCE_S)
        assert "error" not in message, message
        return message["result"]

    def resize(self, width: int, height: int = 900) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, script: str) -> Any:
        """The value of an expression once it is true."""
        end = time.monotonic() + PATIENCE_S
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}; {self.errors}"
            time.sleep(0.05)
        return value

    def picture(self, path: Path) -> None:
        """A PNG of the whole page."""
        import base64

        result = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(result["data"]))
