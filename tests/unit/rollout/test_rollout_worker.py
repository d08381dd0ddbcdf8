"""Checksums that add up over fused tensors, and the sums of the gap between engine and trainer."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from siri.rollout.checksums import differing, expected
from siri.rollout.transfer import FileTransfer
from siri.rollout.worker import COLUMN, ROW, WORD, SyncWorker, bit_sum, checksum, present
from siri.runtime.ranks import ALONE
from siri.train.mismatch import Mismatch


def test_a_checksum_knows_the_place_of_every_element():
    for dtype in (torch.bfloat16, torch.float32):
        tensor = torch.randn(7, 5).to(dtype)
        assert bit_sum(tensor) == bit_sum(tensor.T.contiguous().T), "memory layout does not count"
        moved = [tensor.T, tensor.flip(0), tensor.flip(1), tensor[torch.randperm(7)].roll(1, 0), tensor.reshape(5, 7)]
        assert len({bit_sum(tensor), *map(bit_sum, moved)}) >= 6
        nudged = tensor.clone()
        nudged[2, 3] = -nudged[2, 3]
        assert bit_sum(nudged) != bit_sum(tensor)
    assert checksum(torch.zeros(())) == [0, 1, 1] and checksum(torch.zeros(0)) == [0, 0, 0]
    assert checksum(torch.ones(3, 2, 4))[1:] == [3, 8]


def test_a_checksum_is_its_formula(monkeypatch):
    """In Python's own whole numbers, and however many rows are looked at together."""
    tensor = torch.randn(9, 4, dtype=torch.float16)
    bits = tensor.view(torch.int16).tolist()
    places = [(row, column) for row in range(9) for column in range(4)]
    wanted = sum(bits[r][c] * pow(ROW, r, WORD) * pow(COLUMN, c, WORD) for r, c in places) % WORD
    for at_once in (1, 5, 8, 2**22):
        monkeypatch.setattr("siri.rollout.worker._AT_ONCE", at_once)
        assert bit_sum(tensor) == wanted


def shares(tensors: dict[str, torch.Tensor], workers: int, heads: int) -> list[dict]:
    """What tensor-parallel workers hold, as vLLM cuts it: q, k, v and gate, up by rows and fused, o by columns, the
    embedding by rows and padded, keys and values more than once where there are more workers than heads."""
    held = []
    for rank in range(workers):
        keys, key_rank = min(workers, heads), rank * min(workers, heads) // workers

        def rows(name, parts=workers, place=rank):
            return tensors[name].chunk(parts)[place]

        padded = torch.cat([tensors["embed.weight"], torch.zeros(-len(tensors["embed.weight"]) % 64, 4)])
        model = {
            "embed.weight": [padded.chunk(workers)[rank]],
            "l.0.qkv_proj.weight": [
                rows("l.0.q_proj.weight"),
                *(rows(f"l.0.{n}_proj.weight", keys, key_rank) for n in "kv"),
            ],
            "l.0.qkv_proj.bias": [rows("l.0.q_proj.bias"), *(rows(f"l.0.{n}_proj.bias", keys, key_rank) for n in "kv")],
            "l.0.o_proj.weight": [tensors["l.0.o_proj.weight"].chunk(workers, 1)[rank]],
            "l.0.gate_up_proj.weight": [rows("l.0.gate_proj.weight"), rows("l.0.up_proj.weight")],
            "norm.weight": [tensors["norm.weight"]],
        }
        held.append({"sums": model, "fused": FUSED})
    return held


FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


def summed(held: list[dict]) -> list[dict]:
    return [
        {**worker, "sums": {name: [checksum(block) for block in blocks] for name, blocks in worker["sums"].items()}}
        for worker in held
    ]


def sent_tensors() -> dict[str, torch.Tensor]:
    shapes = {"embed.weight": (97, 4), "norm.weight": (4,), "l.0.o_proj.weight": (4, 16)}
    shapes |= {f"l.0.{name}_proj.weight": (16 if name == "q" else 8, 4) for name in ("q", "k", "v")}
    shapes |= {f"l.0.{name}_proj.bias": (16 if name == "q" else 8,) for name in ("q", "k", "v")}
    shapes |= {f"l.0.{name}_proj.weight": (32, 4) for name in ("gate", "up")}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(("workers", "heads"), [(1, 2), (2, 2), (4, 2), (8, 2), (8, 8), (4, 1)])
def test_every_worker_of_a_server_is_compared(workers, heads):
    tensors = sent_tensors()
    sent = {name: checksum(tensor) for name, tensor in tensors.items()}
    assert differing(sent, summed(shares(tensors, workers, heads))) == []
    for name in shares(tensors, workers, heads)[0]["sums"]:
        for place in range(len(shares(tensors, workers, heads)[0]["sums"][name])):
            held = shares(tensors, workers, heads)
            block = held[-1]["sums"][name][place].clone()
            if not block.any():  # nothing but padding
                block[0] += 1
            held[-1]["sums"][name][place] = block.flip(0) if len(block) > 1 else block + 1
            assert differing(sent, summed(held)) == [name], "the last worker holds something else, or in another order"
    if workers > 1:
        held = summed(shares(tensors, workers, heads))
        swapped = [held[1], held[0], *held[2:]]
        assert "l.0.o_proj.weight" in differing(sent, swapped), "the shares are there, each in another place"


def test_differing_names_fused_stale_and_missing_tensors():
    tensors = sent_tensors()
    sent = {name: checksum(tensor) for name, tensor in tensors.items()}
    (there,) = summed(shares(tensors, 1, 2))
    qkv = torch.cat([tensors[f"l.0.{name}_proj.weight"] for name in "qkv"])
    assert set(expected(sent, FUSED)) == set(there["sums"])

    def changed(**changes):
        return [{**there, "sums": there["sums"] | {f"l.0.{name}.weight": value for name, value in changes.items()}}]

    whole = changed(qkv_proj=[checksum(qkv)])
    assert differing(sent, whole) == [], "one worker need not say where the parts end"
    assert differing(sent, changed(qkv_proj=[checksum(qkv.flip(0))])) == ["l.0.qkv_proj.weight"]
    assert differing(sent, changed(qkv_proj=[checksum(torch.zeros(0))])) == [], "repacked and dropped: not compared"
    assert differing(sent, changed(other=[[3, 4, 1]])) == ["l.0.other.weight"], "nobody sent it"


def test_a_worker_says_where_the_parts_of_a_fused_tensor_end():
    class Fused(torch.nn.Linear):
        output_partition_sizes = (4, 2, 2)

    model = torch.nn.Sequential(Fused(3, 8))
    sums = present(Inside(model))["sums"]
    weight = model[0].weight
    assert sums["0.weight"] == [checksum(weight[:4]), checksum(weight[4:6]), checksum(weight[6:])]
    assert len(sums["0.bias"]) == 3


def test_mismatch_is_that_of_the_counted_tokens():
    trainer = torch.tensor([-1.0, -2.0, -3.0, -4.0, math.nan, -1.0])
    engine = torch.tensor([-1.5, -2.0, -1.0, -9.0, -1.0, -1.9])
    counted = torch.tensor([True, True, True, False, True, True])
    mismatch = Mismatch(0.5, 2.0, torch.device("cpu"))
    mismatch.add(trainer[:3], engine[:3], counted[:3])
    mismatch.add(trainer[3:], engine[3:], counted[3:])
    metrics = mismatch.metrics(ALONE)
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

        self.reload_weights = reload_weights
        self.model_runner = SimpleNamespace(get_model=lambda: model)


def test_a_worker_names_its_weights_only_when_told_and_loads_them_once(tmp_path):
    trained, model = (torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)) for _ in range(2))
    files, worker = FileTransfer(tmp_path / "weights"), Inside(model)
    assert json.loads(worker.siri_load(str(tmp_path / "elsewhere"))) == {"unseen": True} and not worker.reloads
    files.write(iter(trained.named_parameters()), "v1")
    files.turn()
    report = json.loads(worker.siri_load(str(files.folder)))
    assert report["damaged"] == [] and differing(files.sums, [report]) == []
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), model.parameters(), strict=True))
    assert json.loads(worker.siri_version()) is None, "nobody has compared them yet"
    worker.siri_mark("v1")
    assert json.loads(worker.siri_version()) == "v1"
    assert json.loads(worker.siri_load(str(files.folder))) == report and worker.reloads == 1
    files.write(iter(trained.named_parameters()), "v2")
    files.turn()
    (shard,) = files.folder.glob("*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-3] ^= 64
    shard.write_bytes(data)
    report = json.loads(worker.siri_load(str(files.folder)))
    assert len(report["damaged"]) == 1 and differing(files.sums, [report]) == report["damaged"]
    assert json.loads(worker.siri_version()) is None, "the weights before are gone"
    worker.siri_mark("v2")
    worker.siri_mark("")
    assert json.loads(worker.siri_version()) is None and json.loads(worker.siri_present())["sums"] == report["sums"]


def test_weights_that_were_written_and_never_given_leave_no_files(tmp_path):
    """A sync that was stopped between writing and loading, twice; then one that was not."""
    model = torch.nn.Linear(3, 4)
    files = FileTransfer(tmp_path / "weights")
    for version in ("v1", "v2", "v3"):
        files.write(iter(model.named_parameters()), version)
        if version == "v1":
            files.turn()
        assert sorted(path.name for path in files.root.iterdir()) == sorted({"v1", version}), "of before, and the last"
    files.turn()
    assert [path.name for path in files.root.iterdir()] == ["v3"]
    files.write(iter(model.named_parameters()), "v4")
    files.close()
    assert not files.root.exists()
