"""Where the time of a policy-loss step goes: every GPU kernel of forward and backward, with its share.

`python bench/kernel_profile.py [--size 1.5b] [--rows 8448] [--impl auto] [--memory fast]`. Needs a GPU.
"""

from __future__ import annotations

import argparse

import torch
from kernel_contestants import policy_loss
from kernel_problems import SEQUENCES, SIZES, problem
from torch.profiler import ProfilerActivity, profile


def main() -> None:
    parser = argparse.ArgumentParser(description="The GPU kernels of a step of the policy loss.")
    parser.add_argument("--size", choices=SIZES, default="1.5b")
    parser.add_argument("--rows", type=int, default=8448, help=f"tokens, a multiple of {SEQUENCES}")
    parser.add_argument("--impl", default="auto")
    parser.add_argument("--memory", default="fast")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench/kernel_profile.py: needs a GPU, there is none that torch can use here")
    p = problem((options.rows, *SIZES[options.size][1:]))
    step = policy_loss(p, impl=options.impl, memory=options.memory)
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        for _ in range(options.rounds):
            step()
        torch.cuda.synchronize()
    kernels = sorted(record.key_averages(), key=lambda e: -e.self_device_time_total)
    total = sum(event.self_device_time_total for event in kernels)
    print(f"{options.size}, {options.rows} tokens: {total / options.rounds / 1e3:.2f} ms of GPU time a step")
    for event in kernels:
        time = event.self_device_time_total
        if time > 0.001 * total:
            count = event.count / options.rounds
            print(f"{time / total:7.1%}{time / options.rounds / 1e3:9.3f} ms{count:7.1f} x  {event.key[:100]}")


if __name__ == "__main__":
    main()
