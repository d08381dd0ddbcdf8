"""Under Triton's interpreter: a model on Liger's kernels against the same model as transformers writes it. Prints the
largest relative error of the hidden states and of each gradient, whole and sharded, and what a trial of each part says.
"""

import numpy as np
import torch
import torch.distributed as dist
import triton.language as tl
from triton.runtime import interpreter

convert = interpreter._implicit_cvt
KINDS = ("qwen2", "qwen3", "llama")


def with_floats(arg):
    """The interpreter leaves Python floats as they are, and Liger's kernels call `.to` on theirs."""
    if isinstance(arg, float):
        return tl.tensor(interpreter.TensorHandle(np.array([arg], dtype=np.float32), tl.float32), tl.float32)
    return convert(arg)


def outcome(kind, *, swapped, ranks=None):
    """Hidden states and gradients of a pack. ranks: sharded with FSDP2, its activations checkpointed."""
    from siri.model.attention import PackedLayout
    from siri.model.fsdp import full, shard
    from siri.model.liger import swap
    from siri.model.policy import checkpoint_activations, packed_hidden
    from tests.support.tiny import VOCAB, tiny_model

    model = tiny_model(kind, num_hidden_layers=1)
    if swapped:
        swap(model)
    torch.manual_seed(1)
    pack = torch.randint(0, VOCAB, (8,)), PackedLayout.of([3, 5])
    if ranks is None:
        hidden = packed_hidden(model, *pack)
    else:
        shard(model, ranks, compute_dtype=torch.float32)
        checkpoint_activations(model, "full")
        hidden = model.run_inside(packed_hidden, *pack)
    (hidden * torch.randn_like(hidden)).sum().backward()
    return [hidden.detach(), *(full(parameter.grad) for parameter in model.model.parameters())]


def main() -> None:
    torch.set_num_threads(1)
    interpreter._implicit_cvt = with_floats
    from liger_kernel.ops import rms_norm

    from siri.model.liger import PARTS, fault
    from siri.runtime.ranks import Ranks
    from tests.support.tiny import tiny_model

    rms_norm.rsqrt = lambda x: tl.rsqrt(x)  # it takes libdevice's, which the interpreter lacks
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    ranks = Ranks(mesh=dist.init_device_mesh("cpu", (1,), mesh_dim_names=("shard",)))
    for kind in KINDS:
        plain = outcome(kind, swapped=False)
        for name, over in ((kind, None), (f"sharded-{kind}", ranks)):
            pairs = zip(plain, outcome(kind, swapped=True, ranks=over), strict=True)
            print(name, max(float((plain - fused).abs().max() / plain.abs().max()) for plain, fused in pairs))
        for part in PARTS:
            print(f"trial-{part}-{kind}", fault(part, tiny_model(kind).config, torch.device("cpu")) or "passed")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
