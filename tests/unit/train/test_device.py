"""Where a run computes, with GPUs that are made up."""

import pytest
import torch

from siri.config import Config
from siri.errors import InputError
from siri.runtime.threads import SMALL
from siri.train.device import choose_device, parameters
from tests.support.tiny import save_tiny


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def chosen(model, device="auto"):
    where, line = choose_device(Config(model=str(model), data="d", device=device))
    return where.type, line


def test_the_demo_is_too_small_for_a_gpu_and_says_so(gpu):
    where, line = chosen("siri:demo/model")
    assert where == "cpu" and line.startswith("device: the CPU, although there is a GPU: a model of 281,184 parameters")
    assert "--device cuda takes it all the same" in line
    assert chosen("siri:demo/model", "cuda") == ("cuda", "") and chosen("siri:demo/model", "cpu") == ("cpu", "")


def test_other_models_take_it_and_say_which(gpu, tmp_path):
    large = save_tiny(tmp_path / "large", hidden_size=512, intermediate_size=1024, num_hidden_layers=2)
    assert parameters(str(large)) > SMALL
    for model in (large, "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", tmp_path / "nothing"):
        assert chosen(model) == ("cuda", "device: NVIDIA H100 80GB HBM3")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    assert chosen(tmp_path / "broken")[0] == "cuda", "whoever loads it says what is wrong"


def test_under_torchrun_each_process_has_its_gpu(gpu, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert chosen("siri:demo/model")[0] == "cuda"


def test_without_a_gpu_there_is_no_choice(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen("siri:demo/model") == ("cpu", "")
    with pytest.raises(InputError, match="torch sees no GPU"):
        chosen("siri:demo/model", "cuda")


def test_the_count_is_that_of_the_weights():
    from safetensors.torch import load_file

    from siri.demo import MODEL

    held = load_file(MODEL / "model.safetensors")
    assert parameters("siri:demo/model") == sum(tensor.numel() for tensor in held.values())
