"""A `vllm serve` process for tests: started as launch/serve.sh starts it, killed, stopped and started again."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
CPU = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}
"""Environment of a small, quiet vLLM."""
FLAGS = ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
FLAGS += ["--worker-extension-cls", "siri.rollout.worker.SyncWorker"]
SMALL = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "8"]
SMALL += ["--no-enable-chunked-prefill"]  # see siri.rollout.colocated.engine_options


class Server:
    """Context manager; `url` answers once it is entered. more: flags; secret: what the lock among them asks for."""

    def __init__(self, model: Path, log: Path, *more: str, secret: str = "") -> None:
        self.model, self.log, self.more, self.secret = model, log, more, secret
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self, *, wait: bool = True) -> None:
        """The command `vllm` of the CPU build does not start, for its package has another name; its module does."""
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)]
        command += ["--port", str(self.port), *FLAGS, *SMALL, *self.more]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | CPU | {"VLLM_SERVER_DEV_MODE": "1", "PYTHONPATH": path}
        environment |= {"SIRI_ROLLOUT_SECRET": self.secret}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + 300
        while not self.healthy():
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.5)

    def healthy(self) -> bool:
        try:
            headers = {"Authorization": f"Bearer {self.secret}"} if self.secret else {}
            request = urllib.request.Request(self.url + "/health", headers=headers)
            with urllib.request.urlopen(request, timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def kill(self) -> None:
        """As a lost machine would: no goodbye. The session is the test's own."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def freeze(self) -> None:
        """The connection stays open and nothing comes: a hang."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)
