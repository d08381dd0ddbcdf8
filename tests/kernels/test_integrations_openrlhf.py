"""OpenRLHF's Actor with the adapter: its published formula, and its own source where its distribution lies in
PREFIX/peers (imported whole it needs DeepSpeed and flash-attn)."""

import importlib
import sys

import pytest
import torch
from torch import nn

from tests.support.integration_cases import Stubs, fresh, installed, pretend_installed
from tests.support.kernel_cases import relative

tests_tiny = pytest.importorskip("tests.support.tiny", reason="transformers is not installed")


class PublishedActor(nn.Module):
    """OpenRLHF 0.11's Actor without packing, as published (openrlhf/models/actor.py)."""

    packing_samples = False

    def __init__(self, model, temperature=1.0):
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(
        self,
        sequences,
        action_mask=None,
        attention_mask=None,
        return_output=False,
        allgather_logits=False,
        return_logprobs=False,
        ring_attn_group=None,
        packed_seq_lens=None,
        return_entropy=False,
    ):
        position_ids = (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 1)
        output = self.model(sequences, attention_mask=attention_mask, position_ids=position_ids)
        z = output["logits"].float() / self.temperature
        if return_entropy:
            output.entropy = (z.logsumexp(-1) - (z.softmax(-1) * z).sum(-1))[:, :-1]
        if action_mask is None and not return_logprobs:
            return output
        targets = sequences.roll(-1, 1)[..., None]
        logp = (z.gather(-1, targets).squeeze(-1) - z.logsumexp(-1))[:, :-1]
        if action_mask is not None:
            logp = logp[:, -action_mask.shape[1] :] * action_mask.float()
        return (logp, output) if return_output else logp


def real_actor(monkeypatch):
    """OpenRLHF's own Actor; what it imports and does not use here is absent."""
    folder = installed(monkeypatch, "openrlhf", "0.11", "0.12") / "openrlhf"
    names = ("deepspeed", "flash_attn", "flash_attn.bert_padding", "flash_attn.utils", "flash_attn.utils.distributed")
    names += ("flash_attn.ops", "flash_attn.ops.triton", "peft", "peft.tuners", "peft.tuners.lora")
    with (
        Stubs({"openrlhf": folder, "openrlhf.models": folder / "models"}, names),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(torch, "compile", lambda f: f)
        module = importlib.import_module("openrlhf.models.actor")
    monkeypatch.setitem(sys.modules, "openrlhf.models.actor", module)  # the adapter looks its helpers up there
    module.Actor.packing_samples = False
    return module.Actor


@pytest.mark.parametrize("which", ["published", "itself"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_openrlhf(which, temperature, monkeypatch):
    pretend_installed(monkeypatch, "openrlhf", "0.11.2") if which == "published" else None
    actor_class = real_actor(monkeypatch) if which == "itself" else type("Actor", (PublishedActor,), {})
    adapter = fresh("openrlhf", monkeypatch)
    model = tests_tiny.tiny_model()
    actor = actor_class(model, temperature=temperature)
    ids = torch.randint(3, 90, (3, 11))
    lengths = torch.tensor([11, 8, 9])
    attention = (torch.arange(11) >= 11 - lengths[:, None]).long()  # padded on the left
    attention[1], attention[1, 9:] = 1, 0  # and on the right
    actions = torch.ones(3, 6, dtype=torch.long)
    actions[1, 4:] = 0
    call = {"action_mask": actions, "attention_mask": attention, "return_output": True, "return_entropy": True}

    def score():
        model.zero_grad()
        logp, output = actor(ids, **call)
        entropy = output.entropy[:, -6:] * actions
        (logp.sum() + entropy.sum()).backward()
        return logp.detach(), entropy.detach(), [p.grad.clone() for p in model.parameters()]

    before = score()
    adapter.install(actor_class)
    after = score()
    torch.testing.assert_close(after[:2], before[:2], rtol=1e-5, atol=1e-5)
    assert all(relative(x, y) < 1e-5 for x, y in zip(after[2], before[2], strict=True))
    everything = actor(ids, attention_mask=attention, return_logprobs=True)
    assert everything.shape == (3, 10)
    torch.testing.assert_close(everything[:, -6:] * actions, after[0])
    logits = actor(ids, attention_mask=attention, return_output=True)["logits"]  # who asks for logits gets them
    assert logits.shape == (3, 11, 96) and "forward" not in model.lm_head.__dict__
    adapter.uninstall()
    assert actor_class.forward is not adapter.forward


def test_openrlhf_itself_with_packed_samples(monkeypatch):
    """Actor's own unpadding and padding around the head; flash-attn's helpers for it, which are torch, written down."""
    actor_class = real_actor(monkeypatch)
    ring = actor_class.forward.__globals__["unpad_and_slice_tensor"].__globals__

    def unpad(x, mask):
        indices = mask.flatten().nonzero().squeeze(1)
        return x.flatten(0, 1)[indices], indices, None, None, None

    def pad(x, indices, batch, length):
        return x.new_zeros(batch * length, *x.shape[1:]).index_copy(0, indices, x).unflatten(0, (batch, length))

    monkeypatch.setitem(ring, "unpad_input", unpad)
    monkeypatch.setitem(ring, "pad_input", pad)
    monkeypatch.setitem(ring, "index_first_axis", lambda x, indices: x[indices])
    monkeypatch.setitem(ring, "rearrange", lambda x, pattern: x.flatten(0, 1))
    adapter = fresh("openrlhf", monkeypatch)
    model = tests_tiny.tiny_model()
    model.config.use_cache = False
    actor = actor_class(model, temperature=0.9)
    actor.packing_samples = True
    ids = torch.randint(3, 90, (3, 11))
    attention = (torch.arange(11) < torch.tensor([11, 8, 9])[:, None]).long()
    call = {"action_mask": attention[:, -6:].roll(-1, 1) * (torch.arange(6) < 5), "attention_mask": attention}

    def score():
        logp, output = actor(ids, **call, return_output=True, return_entropy=True)
        return logp.detach(), output.entropy.detach() * attention[:, :-1]

    before = score()
    adapter.install(actor_class)
    torch.testing.assert_close(score(), before, rtol=1e-5, atol=1e-5)
    assert float(before[0].abs().sum()) > 10
    adapter.uninstall()


def test_openrlhf_refuses_capped_logits(monkeypatch):
    pretend_installed(monkeypatch, "openrlhf", "0.11.2")
    adapter = fresh("openrlhf", monkeypatch)
    model = tests_tiny.tiny_model()
    model.config.final_logit_softcapping = 30.0
    ids = torch.ones(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="after the LM head"):
        adapter.score_in_head(model, ids, ids.bool(), 1.0, input_ids=ids)
