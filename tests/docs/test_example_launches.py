"""examples/launch: the two that need no cluster train a step on real problems; the others name options that the
trainers have, and our file for prime-rl installs the head before the trainer is there."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "examples" / "launch"
PEERS = Path(sys.prefix) / "peers"
PROBLEMS = [
    {"problem": "What is $3 + 4$?", "answer": "7"},
    {"problem": "Simplify $\\frac{6}{8}$.", "answer": "\\frac{3}{4}"},
    {"problem": "Solve $2x = 10$ for $x$.", "answer": "5"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    tiny = pytest.importorskip("tests.support.tiny", reason="transformers is not installed")
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny.bpe_tokenizer([row["problem"] + row["answer"] for row in PROBLEMS])
    tiny.tiny_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Real problems where they are at hand, else those above."""
    source = Path(os.environ.get("SIRI_TEST_DATA", "nowhere")) / "math_train.json"
    rows = json.loads(source.read_text())[:8] if source.exists() else PROBLEMS
    path = tmp_path_factory.mktemp("data") / "problems.json"
    path.write_text(json.dumps([{"problem": row["problem"], "answer": row["answer"]} for row in rows]))
    return path


def run(*command: object) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "SIRI_TEST_WARNINGS": ""}
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("switch", [[], ["--liger"]], ids=["package", "liger"])
def test_a_loop_of_ones_own_trains(model, data, switch):
    out = run(
        LAUNCH / "plain_loop_math.py", "--model", model, "--data", data, "--steps", 2, "--max-tokens", 12, *switch
    )
    assert re.findall(r"^step (\d): reward 0\.\d+, tokens \d+, loss -?\d+\.\d+$", out, re.MULTILINE) == ["0", "1"]


def test_trl_trains(model, data, tmp_path):
    pytest.importorskip("trl", reason="trl is not installed")
    settings = ["--max-steps", 1, "--max-tokens", 12, "--group", 2, "--use-cpu", "--out", tmp_path]
    out = run(LAUNCH / "trl_math.py", "--model", model, "--data", data, *settings)
    assert "train_runtime" in out


def test_verls_settings_are_verls():
    path = PEERS / "verl" / "trainer" / "config" / "_generated_ppo_trainer.yaml"
    if not path.exists():
        pytest.skip(f"no verl at {path}")
    known = yaml.safe_load(path.read_text())
    text = (LAUNCH / "verl_gsm8k.sh").read_text()
    settings = re.findall(r"^\s+([a-z_]+(?:\.[a-z_]+)+)=", text, re.MULTILINE)
    settings += re.findall(r"HEAD=\(([\w.]+)=siri\)", text)
    assert len(settings) > 15 and "actor_rollout_ref.model.fused_kernel_options.impl_backend" in settings
    for setting in settings:
        place = known
        for part in setting.split("."):
            assert part in place, setting
            place = place[part]
    assert "model_engine=megatron" in text and (path.parent / "model_engine" / "megatron.yaml").exists()


def test_openrlhfs_options_are_openrlhfs():
    path = PEERS / "openrlhf" / "cli" / "train_ppo_ray.py"
    if not path.exists():
        pytest.skip(f"no OpenRLHF at {path}")
    source = path.read_text()
    for prefix in ("actor", "critic"):  # made in a loop there
        source = source + re.sub(r"\{prefix\}", prefix, source)
    text = (LAUNCH / "openrlhf_math.sh").read_text().split("train_ppo_ray")[1]
    asked = re.findall(r"^\s+--([\w.]+)", text, re.MULTILINE)
    assert len(asked) > 20 and [name for name in asked if f'"--{name}"' not in source] == []


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_the_scripts_are_bash_and_may_be_run(path):
    assert os.access(path, os.X_OK)
    assert subprocess.run(["bash", "-n", path]).returncode == 0


def test_prime_rls_trainer_meets_the_head(monkeypatch):
    """Stand-ins for prime-rl's modules: by the time the trainer is imported, the head is in its place."""
    import runpy

    seam = "prime_rl.trainer.models.layers.lm_head"

    class Theirs:
        def __init__(self, in_features, out_features, chunk_size): ...

        def forward(self, hidden_states, labels=None, temperature=None): ...

    for name in ("prime_rl", "prime_rl.trainer", "prime_rl.trainer.models", "prime_rl.trainer.models.layers", seam,
                 "prime_rl.trainer.rl", "prime_rl.trainer.rl.train"):  # fmt: skip
        module = types.ModuleType(name)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules[seam].FusedOutputLinear = Theirs
    met = []
    sys.modules["prime_rl.trainer.rl.train"].main = lambda: met.append(sys.modules[seam].FusedOutputLinear)
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.8.0" if name == "prime-rl" else real(name))
    monkeypatch.delitem(sys.modules, "siri_kernels.integrations.prime_rl", raising=False)
    runpy.run_path(str(LAUNCH / "prime_rl_trainer.py"), run_name="__main__")
    assert met[0].__module__ == "siri_kernels.integrations.prime_rl"
    monkeypatch.delitem(sys.modules, "siri_kernels.integrations.prime_rl")


def test_every_adapter_has_one():
    """Beside the example that compares, a file that trains with it on real data."""
    text = "".join(path.read_text() for path in LAUNCH.iterdir() if path.is_file())
    named = set(re.findall(r"siri_kernels\.integrations(?:\.| import )(\w+)", text))
    assert named == {"trl", "verl", "openrlhf", "prime_rl", "transformers", "liger"}
    assert "impl_backend=siri" in text  # the plugin of verl, which nobody imports
