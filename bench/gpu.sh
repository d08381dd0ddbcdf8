#!/usr/bin/env bash
# bench/gpu.sh tests|kernels|train|trl: each part takes less than 9 minutes on one GPU; run the cheap ones first.
# The kernels part writes bench/results/DEVICE-DATE.json (or into the folder named by OUT).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
export PYTHONPATH="kernels:.${PYTHONPATH:+:$PYTHONPATH}"
case "${1:-}" in
tests) exec timeout 540 "$python" -m pytest tests/kernels -m gpu -x -rs ;;
kernels)
    # without SIZES: real sizes on a GPU, tiny on a CPU, where only the program itself is tested
    # shellcheck disable=SC2086
    exec timeout 540 "$python" bench/kernel_goals.py ${SIZES:+--sizes $SIZES} ${OUT:+--out "$OUT/kernels.json"}
    ;;
train | trl) echo "bench/gpu.sh $1: this part comes with the issue that adds it" ;;
*)
    echo "usage: bench/gpu.sh tests|kernels|train|trl" >&2
    exit 2
    ;;
esac
