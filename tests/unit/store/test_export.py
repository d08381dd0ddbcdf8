"""Checkpoints exported as plain model folders."""

import json
import shutil

import pytest
import torch

from siri.errors import InputError
from siri.store.checkpoint import (
    MANIFEST,
    OPTIMIZER,
    STATE,
    WEIGHTS,
)
from siri.store.export import export
from tests.support.saving import file_of
from tests.support.tiny import bpe_tokenizer
from tests.support.trained import logits, save, trained, truncate

pytestmark = pytest.mark.torture


@pytest.mark.parametrize("tied", [False, True])
def test_export_is_a_folder_for_transformers(tmp_path, tied):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = bpe_tokenizer(["the answer is not known </think>"])
    policy, optimizer = trained(tmp_path / "model", tokenizer=tokenizer, tie_word_embeddings=tied)
    path = save(tmp_path / "run" / "checkpoints", policy, optimizer, 3, name="siri-high-1")
    for number, source in enumerate((path, path.parent / "siri-high-1", tmp_path / "run")):
        target = export(source, tmp_path / f"export_{number}")
        names = {entry.name for entry in target.iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
        assert not names & {MANIFEST, STATE, OPTIMIZER, WEIGHTS}
        model = AutoModelForCausalLM.from_pretrained(target)
        assert torch.equal(logits(model), logits(policy.model))
        loaded = AutoTokenizer.from_pretrained(target)
        assert loaded("the answer")["input_ids"] == tokenizer("the answer")["input_ids"]
        assert loaded.chat_template == tokenizer.chat_template
        text = (target / "config.json").read_text()
        assert "attn_implementation" not in text, "the packed attention is the trainer's own"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["export_0", "export_1", "export_2", "model", "run"]


def test_export_refuses(tmp_path, subject):
    run = tmp_path / "run"
    path = save(run / "checkpoints", *subject, 1, 2)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    for target in (full, full / "mine.txt"):
        with pytest.raises(InputError, match=r"no empty folder; choose a new one"):
            export(path, target)
    assert [entry.name for entry in full.iterdir()] == ["mine.txt"]
    with pytest.raises(InputError, match="no checkpoint there"):
        export(tmp_path, tmp_path / "new")

    truncate(file_of(path, WEIGHTS))
    with pytest.raises(InputError, match=r"step_000002: damaged, weights/shard-00001\S*\.safetensors has"):
        export(path, tmp_path / "new")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert export(run, empty) == empty, "the newest good one, and an empty folder may be there"
    shutil.rmtree(run / "checkpoints" / "step_000001")
    with pytest.raises(InputError, match=r"no good checkpoint in this run; .*step_000002: damaged"):
        export(run, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert json.loads((empty / "config.json").read_text())["model_type"] == "qwen2"
