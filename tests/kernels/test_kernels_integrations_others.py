"""The adapters of verl, OpenRLHF, prime-rl and of a loop of one's own.

Every adapter is compared with the trainer's published formula, written down here; and with the trainer's own source
where its distribution is installed (without its dependencies: verl needs ray, OpenRLHF DeepSpeed and flash-attn to be
imported whole, and prime-rl is on no index).
"""

import importlib
import sys

import pytest
import torch
from integration_cases import VOCAB, Stubs, installed, leaves, padded_batch, peak_bytes, pretend_installed
from kernel_cases import relative
from torch import nn

tests_tiny = pytest.importorskip("tests.tiny", reason="transformers is not installed")

IN_ONE_LINE = ("verl", "openrlhf", "prime_rl", "transformers", "trl")


def fresh(name, monkeypatch):
    """The adapter's module, imported anew and forgotten afterwards."""
    full = f"siri_kernels.integrations.{name}"
    monkeypatch.delitem(sys.modules, full, raising=False)
    module = importlib.import_module(full)
    monkeypatch.delitem(sys.modules, full)
    return module


@pytest.mark.parametrize("found", ["none", "0.1.dev3+cu13", "99.0"])
@pytest.mark.parametrize("name", IN_ONE_LINE)
def test_another_version_is_refused_in_one_line(name, found, monkeypatch):
    def version(_):
        if found == "none":
            raise importlib.metadata.PackageNotFoundError
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ImportError, match=r"found .*pip install \".*linear_logprob") as caught:
        fresh(name, monkeypatch)
    assert "\n" not in str(caught.value) and found in str(caught.value)


def logprob_and_entropy(hidden, weight, ids, temperature=1.0):
    """The published formula of verl, OpenRLHF and prime-rl alike: log softmax(logits / T)[id] and its entropy."""
    z = (hidden @ weight.T).float() / temperature
    probabilities = z.softmax(-1)
    entropy = z.logsumexp(-1) - (probabilities * z).sum(-1)
    return z.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1), entropy


def assert_same_scores(theirs, ours, batch, *, entropy_gradient=True, tolerance=1e-5):
    """Log-probs, entropies and gradients of two functions of (hidden, weight)."""
    g = torch.Generator().manual_seed(0)
    upstream = [torch.randn(batch.ids.shape, generator=g) for _ in range(2)]
    results = []
    for function in (theirs, ours):
        hidden, weight = leaves(batch)
        logp, entropy = function(hidden, weight)
        loss = (logp.view(upstream[0].shape) * upstream[0]).sum()
        if entropy_gradient:
            loss = loss + (entropy.view(upstream[1].shape) * upstream[1]).sum()
        loss.backward()
        results.append((logp.detach().flatten(), entropy.detach().flatten(), hidden.grad, weight.grad))
    (logp, entropy, *gradients), (my_logp, my_entropy, *my_gradients) = results
    torch.testing.assert_close(my_logp, logp, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(my_entropy, entropy, rtol=tolerance, atol=tolerance)
    assert all(relative(x, y) < tolerance for x, y in zip(my_gradients, gradients, strict=True))


# verl


VERL = ("verl", "verl.utils", "verl.utils.experimental", "verl.utils.kernel", "verl.models", "verl.models.transformers")


@pytest.fixture
def verl_stand_in(monkeypatch):
    """Modules with verl's names at verl's places, for the adapter to find."""
    pretend_installed(monkeypatch, "verl", "0.9.1")
    with Stubs(dict.fromkeys(VERL, "nowhere")):
        for path, name in (
            ("verl.utils.experimental.torch_functional", "FusedLinearForPPO"),
            ("verl.utils.kernel.linear_cross_entropy", "linear_cross_entropy"),
        ):
            module = type(sys)(path)
            setattr(module, name, lambda *args, name=name: ("verl's own", name, args))
            sys.modules[path] = module
        yield


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_verl(verl_stand_in, monkeypatch, temperature):
    adapter = fresh("verl", monkeypatch)
    functional = sys.modules["verl.utils.experimental.torch_functional"]
    kernel = sys.modules["verl.utils.kernel.linear_cross_entropy"]
    batch = padded_batch(1)

    def theirs(hidden, weight):
        return logprob_and_entropy(hidden, weight, batch.ids, temperature)

    head = functional.FusedLinearForPPO(chunk_size=512, impl_backend="liger")
    assert_same_scores(theirs, lambda h, w: head(h, w, batch.ids, temperature), batch)
    assert head(batch.hidden, batch.weight, batch.ids)[0].shape == batch.ids.shape
    flat = kernel.linear_cross_entropy
    assert_same_scores(theirs, lambda h, w: flat(h, w, batch.ids, temperature, "none"), batch)
    assert flat(batch.hidden, batch.weight, batch.ids)[0].shape == (batch.ids.numel(),)
    assert flat(batch.hidden, batch.weight, batch.ids, 1.0, "none", "a group")[0] == "verl's own"
    with pytest.raises(ValueError, match="input_ids must have shape"):
        head(batch.hidden, batch.weight, batch.ids[:, :3])
    adapter.uninstall()
    assert functional.FusedLinearForPPO()[0] == "verl's own"
    assert kernel.linear_cross_entropy()[0] == "verl's own"


def test_verl_itself(monkeypatch):
    """verl's own forward_with_torch_backend on a tiny Qwen2, before and after."""
    folder = installed(monkeypatch, "verl", "0.9", "0.10")
    with Stubs({name: folder / name.replace(".", "/") for name in VERL}):
        functional = importlib.import_module("verl.utils.experimental.torch_functional")
        forward = importlib.import_module("verl.models.transformers.dense_common").forward_with_torch_backend
        real = functional.FusedLinearForPPO
        model = tests_tiny.tiny_model()
        ids = torch.randint(3, 90, (2, 9))
        batch = padded_batch(2)

        def score():
            model.zero_grad()
            attention = torch.ones_like(ids)
            out = forward(model, input_ids=ids, attention_mask=attention, return_dict=True, temperature=0.8)
            (out.log_probs.sum() + out.entropy.sum()).backward()
            return out.log_probs.detach(), out.entropy.detach(), [p.grad.clone() for p in model.parameters()]

        before = score()
        adapter = fresh("verl", monkeypatch)
        assert functional.FusedLinearForPPO is adapter.FusedLinearForPPO
        after = score()
        adapter.uninstall()
        assert functional.FusedLinearForPPO is real
        torch.testing.assert_close(after[:2], before[:2], rtol=1e-5, atol=1e-5)
        assert all(relative(x, y) < 1e-5 for x, y in zip(after[2], before[2], strict=True))
        head, ours = real(), adapter.FusedLinearForPPO()
        assert_same_scores(lambda h, w: head(h, w, batch.ids, 0.9), lambda h, w: ours(h, w, batch.ids, 0.9), batch)


# prime-rl


PRIME = "prime_rl.trainer.models.layers"


@pytest.fixture
def prime_stand_in(monkeypatch):
    pretend_installed(monkeypatch, "prime-rl", "0.8.0")
    parts = PRIME.split(".")
    with Stubs({".".join(parts[: i + 1]): "nowhere" for i in range(len(parts))}):
        module = type(sys)(f"{PRIME}.lm_head")

        class FusedOutputLinear(nn.Linear):
            def forward(self, hidden_states, labels=None, temperature=None):
                """prime-rl's"""

        module.FusedOutputLinear = FusedOutputLinear
        sys.modules[module.__name__] = module
        yield module


def test_prime_rl(prime_stand_in, monkeypatch):
    theirs = prime_stand_in.FusedOutputLinear
    adapter = fresh("prime_rl", monkeypatch)
    adapter.install()
    adapter.install()
    batch = padded_batch(3)
    temperature = torch.rand(batch.ids.shape) + 0.5
    head = prime_stand_in.FusedOutputLinear(in_features=16, out_features=VOCAB, chunk_size=512)

    def ours(hidden, weight):
        del head._parameters["weight"]
        head.weight = weight  # a leaf of the test
        out = head(hidden, batch.ids, temperature=temperature)
        return out["logprobs"], out["entropy"]

    head._parameters["weight"] = None
    assert_same_scores(lambda h, w: logprob_and_entropy(h, w, batch.ids, temperature[..., None]), ours, batch)
    with pytest.raises(ValueError, match="pass labels"):
        head(batch.hidden)
    adapter.uninstall()
    assert prime_stand_in.FusedOutputLinear is theirs


def test_a_prime_rl_with_another_head_is_refused(prime_stand_in, monkeypatch):
    prime_stand_in.FusedOutputLinear.forward = lambda self, hidden_states, mask, labels: None
    adapter = fresh("prime_rl", monkeypatch)
    with pytest.raises(ImportError, match="linear_logprob"):
        adapter.install()


def test_prime_rl_itself(monkeypatch):
    """inject_prime_lm_head on a tiny Qwen2, with and without the adapter: per-token temperatures."""
    folder = installed(monkeypatch, "prime-rl", "0.5", "0.9")
    parts = PRIME.split(".")
    packages = {".".join(parts[: i + 1]): folder.joinpath(*parts[: i + 1]) for i in range(len(parts))}
    packages["prime_rl.utils"] = folder / "prime_rl" / "utils"
    with Stubs(packages, ("prime_rl.utils.logger",)):
        lm_head = importlib.import_module(f"{PRIME}.lm_head")
        adapter = fresh("prime_rl", monkeypatch)
        ids, results = torch.randint(3, 90, (1, 12)), []
        temperature = torch.rand(1, 12) + 0.5
        for install in (lambda: None, adapter.install):
            install()
            model = tests_tiny.tiny_model()
            lm_head.inject_prime_lm_head(model, chunk_size=5)
            out = model(input_ids=ids, labels=ids.roll(-1, 1), temperature=temperature)
            out["logprobs"].sum().backward()
            results.append((type(model.lm_head), out, {n: p.grad for n, p in model.named_parameters()}))
        (theirs, out, gradients), (ours, mine, my_gradients) = results
        assert ours is adapter.FusedOutputLinear and theirs is not ours and gradients.keys() == my_gradients.keys()
        for name in ("logprobs", "entropy"):
            torch.testing.assert_close(mine[name], out[name], rtol=1e-5, atol=1e-5)
        assert all(relative(my_gradients[n], gradients[n]) < 1e-5 for n in gradients)


# OpenRLHF


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


# a loop of one's own


@pytest.mark.parametrize("head", ["linear", "fused"])
def test_a_plain_loop(head):
    from siri_kernels import FusedLMHead
    from siri_kernels.integrations.transformers import policy_loss, token_logprobs

    model = tests_tiny.tiny_model()
    ids = torch.randint(3, 90, (3, 10))
    attention = torch.ones_like(ids)
    attention[0, :3] = 0
    completion = (torch.arange(10) > 4).long().expand(3, 10) * (torch.arange(10) < torch.tensor([10, 7, 9])[:, None])
    advantages = torch.tensor([1.0, -1.0, 0.5])
    z = model(input_ids=ids, attention_mask=attention).logits[:, :-1].float() / 0.8
    logp, entropy = logprob_and_entropy(z, torch.eye(96), ids[:, 1:])
    old = logp.detach() + 0.1
    mask = completion[:, 1:].bool()
    ratio = (logp - old).exp()
    term = -torch.min(ratio * advantages[:, None], ratio.clamp(0.8, 1.28) * advantages[:, None])
    loss = (term * mask).sum() / mask.sum()
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    if head == "fused":
        model.lm_head = FusedLMHead.of(model.lm_head)
    result = policy_loss(model, ids, attention, completion, advantages, old_logp=old, temperature=0.8)
    result.loss.backward()
    torch.testing.assert_close(result.loss.detach(), loss.detach(), rtol=1e-5, atol=1e-6)
    for mine, theirs in zip((p.grad for p in model.parameters()), gradients, strict=True):
        assert relative(mine, theirs) < 1e-5
    torch.testing.assert_close(result.logp, (logp * mask).detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.entropy, (entropy * mask).detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        token_logprobs(model, ids, attention, completion, temperature=0.8)[0], logp * mask, rtol=1e-5, atol=1e-5
    )


def test_heads_that_a_loop_must_not_get_wrong():
    from siri_kernels import FusedLMHead
    from siri_kernels.integrations.transformers import token_logprobs

    ids = torch.ones(1, 4, dtype=torch.long)
    model = tests_tiny.tiny_model()
    model.lm_head.lora_A = nn.Identity()
    with pytest.raises(ValueError, match=r"FusedLMHead\.of"):
        token_logprobs(model, ids, ids)
    model = tests_tiny.tiny_model()
    model.lm_head, model.config.final_logit_softcapping = FusedLMHead.of(model.lm_head), 30.0
    with pytest.raises(ValueError, match="softcap=30"):
        token_logprobs(model, ids, ids)
    model.config.logit_scale = 0.5
    with pytest.raises(ValueError, match="scales its logits"):
        token_logprobs(model, ids, ids)


def test_logits_of_a_plain_loop_are_never_whole():
    from siri_kernels.integrations.transformers import policy_loss

    model = tests_tiny.tiny_model(vocab_size=32768, max_position_embeddings=1024)
    ids = torch.randint(3, 90, (2, 800))
    ones = torch.ones_like(ids)

    def step():
        policy_loss(model, ids, ones, ones, torch.tensor([1.0, -1.0])).loss.backward()

    assert peak_bytes(step) < 0.6 * 1600 * 32768 * 4
