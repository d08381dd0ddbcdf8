"""Under Triton's interpreter: a model on Liger's kernels against the same model as transformers writes it. Prints the
largest relative error of the hidden states and of each gradient."""

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

convert = interpreter._implicit_cvt


def with_floats(arg):
    """The interpreter leaves Python floats as they are, and Liger's kernels call `.to` on theirs."""
    if isinstance(arg, float):
        return tl.tensor(interpreter.TensorHandle(np.array([arg], dtype=np.float32), tl.float32), tl.float32)
    return convert(arg)


def main() -> None:
    torch.set_num_threads(1)
    interpreter._implicit_cvt = with_floats
    from liger_kernel.ops import rms_norm

    from siri.model.attention import PackedLayout
    from siri.model.liger import swap
    from siri.model.policy import packed_hidden
    from tests.support.tiny import VOCAB, tiny_model

    rms_norm.rsqrt = lambda x: tl.rsqrt(x)  # it takes libdevice's, which the interpreter lacks
    for kind in ("qwen2", "qwen3", "llama"):
        outcomes = []
        for swapped in (False, True):
            model = tiny_model(kind, num_hidden_layers=1)
            if swapped:
                swap(model)
            torch.manual_seed(1)
            hidden = packed_hidden(model, torch.randint(0, VOCAB, (8,)), PackedLayout.of([3, 5]))
            (hidden * torch.randn_like(hidden)).sum().backward()
            outcomes.append([hidden.detach(), *(parameter.grad for parameter in model.model.parameters())])
        worst = max(float((one - two).abs().max() / one.abs().max()) for one, two in zip(*outcomes, strict=True))
        print(kind, worst)


if __name__ == "__main__":
    main()
