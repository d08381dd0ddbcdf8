#!/usr/bin/env bash
# bench/gpu.sh tests|kernels|train|trl [OPTION...]: each part takes less than 9 minutes on one GPU; bench/README.md has the order.
#   tests    the GPU tests                          kernels  the table of the head's goals, every installed peer
#   train    an optimizer step, packed and padded   trl      a GRPOTrainer step with our head and without
# OPTIONs go to the program: kernels --seconds 150 measures what matters most. LIMIT: seconds after which a part is ended.
# All but the tests write into one file, bench/results/DEVICE-DATE.json, or $OUT/results.json. Without SIZES they take real
# sizes on a GPU and tiny ones on a CPU, where only the programs themselves are tested.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
export PYTHONPATH="kernels:.${PYTHONPATH:+:$PYTHONPATH}"
out=(${OUT:+--out "$OUT/results.json"})
# shellcheck disable=SC2206
sizes=(${SIZES:-})
limit=(timeout "${LIMIT:-540}")
part=${1:-}
shift || true
case "$part" in
tests)
    # files with such tests alone, because the others want packages that a machine with a GPU may lack
    mapfile -t files < <(grep -rlE 'mark\.gpu' tests/kernels --include='test_*.py' | sort)
    # compiling takes most of the time: as many processes as there are cores, 12 at most, because each has a CUDA context
    parallel=()
    if "$python" -c 'import xdist' 2>/dev/null; then
        cores=$(nproc)
        parallel=(-n "$((cores < 12 ? cores : 12))" --dist loadgroup)
    fi
    exec "${limit[@]}" "$python" -m pytest "${files[@]}" -m gpu --maxfail 25 -rs "${parallel[@]}" "$@"
    ;;
kernels) exec "${limit[@]}" "$python" bench/kernel_goals.py ${sizes:+--sizes "${sizes[@]}"} "${out[@]}" "$@" ;;
train) exec "${limit[@]}" "$python" bench/train_step.py ${sizes:+--size "${sizes[0]}"} "${out[@]}" "$@" ;;
trl) exec "${limit[@]}" "$python" bench/trl_step.py ${sizes:+--size "${sizes[0]}"} "${out[@]}" "$@" ;;
*)
    echo "usage: bench/gpu.sh tests|kernels|train|trl [OPTION...]" >&2
    exit 2
    ;;
esac
