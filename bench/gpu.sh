#!/usr/bin/env bash
# bench/gpu.sh tests|kernels|train|trl: each part takes less than 9 minutes on one GPU; run the cheap ones first.
#   tests    the GPU tests                          kernels  the table of the head's goals, every installed peer
#   train    an optimizer step, packed and padded   trl      a GRPOTrainer step with our head and without
# All but the tests write into one file, bench/results/DEVICE-DATE.json, or $OUT/results.json. Without SIZES they take real
# sizes on a GPU and tiny ones on a CPU, where only the programs themselves are tested.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
export PYTHONPATH="kernels:.${PYTHONPATH:+:$PYTHONPATH}"
out=(${OUT:+--out "$OUT/results.json"})
# shellcheck disable=SC2206
sizes=(${SIZES:-})
case "${1:-}" in
tests) exec timeout 540 "$python" -m pytest tests/kernels -m gpu --maxfail 25 -rs ;;
kernels) exec timeout 540 "$python" bench/kernel_goals.py ${sizes:+--sizes "${sizes[@]}"} "${out[@]}" ;;
train) exec timeout 540 "$python" bench/train_step.py ${sizes:+--size "${sizes[0]}"} "${out[@]}" ;;
trl) exec timeout 540 "$python" bench/trl_step.py ${sizes:+--size "${sizes[0]}"} "${out[@]}" ;;
*)
    echo "usage: bench/gpu.sh tests|kernels|train|trl" >&2
    exit 2
    ;;
esac
