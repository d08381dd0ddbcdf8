"""Tests with a real vLLM on the CPU: `make test-vllm` makes an environment for them and sets SIRI_TEST_VLLM.

In any other run nothing here is collected, because vLLM pins torch and transformers, and its CPU build cannot share an
environment with the trainer's.
"""

import json
import os

import pytest

from tests.vllm.server import CPU, Server

if os.environ.get("SIRI_TEST_VLLM") != "1":
    collect_ignore_glob = ["test_*.py"]

os.environ.update(CPU)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders of tiny Qwen2 models, by whether embedding and head are tied; "head" has a head of its own, but its
    config.json says that they are. vLLM's CPU attention needs heads of 32."""
    from tests.support.tiny import save_tiny

    root = tmp_path_factory.mktemp("models")
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    folders: dict = {
        tied: save_tiny(root / f"tied-{tied}", tie_word_embeddings=tied, **shape) for tied in (False, True)
    }
    folders["head"] = save_tiny(root / "head", tie_word_embeddings=False, **shape)
    path = folders["head"] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    return folders


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def server(request, models, tmp_path_factory):
    """A `vllm serve` process of a tiny model; one at a time."""
    with Server(models[request.param], tmp_path_factory.mktemp("server") / "log.txt") as running:
        yield running
