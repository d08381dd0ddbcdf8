"""FusedLMHead in models: logits, generation, tied embeddings, adapters, torch.compile, and the operators' contracts."""

import pytest
import torch
from siri_kernels import FusedLMHead, linear_grpo_loss, linear_logprob, logprob_from_logits
from siri_kernels.adapter import with_adapter
from siri_kernels.chunked import Needs
from siri_kernels.loss.spec import LossSettings
from siri_kernels.ops import grpo as ops_grpo
from siri_kernels.ops import logprob as ops_logprob
from siri_kernels.ops.operator import Operator
from siri_kernels.ops.settings import (
    GrpoSettings,
    HeadSettings,
    LogitsSettings,
    LogprobBackwardSettings,
    LogprobSettings,
    Placement,
    ScaleSettings,
    TokenSettings,
)
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.support.kernel_cases import make_case, relative, run


class TinyModel(nn.Module):
    def __init__(self, vocab=40, d=16, tied=False):
        super().__init__()
        self.embed = nn.Embedding(vocab, d)
        self.layer = nn.Linear(d, d)
        self.lm_head = nn.Linear(d, vocab, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight

    def hidden(self, ids):
        return torch.tanh(self.layer(self.embed(ids)))

    def forward(self, ids):
        return self.lm_head(self.hidden(ids))


def batch(n=30, vocab=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(vocab, (n,), generator=g), torch.randint(vocab, (n,), generator=g), torch.randn(n, generator=g)


def plain_loss(logits, targets, advantages):
    logp = logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    return -(logp.exp() / logp.exp().detach() * advantages).mean()


@pytest.mark.parametrize("tied", [False, True])
def test_it_replaces_an_lm_head(tied):
    torch.manual_seed(0)
    model = TinyModel(tied=tied)
    ids, targets, advantages = batch()
    logits, names = model(ids), set(model.state_dict())
    plain_loss(logits, targets, advantages).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.lm_head = FusedLMHead.of(model.lm_head)
    assert torch.equal(model(ids), logits) and set(model.state_dict()) == names
    assert (model.lm_head.weight is model.embed.weight) == tied
    result = model.lm_head.grpo_loss(model.hidden(ids), targets, advantages)
    result.loss.backward()
    for name, p in model.named_parameters():
        assert relative(p.grad, expected[name]) < 1e-5, name
    torch.testing.assert_close(model.lm_head.logprob(model.hidden(ids), targets), result.logp)


def test_a_head_with_bias_and_softcap():
    linear = nn.Linear(16, 40)
    head = FusedLMHead.of(linear, softcap=5.0)
    hidden, (_, targets, _) = torch.randn(30, 16), batch()
    expected = (5 * torch.tanh(linear(hidden) / 5)).log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    torch.testing.assert_close(head.logprob(hidden, targets), expected)


def test_hooks_fire_and_only_hidden_is_seen_by_them():
    head = FusedLMHead.of(nn.Linear(16, 40))
    seen = []
    head.register_forward_pre_hook(lambda _, args: seen.append([type(a) for a in args]))
    _, targets, advantages = batch()
    head.grpo_loss(torch.randn(30, 16), targets, advantages, old_logp=torch.zeros(30))
    head.logprob(torch.randn(30, 16), targets)
    assert len(seen) == 2 and all(kinds.count(torch.Tensor) == 1 for kinds in seen)


class LoraLinear(nn.Module):
    """The part of a PEFT LoRA layer that FusedLMHead reads."""

    def __init__(self, base_layer, rank, scaling):
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"a": nn.Linear(base_layer.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"a": nn.Linear(rank, base_layer.out_features, bias=False)})
        self.lora_dropout = nn.ModuleDict({"a": nn.Identity()})
        self.scaling, self.active_adapters, self.merged = {"a": scaling}, ["a"], False

    def forward(self, x):
        return self.base_layer(x) + self.scaling["a"] * self.lora_B["a"](self.lora_A["a"](x))


@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_a_lora_head(memory):
    torch.manual_seed(1)
    layer = LoraLinear(nn.Linear(16, 40), rank=3, scaling=0.5)
    _, targets, advantages = batch()
    hidden = torch.randn(30, 16, requires_grad=True)
    plain_loss(layer(hidden), targets, advantages).backward()
    trained = [layer.lora_A["a"].weight, layer.lora_B["a"].weight, hidden]
    expected = [x.grad.clone() for x in trained]
    for x in trained:
        x.grad = None
    head = FusedLMHead.of(layer)
    assert torch.equal(head(hidden), layer(hidden))
    head.grpo_loss(hidden, targets, advantages, memory=memory).loss.backward()
    assert all(relative(x.grad, y) < 1e-5 for x, y in zip(trained, expected, strict=True))
    assert layer.base_layer.weight.grad is None
    layer.merged = True
    base = layer.base_layer(hidden).log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    torch.testing.assert_close(head.logprob(hidden, targets), base)


@pytest.mark.parametrize(
    ("dtype", "rank", "columns"), [(torch.bfloat16, 3, 24), (torch.bfloat16, 8, 24), (torch.float32, 3, 19)]
)
def test_an_adapter_of_any_rank_has_aligned_rows(dtype, rank, columns):
    """In half precision, where the anchored GEMM and tensor cores want multiples of 16 bytes; the padding is zeros."""
    g, limit = torch.Generator().manual_seed(5), 1e-5 if dtype == torch.float32 else 1e-2
    x, w, u, b = (torch.randn(shape, generator=g).to(dtype) for shape in ((9, 16), (40, 16), (9, rank), (40, rank)))
    u, b = u.requires_grad_(), b.requires_grad_()
    joined, matrix, frozen = with_adapter(x, w, (u, b))
    assert joined.shape == (9, columns) and matrix.shape == (40, columns) and frozen == 16
    exact = x.double() @ w.double().T + u.double() @ b.double().T
    torch.testing.assert_close(joined.double() @ matrix.double().T, exact)
    loss = linear_grpo_loss(x, w, torch.arange(9), torch.ones(9), low_rank=(u, b)).loss
    gradients = torch.autograd.grad(loss, (u, b))
    plain = [t.detach().double().requires_grad_() for t in (u, b)]
    logits = x.double() @ w.double().T + plain[0] @ plain[1].T
    expected = torch.autograd.grad(plain_loss(logits, torch.arange(9), torch.ones(9)), plain)
    assert all(
        relative(mine, reference_gradient) < limit for mine, reference_gradient in zip(gradients, expected, strict=True)
    )


def test_what_is_not_a_head():
    with pytest.raises(ValueError, match=r"takes an .* or a LoRA layer"):
        FusedLMHead.of(nn.ReLU())


@pytest.mark.parametrize("options", [{}, {"loss": "gspo"}, {"memory": "lean"}], ids=str)
def test_a_compiled_model_has_no_graph_break(options):
    torch.manual_seed(2)
    model = TinyModel()
    model.lm_head = FusedLMHead.of(model.lm_head)
    ids, targets, advantages = batch()
    cu_seqlens = torch.tensor([0, 10, 30])

    def step(ids, targets, advantages, cu_seqlens):
        result = model.lm_head.grpo_loss(model.hidden(ids), targets, advantages, cu_seqlens=cu_seqlens, **options)
        return result.loss * 2, result.metrics["entropy_mean"]

    gradients = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        loss, _ = function(ids, targets, advantages, cu_seqlens)
        loss.backward()
        gradients.append((loss.detach(), [p.grad for p in model.parameters()]))
    (eager, eager_gradients), (compiled, compiled_gradients) = gradients
    assert torch.equal(eager, compiled)
    assert all(torch.equal(x, y) for x, y in zip(eager_gradients, compiled_gradients, strict=True))


def test_a_compiled_logprob_has_no_graph_break():
    case = make_case(3)
    weight = case.weight.clone().requires_grad_()

    def step(weight):
        logp, entropy = linear_logprob(case.hidden, weight, case.target_ids, return_entropy=True, temperature=0.8)
        return (logp.exp() * entropy).sum()

    step(weight).backward()
    expected, weight.grad = weight.grad, None
    torch.compile(step, fullgraph=True, backend="aot_eager")(weight).backward()
    assert torch.equal(weight.grad, expected)


def laid_out(x, layout):
    """x with other strides: every second column of a wider matrix, or columns one after the other."""
    if layout == "sliced":
        return x.repeat_interleave(2, -1)[..., ::2]
    return x.mT.contiguous().mT if layout == "transposed" and x.dim() == 2 else x


def operators(layout="plain"):
    """Every operator and a call of it."""
    case = make_case(4, lengths=(3, 4), d=6, vocab=11)
    for name, x in vars(case).items():
        setattr(case, name, laid_out(x, layout))
    head, placement, loss = HeadSettings(), Placement("torch", budget=1 << 20), LossSettings(entropy_coef=0.1)
    needs = Needs(hidden=True, weight=True, bias=True)
    leaves = {name: getattr(case, name).requires_grad_() for name in ("hidden", "weight", "bias")}
    plain = {name: leaf.detach() for name, leaf in leaves.items()}
    names = ("advantages", "old_logp", "rollout_logp", "mask", "cu_seqlens")
    per_token = {**{name: getattr(case, name) for name in names}, "denominator": None}
    common = {"target_ids": case.target_ids, "temperature_N": None, "keep": None}
    kept = {**common, "main_grad": None}
    logprob = {**kept, "anchor": None, "offset": None, "settings": LogprobSettings(head, placement)}
    rows = ops_logprob.linear_logprob(**plain, **logprob)._asdict()
    del rows["offset"]  # which the backward does not take
    upstream = {"d_logp": torch.ones(7), "d_entropy": torch.ones(7)}
    logits = {"logits": laid_out(torch.randn(7, 11), layout).requires_grad_()}
    logits |= {"target_ids": case.target_ids, "temperature_N": None}
    logits["settings"] = LogitsSettings("torch")
    plain_logits = {**logits, "logits": logits["logits"].detach()}
    rows_of_logits = ops_logprob.logits_logprob(**plain_logits)._asdict()
    log_probs = {name: torch.randn(7).requires_grad_() for name in ("logp", "entropy")}
    return {
        "linear_grpo": (
            ops_grpo.linear_grpo,
            {**leaves, **kept, **per_token, "keep_lengths": None, "offset": None},
            GrpoSettings(head, loss, placement, needs),
        ),
        "scaled": (
            ops_grpo.scale,
            {"gradient": torch.randn(5, 3), "upstream": torch.tensor(0.3)},
            ScaleSettings("bfloat16"),
        ),
        "grpo_tokens": (ops_grpo.grpo_tokens, {**log_probs, **per_token, "computed": None}, TokenSettings(loss)),
        "linear_logprob": (ops_logprob.linear_logprob, {**leaves, **logprob}, logprob["settings"]),
        "linear_logprob_backward": (
            ops_logprob.linear_logprob_backward,
            {**upstream, **rows, **plain, **common},
            LogprobBackwardSettings(head, placement, needs, fp32_weight=False),
        ),
        "logits_logprob": (ops_logprob.logits_logprob, logits, logits["settings"]),
        "logits_logprob_backward": (
            ops_logprob.logits_logprob_backward,
            {**upstream, "d_entropy": None, **rows_of_logits, **plain_logits},
            logits["settings"],
        ),
    }


OPERATORS = (
    "linear_grpo",
    "scaled",
    "grpo_tokens",
    "linear_logprob",
    "linear_logprob_backward",
    "logits_logprob",
    "logits_logprob_backward",
)


LAYOUTS = ("plain", "sliced", "transposed")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name, layout):
    operator, tensors, settings = operators(layout)[name]
    arguments, options = operator.flat({**tensors, "settings": settings})
    results = torch.library.opcheck(operator.library_operator, arguments, options)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_a_compiler_is_told_the_strides(name, layout):
    """What the fake operator makes is the real one's outputs but for the numbers."""
    operator, tensors, settings = operators(layout)[name]
    arguments, options = operator.flat({**tensors, "settings": settings})
    detached = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
    real = operator.library_operator(*detached, **options)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in detached]
        fake = operator.library_operator(*fakes, **options)
    pairs = zip(real, fake, strict=True) if isinstance(real, tuple) else [(real, fake)]
    for made, imitated in pairs:
        assert (made.shape, made.stride(), made.dtype) == (imitated.shape, imitated.stride(), imitated.dtype)


@pytest.mark.parametrize("memory", ["fast", "lean"])
@pytest.mark.parametrize("layout", ["sliced", "transposed"])
def test_a_compiled_step_on_strided_inputs(layout, memory):
    case = make_case(6, lengths=(20,), d=16, vocab=40)
    outcomes = []
    for wrap in (lambda f: f, lambda f: torch.compile(f, fullgraph=True)):
        hidden, weight = (laid_out(x.clone(), layout).requires_grad_() for x in (case.hidden, case.weight))
        step = wrap(lambda x, w: linear_grpo_loss(x, w, case.target_ids, case.advantages[:1], memory=memory,
                                                  cu_seqlens=case.cu_seqlens).loss * 2)  # fmt: skip
        step(hidden, weight).backward()
        outcomes.append((hidden.grad, weight.grad))
    assert all(relative(x, y) < 1e-6 for x, y in zip(*outcomes, strict=True))


@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_second_derivatives_are_refused(memory):
    case = make_case(7, lengths=(4,), d=8, vocab=10)
    hidden, weight = case.hidden.requires_grad_(), case.weight
    options = {"cu_seqlens": case.cu_seqlens}
    loss = linear_grpo_loss(hidden, weight, case.target_ids, case.advantages[:1], memory=memory, **options).loss
    with pytest.raises(ValueError, match=r"has no second derivatives: leave out create_graph=True, or use impl='ref"):
        torch.autograd.grad(loss, hidden, create_graph=True)
    logits = torch.randn(4, 10, requires_grad=True)
    with pytest.raises(ValueError, match=r"^logits_logprob has no second derivatives"):
        torch.autograd.grad(logprob_from_logits(logits, case.target_ids).sum(), logits, create_graph=True)
    reference = linear_grpo_loss(hidden, weight, case.target_ids, case.advantages[:1], impl="reference", **options)
    (first,) = torch.autograd.grad(reference.loss, hidden, create_graph=True)
    assert first.requires_grad


def test_every_operator_is_checked():
    assert set(operators()) == set(OPERATORS)
    registered = [x for module in (ops_grpo, ops_logprob) for x in vars(module).values() if isinstance(x, Operator)]
    # interpreter/test_single_chunk.py has the one that only the Triton path knows
    assert {operator for operator, *_ in operators().values()} == set(registered) - {ops_grpo.linear_grpo_weight}


def test_an_operator_takes_no_argument_by_its_position():
    operator, tensors, settings = operators()["grpo_tokens"]
    misnamed = {**tensors, "logits": tensors["logp"], "settings": settings}
    del misnamed["logp"]
    for arguments, options in ((tensors.values(), {"settings": settings}), ((), misnamed)):
        with pytest.raises(TypeError, match=r"grpo_tokens takes logp, entropy, .* and settings, all by keyword"):
            operator(*arguments, **options)
    schema = str(operators()["linear_grpo"][0].library_operator._opoverload._schema)
    assert "*, float head_temperature, float? head_softcap" in schema and "float? loss_clip_low" in schema, schema


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("options", [{}, {"entropy_coef": 0.1}, {"memory": "lean", "entropy_coef": 0.1}], ids=str)
def test_autocast_does_not_reach_inside(impl, options):
    """Not a bit of any result changes."""
    case = make_case(5)
    tensors = {"cu_seqlens": case.cu_seqlens}
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            results.append(run(linear_grpo_loss, case, tensors=tensors, impl=impl, **options))
    (outside, gradients), (inside, inside_gradients) = results
    assert all(torch.equal(getattr(inside, name), getattr(outside, name)) for name in ("loss", "logp", "entropy"))
    if impl == "torch":  # the reference's backward is autograd's own, which runs under whatever is set around it
        assert all(torch.equal(x, y) for x, y in zip(inside_gradients, gradients, strict=True))


def test_autocast_does_not_reach_given_logits():
    logits, target_ids = torch.randn(7, 300) * 4, torch.arange(7)
    outside = logprob_from_logits(logits, target_ids, return_entropy=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = logprob_from_logits(logits, target_ids, return_entropy=True)
    assert all(torch.equal(x, y) for x, y in zip(inside, outside, strict=True))


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_with_a_fused_head_can_be_resized(tied):
    """transformers insists on an nn.Linear."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 40}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": tied}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **sizes, **heads))
    old = model.lm_head.weight.detach().clone()
    model.lm_head = FusedLMHead.of(model.lm_head)
    assert (model.lm_head.in_features, model.lm_head.out_features) == (16, 40)
    for size in (50, 30):
        model.resize_token_embeddings(size, mean_resizing=False)
        head = FusedLMHead.of(model.lm_head)
        kept = min(size, 40)
        assert head.weight.shape == (size, 16) and torch.equal(head.weight[:kept], old[:kept])
        ids, targets, _ = batch(vocab=size)
        hidden = torch.randn(30, 16)
        expected = head(hidden).log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
        torch.testing.assert_close(head.logprob(hidden, targets), expected)
        assert model(ids[None]).logits.shape == (1, 30, size)
        model.lm_head = head
