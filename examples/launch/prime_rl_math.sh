#!/usr/bin/env bash
# prime-rl 0.8 on mathematics with the fused head, from its checkout, on two GPUs. `rl` writes the configurations of its
# parts and stops (--dry-run); then each part is started as `rl` would start it, the trainer by our file.
#   cd prime-rl && uv pip install siri-kernels...whl && OUT=outputs/math /path/to/examples/launch/prime_rl_math.sh
set -euo pipefail
CONFIG=${CONFIG:-configs/basic/hendrycks-sanity/rl.toml} OUT=${OUT:-outputs/math}
HERE=$(cd "$(dirname "$0")" && pwd)
uv run rl @ "$CONFIG" --output-dir "$OUT" --dry-run
PARTS=$(dirname "$(find "$OUT" -name trainer.json -print -quit)")
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
CUDA_VISIBLE_DEVICES=0 uv run inference @ "$PARTS/inference.json" &
for environment in "$PARTS"/envs/*/*.json; do
    uv run env-server @ "$environment" &
done
uv run orchestrator @ "$PARTS/orchestrator.json" &
CUDA_VISIBLE_DEVICES=1 uv run torchrun --nproc-per-node 1 "$HERE/prime_rl_trainer.py" @ "$PARTS/trainer.json"
