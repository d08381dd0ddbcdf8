#!/usr/bin/env bash
# One node of a training over several. Run the same line on every node, with a run folder that all of them see:
#
#   NODES=2 HEAD=node0 launch/node.sh siri-7b --run-dir /shared/runs/siri-7b --auto-resume
#
# NODES  how many nodes          HEAD  host name of one of them, where they meet (PORT, 29500)
# GPUS   processes on this node  (default: its GPUs, or 1 without any)
# torchrun numbers the nodes itself; a node or rank that dies ends the job on all of them. On SIGTERM or SIGINT the step
# is finished and saved; torchrun waits TORCH_ELASTIC_SHUTDOWN_TIMEOUT seconds for that (270; before torch 2.12 always
# 30), then kills. Its own exit code is 1, whatever that of the ranks is.
# The store at HEAD:PORT, where the nodes meet (c10d), and NCCL's connections ask for no password: whoever reaches them can
# join or disturb the job. Keep the ports inside the cluster.
set -euo pipefail
: "${NODES:?set NODES to the number of nodes}" "${HEAD:?set HEAD to the host name of one node}"
if [ -z "${GPUS:-}" ]; then
    GPUS=$(nvidia-smi -L 2>/dev/null | grep -c . || true)
    [ "$GPUS" -gt 0 ] || GPUS=1
fi
case $HEAD in
127.* | localhost | ::1) ;;
*) echo "node.sh: warning: whoever reaches $HEAD:${PORT:-29500} (c10d) can join this job; keep it inside the cluster" >&2 ;;
esac
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-270}
# the scripts torchrun and siri, not `python -m`: that would take modules of Python's from the current folder
exec torchrun --nnodes "$NODES" --nproc-per-node "$GPUS" \
    --rdzv-backend c10d --rdzv-endpoint "$HEAD:${PORT:-29500}" --rdzv-id "${JOB:-siri}" \
    --no-python siri train "$@"
