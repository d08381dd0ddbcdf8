"""Checksums that add up over fused tensors, and the sums of the gap between engine and trainer."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from siri.rollout.transfer import FileTransfer
from siri.rollout.worker import SyncWorker, bit_sum, differing, expected
from siri.runtime.ranks import ALONE
from siri.train.mismatch import Mismatch


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


class Inside(SyncWorker):
    """A worker whose model is two layers, with vLLM's runner reduced to what a sync asks of it."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.reloads = 0

        def reload_weights(*, weights_iterator):
            self.reloads += 1
            with torch.no_grad():
                for name, tensor in weights_iterator:
                    model.get_parameter(name).copy_(tensor)

        self.model_runner = SimpleNamespace(reload_weights=reload_weights, get_model=lambda: model)


def test_a_worker_names_its_weights_only_when_told_and_loads_them_once(tmp_path):
    trained, model = (torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)) for _ in range(2))
    files, worker = FileTransfer(tmp_path / "weights"), Inside(model)
    assert json.loads(worker.siri_load(str(tmp_path / "elsewhere"))) == {"unseen": True} and not worker.reloads
    files.write(iter(trained.named_parameters()), "v1")
    found = json.loads(worker.siri_load(str(files.folder)))
    assert found["damaged"] == [] and differing(files.sums, found) == []
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), model.parameters(), strict=True))
    assert json.loads(worker.siri_version()) is None, "nobody has compared them yet"
    worker.siri_mark("v1")
    assert json.loads(worker.siri_version()) == "v1"
    assert json.loads(worker.siri_load(str(files.folder))) == found and worker.reloads == 1
    files.write(iter(trained.named_parameters()), "v2")
    (shard,) = files.folder.glob("*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-3] ^= 64
    shard.write_bytes(data)
    found = json.loads(worker.siri_load(str(files.folder)))
    assert len(found["damaged"]) == 1 and differing(files.sums, found) == found["damaged"]
    assert json.loads(worker.siri_version()) is None, "the weights before are gone"
    worker.siri_mark("v2")
    worker.siri_mark("")
    assert json.loads(worker.siri_version()) is None and json.loads(worker.siri_present())["sums"] == found["sums"]
