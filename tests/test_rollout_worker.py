"""Checksums that add up over fused tensors, and the sums of the gap between engine and trainer."""

import math

import pytest
import torch

from siri.distributed import ALONE
from siri.mismatch import Mismatch
from siri.rollout.worker import bit_sum, differing, expected


def test_checksums_add_up_over_parts_and_ignore_padding():
    for dtype in (torch.bfloat16, torch.float32):
        parts = [torch.randn(6, 5).to(dtype) for _ in range(3)]
        whole = torch.cat([*parts, torch.zeros(4, 5, dtype=dtype)])
        assert bit_sum(whole) == sum(map(bit_sum, parts)) % 2**64
        assert bit_sum(whole.T) == bit_sum(whole), "layout does not count"
        nudged = whole.clone()
        nudged[2, 3] = torch.nextafter(nudged[2, 3].float(), torch.tensor(9.0)) if dtype == torch.float32 else 1.0
        assert bit_sum(nudged) != bit_sum(whole)


def test_differing_names_fused_stale_and_missing_tensors():
    q, k, v, norm = torch.randn(8, 4), torch.randn(2, 4), torch.randn(2, 4), torch.randn(4)
    sent = {f"l.0.{n}_proj.weight": [bit_sum(t), t.numel()] for n, t in (("q", q), ("k", k), ("v", v))}
    sent["norm.weight"] = [bit_sum(norm), 4]
    fused = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    assert set(expected(sent, fused)) == {"l.0.qkv_proj.weight", "norm.weight"}

    def there(**changes):
        sums = {"l.0.qkv_proj.weight": [bit_sum(torch.cat([q, k, v])), 48], "norm.weight": [bit_sum(norm), 4]}
        return {"sums": sums | changes, "fused": fused}

    assert differing(sent, there()) == []
    stale = {"l.0.qkv_proj.weight": [bit_sum(torch.cat([q, k + 1, v])), 48]}
    assert differing(sent, there(**stale)) == ["l.0.qkv_proj.weight"]
    assert differing(sent, there(**{"l.0.qkv_proj.weight": [0, 0]})) == [], "repacked and dropped: cannot be compared"
    assert differing(sent, there(**{"other.weight": [3, 4]})) == ["other.weight"], "nobody sent it"


def test_mismatch_is_that_of_the_counted_tokens():
    trainer = torch.tensor([-1.0, -2.0, -3.0, -4.0, math.nan, -1.0])
    engine = torch.tensor([-1.5, -2.0, -1.0, -9.0, -1.0, -1.9])
    counted = torch.tensor([True, True, True, False, True, True])
    found = Mismatch(0.5, 2.0, torch.device("cpu"))
    found.add(trainer[:3], engine[:3], counted[:3])
    found.add(trainer[3:], engine[3:], counted[3:])
    metrics = found.metrics(ALONE)
    assert metrics["mismatch_abs_mean"] == pytest.approx((0.5 + 0 + 2 + 0.9) / 4)
    assert metrics["mismatch_outside_fraction"] == pytest.approx(2 / 4), "exp(-2) < 0.5 and exp(0.9) > 2"
    assert math.isnan(Mismatch(0.5, 2.0, torch.device("cpu")).metrics(ALONE)["mismatch_abs_mean"])
