#!/usr/bin/env bash
# Rollout servers of one node: one `vllm serve` on each GPU, on ports PORT, PORT + 1, ...
#
#   launch/serve.sh deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B
#
# GPUS  servers on this node (default: its GPUs)   PORT  the first port (8000)   CONTEXT  longest prompt and cap (17408)
# HOST  the address that the servers listen at (127.0.0.1: this node only). For any other, SIRI_ROLLOUT_SECRET has to be
# set here and where the trainer runs, as in  export SIRI_ROLLOUT_SECRET=$(openssl rand -hex 32): the development routes
# take weights and commands from whoever reaches them, and every request has to bring the secret along. It travels as
# plain text, and weights over NCCL without it: keep the ports inside the cluster all the same.
# A server's own process computes on the GPU: one CPU thread (OMP_NUM_THREADS), and none waits in a spin (OMP_WAIT_POLICY).
# More options of vllm serve follow the model. When one server dies it is started again; the trainer gives it the weights.
set -euo pipefail
MODEL=${1:?name the model that is trained}
shift
GPUS=${GPUS:-$(nvidia-smi -L 2>/dev/null | grep -c . || true)}
[ "$GPUS" -gt 0 ] || { echo "serve.sh: no GPU here; set GPUS" >&2; exit 2; }
HOST=${HOST:-127.0.0.1}
guard=()
if [ -n "${SIRI_ROLLOUT_SECRET:-}" ]; then
    export SIRI_ROLLOUT_SECRET
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
trap 'trap - EXIT; kill -- $(jobs -p | sed s/^/-/) 2>/dev/null; exit 0' EXIT HUP INT TERM
for ((gpu = 0; gpu < GPUS; gpu++)); do
    while true; do
        CUDA_VISIBLE_DEVICES=$gpu VLLM_SERVER_DEV_MODE=1 vllm serve "$MODEL" --host "$HOST" --port $((${PORT:-8000} + gpu)) "${guard[@]}" \
            --logprobs-mode processed_logprobs --generation-config vllm --max-model-len "${CONTEXT:-17408}" \
            --worker-extension-cls siri.rollout.worker.SyncWorker --weight-transfer-config '{"backend": "nccl"}' "$@" ||
            sleep 5
    done &
done
wait
