"""The real TRL GRPOTrainer trains the same with and without the adapter."""

import os
import sys

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("trl", reason="trl is not installed")

from datasets import Dataset
from siri_kernels import api, chunked
from siri_kernels.integrations import padded
from siri_kernels.integrations.trl import FusedGRPO, FusedGRPOTrainer, add_fused_lm_head
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from tests.support.integration_cases import peak_bytes
from tests.support.tiny import word_tokenizer

# TRL asks transformers for what is deprecated there
pytestmark = pytest.mark.filterwarnings(r"default:.*deprecated:FutureWarning:transformers\.")
STEPS = 5
FUSED = {  # TRL's settings that linear_grpo_loss has
    "dapo": {"loss_type": "dapo"},
    "grpo": {"loss_type": "grpo", "temperature": 0.8},
    "bnpo": {"loss_type": "bnpo", "steps_per_generation": 4},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.05},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-3, "epsilon_high": 4e-3},
    "two-sided": {"loss_type": "dapo", "delta": 1.3},
    "fp32 head": {"loss_type": "dapo", "cast_lm_head_to_fp32": True},
}
THEIRS = {  # settings with terms it lacks: TRL's loss on our log-probs
    "sapo": {"loss_type": "sapo"},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence", "learning_rate": 0.03},  # sums over tokens
    "vespo": {"loss_type": "vespo"},
    "entropy bonus": {"loss_type": "dapo", "entropy_coef": 0.05},
    "entropy quantile": {"loss_type": "bnpo", "top_entropy_quantile": 0.5},
    "tight two-sided": {"loss_type": "bnpo", "delta": 1.1},
    "kl": {"loss_type": "dapo", "beta": 0.05},
}


def tiny_qwen2(vocab=96, **settings):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "initializer_range": 0.2, "tie_word_embeddings": False}
    ids = {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    config = AutoConfig.for_model("qwen2", vocab_size=vocab, **sizes, **ids, **settings)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


class Gradients(TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


def reward(completion_ids, **_):
    return [len(set(ids)) / len(ids) + ids[0] / 96 for ids in completion_ids]


def trainer(kind, folder, model=None, **settings):
    """5 SGD steps in fp32: Adam would turn rounding errors of zero gradients (key biases) into whole steps."""
    prompts = ["w4 w5 w6 w7", "w8 w9", "w10"]
    defaults = {"max_steps": STEPS, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    defaults |= {"num_generations": 4, "max_completion_length": 12, "num_iterations": 2, "seed": 3}
    defaults |= {"optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant", "max_grad_norm": 1e9}
    defaults |= {"bf16": False, "use_cpu": True, "report_to": [], "logging_steps": 1, "save_strategy": "no"}
    arguments = GRPOConfig(output_dir=str(folder), disable_tqdm=True, **{**defaults, **settings})
    model = model or tiny_qwen2()
    if arguments.beta:  # TRL loads the reference model from the policy's name
        model.config._name_or_path = str(folder / "policy")
        model.save_pretrained(folder / "policy")
    data = Dataset.from_dict({"prompt": [prompts[i % 3] for i in range(40)]})
    made = kind(
        model=model,
        reward_funcs=reward,
        args=arguments,
        train_dataset=data,
        processing_class=word_tokenizer(),
        callbacks=[Gradients()],
    )
    made.gradients = next(c for c in made.callback_handler.callbacks if isinstance(c, Gradients)).steps
    return made


def assert_same_training(theirs, ours):
    logs = [[row for row in t.state.log_history if "loss" in row] for t in (theirs, ours)]
    assert len(logs[0]) == len(logs[1]) == STEPS
    timed = ("time", "_per_second", "runtime")
    for step, (row, mine) in enumerate(zip(*logs, strict=True)):
        assert row.keys() == mine.keys()
        for name in row:
            if not any(word in name for word in timed):
                assert mine[name] == pytest.approx(row[name], rel=1e-4, abs=2e-5, nan_ok=True), (step, name)
    for step, (row, mine) in enumerate(zip(theirs.gradients, ours.gradients, strict=True)):
        assert row.keys() == mine.keys()
        scale = max(1.0, *(float(g.norm()) for g in row.values()))
        for name in row:
            assert float((row[name] - mine[name]).norm()) <= 1e-5 * scale, (step, name)
    for (name, x), (_, y) in zip(theirs.model.named_parameters(), ours.model.named_parameters(), strict=True):
        torch.testing.assert_close(y, x, rtol=1e-5, atol=1e-5, msg=name)
    return logs[0]


@pytest.mark.parametrize("name", [*FUSED, *THEIRS])
def test_five_steps_are_the_same(name, tmp_path, monkeypatch):
    settings = FUSED.get(name) or THEIRS[name]
    theirs = trainer(GRPOTrainer, tmp_path / "a", **settings)
    theirs.train()
    calls = {"linear_grpo_loss": 0, "linear_logprob": 0}
    for function in calls:

        def counted(*args, function=function, **options):
            calls[function] += 1
            return getattr(api, function)(*args, **options)

        monkeypatch.setattr(padded, function, counted)
    ours = trainer(FusedGRPOTrainer, tmp_path / "b", **settings)
    ours.train()
    log = assert_same_training(theirs, ours)
    assert max(abs(row["loss"]) for row in log) > 1e-4
    assert (calls["linear_grpo_loss"] == 2 * STEPS) == (name in FUSED) and calls["linear_logprob"] > 0
    clipped = [row.get("clip_ratio/region_mean", row.get("cispo_clip_ratio")) for row in log]
    if name in ("gspo", "cispo"):
        assert max(clipped) > 0


def padded_inputs(trainer, seed=0):
    """A micro-batch as TRL hands it to its loss, ragged, with masked tool tokens and vLLM's importance ratios."""
    g = torch.Generator().manual_seed(seed)
    prompt, completion = torch.randint(3, 90, (4, 3), generator=g), torch.randint(3, 90, (4, 7), generator=g)
    prompt_mask = torch.tensor([[0, 0, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1]])
    completion_mask = (torch.arange(7) < torch.tensor([7, 2, 5, 1])[:, None]).long()
    old = -3 + torch.rand(4, 7, generator=g)
    return {
        "prompt_ids": prompt,
        "prompt_mask": prompt_mask,
        "completion_ids": completion,
        "completion_mask": completion_mask,
        "tool_mask": (torch.rand(4, 7, generator=g) > 0.3).long(),
        "advantages": torch.tensor([1.0, -0.5, 0.0, 2.0]),
        "old_per_token_logps": old,
        "importance_sampling_ratio": torch.rand(4, 7, generator=g) * 2,
        "num_items_in_batch": torch.tensor(15),
    }


@pytest.mark.parametrize("name", ["dapo", "grpo", "bnpo", "dr_grpo", "cispo", "gspo", "two-sided"])
def test_tools_and_vllm_corrections_are_in_the_loss(name, tmp_path):
    results = []
    for kind in (GRPOTrainer, FusedGRPOTrainer):
        made = trainer(kind, tmp_path, **FUSED[name])
        made.use_vllm, made.current_gradient_accumulation_steps = True, 2
        made.model.train()
        loss = made.compute_loss(made.model, padded_inputs(made))
        loss.backward()
        results.append((loss.detach(), [p.grad for p in made.model.parameters()]))
    (loss, gradients), (mine, my_gradients) = results
    torch.testing.assert_close(mine, loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(my_gradients, gradients, rtol=1e-4, atol=1e-5)
    assert float(loss.abs()) > 1e-3


def test_a_micro_batch_without_any_token(tmp_path):
    made = trainer(FusedGRPOTrainer, tmp_path)
    made.current_gradient_accumulation_steps = 1
    inputs = padded_inputs(made)
    inputs["completion_mask"] = torch.zeros_like(inputs["completion_mask"])
    loss = made.compute_loss(made.model, inputs)
    loss.backward()
    assert float(loss.detach()) == 0 and all(not p.grad.any() for p in made.model.parameters() if p.grad is not None)


def test_evaluation_and_subclasses(tmp_path):
    class Mine(FusedGRPO, GRPOTrainer):
        pass

    made = trainer(Mine, tmp_path)
    made.current_gradient_accumulation_steps = 1
    made.model.eval()
    inputs = padded_inputs(made)
    with torch.no_grad():
        mine = made.compute_loss(made.model, inputs)
        theirs = GRPOTrainer.compute_loss(made, made.model, inputs)
    torch.testing.assert_close(mine, theirs)
    logits = made.model(input_ids=inputs["completion_ids"], labels=inputs["completion_ids"])
    assert logits.logits.shape == (4, 7, 96) and logits.loss > 0  # an ordinary call is untouched


def test_autocast_rounds_inputs_and_nothing_else(tmp_path):
    """bf16 autocast on fp32 weights, TRL's default: the head sees bf16 inputs, the log-probs stay exact to fp32."""
    made = trainer(FusedGRPOTrainer, tmp_path)
    inputs = padded_inputs(made)
    ids, mask = inputs["completion_ids"], torch.ones_like(inputs["completion_ids"])
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        hidden = made.model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        logp = made.model(input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True).log_probs
    z = hidden.bfloat16().double() @ made.model.lm_head.weight.bfloat16().double().T
    exact = z.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    assert float((logp.double() - exact).abs().max()) < 2e-5


def peak_of_one_loss(kind, folder, vocab, length):
    """Peak of live tensors in one loss and its backward, model included, over the completions' fp32 logits."""
    made = trainer(kind, folder, model=tiny_qwen2(vocab, max_position_embeddings=1024))
    made.current_gradient_accumulation_steps = 1
    ids = torch.randint(3, 90, (4, 2 * length), generator=torch.Generator().manual_seed(0))
    ones = torch.ones(4, length, dtype=torch.long)
    inputs = {**padded_inputs(made), "prompt_ids": ids[:, :length], "completion_ids": ids[:, length:]}
    inputs |= {"prompt_mask": ones, "completion_mask": ones, "tool_mask": ones, "old_per_token_logps": None}
    return peak_bytes(lambda: made.compute_loss(made.model, inputs).backward()) / (4 * length * vocab * 4)


def test_bf16_autocast_trains_as_trl_does(tmp_path):
    """TRL's default precision, through the wrappers that it puts around the model: one gradient but for rounding."""
    first = []
    for kind in (GRPOTrainer, FusedGRPOTrainer):
        made = trainer(kind, tmp_path, bf16=True, max_steps=1)
        made.train()
        first.append(torch.cat([g.flatten() for g in made.gradients[0].values()]))
    difference = float((first[0] - first[1]).norm() / first[0].norm())
    assert 1e-5 < difference < 3e-2


def test_logits_are_never_whole_and_prompts_never_scored(tmp_path, monkeypatch):
    monkeypatch.setitem(chunked.BUDGET["cpu"], "fast", 32 << 20)  # its default holds a problem of this size whole
    assert peak_of_one_loss(FusedGRPOTrainer, tmp_path, 32768, 300) < 0.6
    small = [peak_of_one_loss(kind, tmp_path, 8192, 100) for kind in (GRPOTrainer, FusedGRPOTrainer)]
    assert small[0] > 1 and small[1] < small[0] / 5, small


def test_a_trl_whose_seams_have_moved_is_refused_in_one_line(monkeypatch):
    """Its output without a field that the adapter fills, and a model that it gave no head."""
    monkeypatch.delitem(sys.modules, "siri_kernels.integrations.trl")
    monkeypatch.setattr("trl.trainer.utils.FusedCausalLMOutput", lambda loss=None, log_probs=None: None)
    with pytest.raises(
        ImportError, match=r"takes \(loss, log_probs\), and this adapter needs .*linear_logprob"
    ) as caught:
        import siri_kernels.integrations.trl  # noqa: F401
    assert "\n" not in str(caught.value)
    with pytest.raises(ImportError, match="gave Qwen2ForCausalLM no fused_lm_head"):
        add_fused_lm_head(tiny_qwen2())
