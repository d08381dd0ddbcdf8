#!/usr/bin/env bash
# Rollout servers of one node: one `vllm serve` on each GPU, on ports PORT, PORT + 1, ...
#
#   launch/serve.sh deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B
#
# GPUS  servers on this node (default: one on each device in CUDA_VISIBLE_DEVICES, else on each GPU or MIG instance)
# PORT  the first port (8000)   CONTEXT  longest prompt and cap (17408)
# HOST  the address that the servers listen at (127.0.0.1: this node only). For any other, SIRI_ROLLOUT_SECRET has to be
# set here and where the trainer runs, as in  export SIRI_ROLLOUT_SECRET=$(openssl rand -hex 32), or SIRI_ROLLOUT_SECRET_FILE
# to a file that holds it: the development routes take weights and commands from whoever reaches them, and every request
# has to bring the secret along. It travels as plain text, and weights over NCCL without it: keep the ports inside the
# cluster all the same.
# A server's own process computes on the GPU: one CPU thread (OMP_NUM_THREADS), and none waits in a spin (OMP_WAIT_POLICY).
# More options of vllm serve follow the model. When one server dies it is started again; the trainer gives it the weights.
# One that ends three times in a row within START_S seconds (60) of its start, as with an option that vLLM does not know,
# ends all of them.
set -euo pipefail
MODEL=${1:?name the model that is trained}
shift
if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    IFS=, read -ra devices <<<"$CUDA_VISIBLE_DEVICES"
else
    listed=$(nvidia-smi -L 2>/dev/null || true)
    # with MIG a GPU is its instances
    mapfile -t devices < <(grep -oE 'MIG-[0-9A-Za-z/-]+' <<<"$listed" || true)
    [ ${#devices[@]} -gt 0 ] || mapfile -t devices < <(grep '^GPU ' <<<"$listed" | grep -oE '^GPU [0-9]+' | cut -c5- || true)
fi
GPUS=${GPUS:-${#devices[@]}}
[ "$GPUS" -gt 0 ] || { echo "serve.sh: no GPU here; set GPUS" >&2; exit 2; }
for ((gpu = ${#devices[@]}; gpu < GPUS; gpu++)); do devices+=("$gpu"); done
HOST=${HOST:-127.0.0.1}
guard=()
if [ -n "${SIRI_ROLLOUT_SECRET:-}${SIRI_ROLLOUT_SECRET_FILE:-}" ]; then
    export SIRI_ROLLOUT_SECRET="${SIRI_ROLLOUT_SECRET:-}" SIRI_ROLLOUT_SECRET_FILE="${SIRI_ROLLOUT_SECRET_FILE:-}"
    guard=(--middleware siri.rollout.guard.Guard)
else
    case $HOST in
    127.* | localhost | ::1) ;;
    *) echo "serve.sh: others reach HOST=$HOST, and the servers take commands from all of them; set SIRI_ROLLOUT_SECRET" >&2; exit 2 ;;
    esac
fi
# no module of Python's comes from the current folder, in the processes that vLLM starts either
export PYTHONSAFEPATH=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
set -m  # a process group for each server, so that they end with this script and nobody else does
leave() {
    code=$1
    trap - EXIT
    kill -- $(jobs -p | sed s/^/-/) 2>/dev/null
    exit "$code"
}
trap 'leave $?' EXIT
trap 'leave 0' HUP INT TERM
for ((gpu = 0; gpu < GPUS; gpu++)); do
    early=0
    while true; do
        began=$SECONDS code=0
        CUDA_VISIBLE_DEVICES=${devices[gpu]} VLLM_SERVER_DEV_MODE=1 vllm serve "$MODEL" --host "$HOST" --port $((${PORT:-8000} + gpu)) "${guard[@]}" \
            --logprobs-mode processed_logprobs --generation-config vllm --max-model-len "${CONTEXT:-17408}" \
            --worker-extension-cls siri.rollout.worker.SyncWorker --weight-transfer-config '{"backend": "nccl"}' "$@" || code=$?
        ((SECONDS - began < ${START_S:-60})) && early=$((early + 1)) || early=0
        if [ "$early" -ge 3 ]; then
            echo "serve.sh: vllm serve on GPU ${devices[gpu]} ended three times soon after its start (exit code $code); what it said is above" >&2
            exit 1
        fi
        [ "$code" -eq 0 ] || sleep "${PAUSE_S:-5}"
    done &
done
wait -n
