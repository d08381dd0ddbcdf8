"""An adapter beside vLLM in the trainer's process, and what leaves it; behind a server: test_served.py."""

import os
import subprocess
import sys

from tests.vllm.server import ROOT

QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


def worker(*arguments) -> None:
    command = [sys.executable, "-m", "tests.vllm.lora_worker", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | QUIET, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    assert done.stdout.strip().endswith("all held"), done.stdout[-3000:]


def test_it_gets_the_merged_weights_and_vllm_and_peft_read_the_export(models, tmp_path):
    worker("colocated", models[True], tmp_path)
    worker("read", models[True], tmp_path)
