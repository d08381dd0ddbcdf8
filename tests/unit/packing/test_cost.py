"""FLOPs against torch's own counter, and the calibrated ratio from where a recipe names it."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from siri.errors import InputError
from siri.packing import R1_DISTILL_LINEAR, R1_DISTILL_QUADRATIC
from siri.packing.flops import forward_flops, read_cost_ratio, sequence_cost, training_flops
from siri.runtime.stopwatch import Stopwatch
from tests.support.tiny import tiny_model, tiny_policy
from tests.support.update import update_policy
from tests.unit.train.test_update import config, make_samples


def r1_distill():
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
        num_key_value_heads=2,
    )  # fmt: skip


def test_cost_of_r1_distill_from_its_config():
    cost = sequence_cost(r1_distill())
    linear, quadratic = 2 * cost(1.0) - cost(2.0) / 2, cost(2.0) / 2 - cost(1.0)
    assert linear == pytest.approx(R1_DISTILL_LINEAR, rel=0.01)
    assert quadratic == pytest.approx(R1_DISTILL_QUADRATIC, rel=1e-6)
    slower = sequence_cost(r1_distill(), cost_ratio=3.2)
    assert slower(2.0) / 2 - slower(1.0) == pytest.approx(2 * quadratic)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_matrix_products_are_those_that_torch_counts(kind):
    model = tiny_model(kind, hidden_size=40, intermediate_size=56, num_key_value_heads=1)
    tokens = 12
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(torch.arange(3, 3 + tokens)[None])
    layers, head, attention = forward_flops(model.config)
    # torch counts the whole square of QK' and PV, of which a causal mask leaves half; older releases of transformers
    # multiply the angles of the rotary embedding as matrices as well
    expected = (layers + head) * tokens + 2 * attention * tokens**2
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-3)


def test_training_flops_by_hand():
    config = r1_distill()
    layers, head, attention = forward_flops(config)
    forward = layers * 100 + attention * 100**2
    assert training_flops(config, [100], [100], [True]) == pytest.approx(3 * (forward + head * 100))
    assert training_flops(config, [100], [60], [True]) == pytest.approx(3 * (forward + head * 60)), (
        "prompts skip the head"
    )
    assert training_flops(config, [100], [60], [False]) == pytest.approx(3 * forward + head * 60), (
        "no gradient in the head"
    )
    assert training_flops(config, [100], [60], [True], scored=True) == pytest.approx(4 * (forward + head * 60))
    both = training_flops(config, [100, 300], [60, 200], [True, False])
    assert both == pytest.approx(
        sum(training_flops(config, [n], [r], [a]) for n, r, a in ((100, 60, 1), (300, 200, 0)))
    )
    assert training_flops(config, [], [], []) == 0
    layer_weights = layers / 2  # 6 FLOPs a weight and token, as everybody counts
    assert training_flops(config, [1], [0], [True]) == pytest.approx(6 * layer_weights, rel=1e-3)


def test_the_ratio_of_a_number_and_of_a_file(tmp_path):
    assert read_cost_ratio(1.25) == 1.25
    path = tmp_path / "ratio.json"
    path.write_text(json.dumps({"cost_ratio": 2, "device": "any"}))
    assert read_cost_ratio(str(path)) == 2.0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        ("{", "not JSON"),
        ("[1]", "no number above 0"),
        ('{"ratio": 1.0}', "no number above 0"),
        ('{"cost_ratio": 0}', "no number above 0"),
        ('{"cost_ratio": true}', "no number above 0"),
        ('{"cost_ratio": NaN}', "no number above 0"),
        ('{"cost_ratio": "fast"}', "no number above 0"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, content, says):
    path = tmp_path / "ratio.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=says) as caught:
        read_cost_ratio(str(path))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value) and "calibrate" in str(caught.value)


def test_an_update_counts_what_it_runs():
    """The second mini-batch scores its old log-probs; zero advantages have no gradient, and do not run at all without
    score_all."""
    first, second = make_samples(1, count=5), make_samples(2, count=6)
    policy = tiny_policy()
    layers, head, attention = forward_flops(policy.model.config)

    def expected(samples, passes):
        total = 0.0
        for sample in samples:
            alive = sample.counted and sample.advantage != 0
            total += passes * (layers * len(sample) + attention * len(sample) ** 2)
            total += head * len(sample.response_ids) * (passes - 2 + 2 * alive)
        return total

    def counted(**options):
        optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.0)
        watch = Stopwatch(torch.device("cpu"))
        update = update_policy(policy, optimizer, [first, second], config(**options), token_budget=120, watch=watch)
        return update["training_flops"]

    assert counted() == pytest.approx(expected(first, 3) + expected(second, 4))
    run = [[sample for sample in samples if sample.advantage and sample.counted] for samples in (first, second)]
    assert len(run[0]) < len(first)
    assert counted(score_all=False) == pytest.approx(expected(run[0], 3) + expected(run[1], 4))
