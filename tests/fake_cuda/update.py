"""The trainer's own update of a sharded model on fake CUDA tensors: `python -m tests.fake_cuda.update CASES`, where
CASES is a JSON list; a line of JSON for each. torch must be a CPU build, with SIRI_FAKE_CUDA naming the shim."""

from tests.fake_cuda import device  # before torch

# isort: split
import gc
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.testing._internal.distributed.fake_pg import FakeStore

from siri.config import Config
from siri.model import attention, fsdp
from siri.model.fsdp import shard
from siri.model.offload import HostAdamW
from siri.model.policy import Policy, allocate, checkpoint_activations
from siri.planning.memory_plan import Machine, memory_plan, update_peak
from siri.runtime.ranks import Ranks
from siri.train import learner as learning
from siri.train.micro_batch import MicroBatch
from siri.train.samples import Sample
from tests.fake_cuda import head, liger
from tests.fake_cuda.watch import Fault, Watch

CUDA = torch.device("cuda", 0)
SHAPES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size")
SIZES = {
    "1.5b": dict(zip(SHAPES, (1536, 8960, 12, 2, 151936), strict=True)),
    "7b": dict(zip(SHAPES, (3584, 18944, 28, 4, 152064), strict=True)),
}
ON_DEVICE = (
    "input_ids_N",
    "rows_R",
    "target_ids_R",
    "rollout_logp_R",
    "mask_R",
    "keep_K",
    "cu_seqlens",
    "advantages_S",
)
LEFT = {"mask on the host": ("mask_R",), "rows on the host": ("rows_R",)}
"""Planted faults: what is not moved to the device."""


@dataclass(frozen=True)
class Case:
    """One update."""

    gpus: int = 8
    nodes: int = 1
    checkpointing: str = "none"
    option: str = "plain"
    """A setting that is on (vocab_parallel, sync_every_micro_step, optimizer_offload); tied; bias (of all matrices of
    the layers); liger; score_all (half of the responses without an advantage); or none of them."""
    size: str = "1.5b"
    layers: int = 2
    tokens: int = 36864
    fault: str = ""
    """What is broken, see `FAULTS`."""


WHOLE = (learning._head_inputs, learning.score)
"""What faults replace."""


class EveryRank(Ranks):
    """Rank 0 of ranks that all have and say the same."""

    def broadcast_arrays(self, arrays):
        return arrays

    def broadcast(self, value):
        return value

    def gather(self, value):
        return [value] * self.size

    def gather_arrays(self, arrays):
        return [arrays] * self.size


def build(case: Case) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM

    bias = case.option == "bias"
    kind = "llama" if bias else "qwen2"
    more = {"attention_bias": True, "mlp_bias": True} if bias else {"use_sliding_window": False}
    model_config = AutoConfig.for_model(
        kind, **SIZES[case.size], num_hidden_layers=case.layers, tie_word_embeddings=case.option == "tied",
        max_position_embeddings=131072, **more,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            model_config, dtype=torch.float32, attn_implementation=attention.register()
        )
    for module in model.modules():
        module._buffers = {name: buffer.to("meta") for name, buffer in module._buffers.items()}
    return model_config, model


def moved(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else torch.empty(tensor.shape, dtype=tensor.dtype, device=CUDA)


class OnDevice:
    """Micro-batches are laid out with data, on the host, and moved to the device without."""

    fake: Any = None
    fault = ""

    @classmethod
    def of(cls, samples, *, device, backend, **options):
        with unset_fake_temporarily():
            batch = MicroBatch.of(samples, device=torch.device("cpu"), backend=backend, **options)
        left = LEFT.get(cls.fault, ())
        fields = {name: moved(getattr(batch, name)) for name in ON_DEVICE if name not in left}
        fields |= {name: cls.fake.from_tensor(getattr(batch, name)) for name in left}
        layout = replace(
            batch.layout,
            cu_seqlens=moved(batch.layout.cu_seqlens),
            position_ids_N=moved(batch.layout.position_ids_N),
            blocks=tuple(map(moved, batch.layout.blocks)),
            place_N=moved(batch.layout.place_N),
        )
        # on the host, where it is read, there is data; the chunks of these losses do not ask for it
        return replace(batch, layout=layout, keep_lengths_S=None, **fields)


def samples(case: Case, count: int, longest: int) -> list[Sample]:
    """As many of `longest` tokens; with score_all every second pair has no advantage."""
    idle = (2, 3) if case.option == "score_all" else ()
    response, logp = np.zeros(longest - 1024, np.int32), np.zeros(longest - 1024, np.float32)
    return [
        Sample([1] * 1024, response, logp, 0.0 if place % 4 in idle else 1.0 - 2 * (place % 2))
        for place in range(count)
    ]


def take_moments(model: Any, optimizer: torch.optim.Optimizer) -> None:
    """A step of no gradient: AdamW makes its moments then."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def run(case: Case, detail: bool = False) -> dict[str, Any]:
    """One update of a model whose optimizer has its moments."""
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=case.gpus * case.nodes)
    shape, names = ((case.gpus,), ("shard",)) if case.nodes == 1 else ((case.nodes, case.gpus), ("replicate", "shard"))
    ranks = EveryRank(0, case.gpus * case.nodes, dist.init_device_mesh("cuda", shape, mesh_dim_names=names))
    longest = case.tokens // 2
    switches = ("vocab_parallel", "sync_every_micro_step", "optimizer_offload")
    config = Config(
        checkpointing=case.checkpointing, token_budget=case.tokens, l_max=longest - 1024, l_min=longest // 2,
        mini_batch_prompts=1, prompts_per_step=2, group_size=4 * ranks.size, attention="varlen",
        **{name: case.option == name for name in switches},
    )  # fmt: skip
    model_config, model = build(case)
    if case.option == "liger":
        liger.swap(model)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    watch = Watch(fake)
    watch.detail = detail
    OnDevice.fake = fake
    more = 2 if case.option == "score_all" else 1
    batches = [samples(case, more * count * ranks.size, longest) for count in (4, 2)]
    with fake:
        shard(model, ranks, compute_dtype=torch.bfloat16, vocab_parallel=config.vocab_parallel)
        allocate(model, CUDA)
        checkpoint_activations(model, case.checkpointing)
        policy = Policy(model, None, frozenset(), 131072)
        optimizer = (device.unpinned(HostAdamW) if config.optimizer_offload else torch.optim.AdamW)(
            model.parameters(), lr=1e-6
        )
        learner = learning.Learner(
            policy, optimizer, config, token_budget=case.tokens, watch=watch, ranks=ranks, judge=Judge(model)
        )
        for tensor in (*model.parameters(), *model.buffers()):
            watch.add(tensor, "model")
        assert learner.try_head() == "anchored"
        if case.fault == "an idle backward":
            learner.apart = False
        with watch:
            take_moments(model, optimizer)
            watch.reset()
            update = learner.update(batches)
    machine = Machine(ranks.size, 80 * 10**9, case.gpus, multiprocessors=head.BUSY)
    plan = memory_plan(model_config, config, machine, rollout="served", **liger.planned(case.option == "liger"))
    planned = update_peak(model_config, plan, case.tokens, several=True)
    return {
        **asdict(case),
        "peak": watch.peak,
        "planned": planned,
        "ratio": round(planned / watch.peak, 4),
        "peaks": watch.peaks,
        "moments": {name: plan.always + size for name, size in plan.moments.items()},
        "left": watch.now,
        "collectives": watch.collectives,
        "calls": watch.calls,
        "micro_steps": update.metrics["micro_steps"],
        **({"at_peak": watch.at_peak, "always": plan.always} if detail else {}),
    }


class Judge:
    """Sees what the optimizer is about to be given."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def allows(self, attempt: Any) -> bool:
        for name, parameter in self.model.named_parameters():
            gradient = parameter.grad
            if gradient is None or gradient.dtype != torch.float32 or gradient.device.type != "cuda":
                raise Fault(f"the gradient of {name} is no fp32 tensor on the GPU: {gradient}")
        for old in attempt.old_logps:
            if old is not None and (old.dtype != torch.float32 or old.device.type != "cuda"):
                raise Fault(f"old log-probs are {old.dtype} on {old.device}")
        return True


def broken(fault: str) -> None:
    """Break the trainer, until the next call."""
    inputs, score = WHOLE
    learning._head_inputs, learning.score = WHOLE
    globals()["shard"] = fsdp.shard
    kept: list[torch.Tensor] = []

    def head_inputs(*arguments):
        hidden, weight, bias, place = inputs(*arguments)
        if fault == "head in fp32":
            weight = weight.float()
        elif fault == "a hidden read":
            float(hidden.sum())
        elif fault == "an index on the host":
            hidden = hidden[torch.arange(hidden.shape[0])]
        elif fault == "a CPU tensor in a collective":
            dist.all_reduce(torch.zeros(4))
        elif fault == "activations that stay":
            kept.append(hidden.detach().clone())
        elif fault == "logits beside the head":
            kept[:] = [hidden.new_empty(hidden.shape[0], 65536)]
        return hidden, weight, bias, place

    def on_host(*arguments):
        scores = score(*arguments)
        return scores._replace(logp_R=scores.logp_R.cpu())

    def sharded(model, *arguments, **options):
        fsdp.shard(model, *arguments, **options)
        if fault == "a reduction every micro-step":
            model.set_requires_gradient_sync = lambda _: None
        else:
            model.set_reshard_after_backward(False)

    if fault:
        learning._head_inputs = head_inputs
    if fault == "old log-probs on the host":
        learning.score = on_host
    elif fault in ("gathered weights that stay", "a reduction every micro-step"):
        globals()["shard"] = sharded


def main() -> None:
    gc.freeze()  # what was imported is no garbage
    device.install()
    head.install()
    attention.fault = lambda *_: ""
    learning.MicroBatch = OnDevice
    detail = "--detail" in sys.argv
    for given in json.loads(sys.argv[1]):
        case = Case(**given)
        OnDevice.fault = case.fault
        broken(case.fault)
        began = time.perf_counter()
        try:
            row = run(case, detail)
        except Exception as error:
            if not case.fault:
                raise
            row = {**asdict(case), "caught": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        row["seconds"] = round(time.perf_counter() - began, 2)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
