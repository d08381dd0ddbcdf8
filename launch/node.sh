#!/usr/bin/env bash
# One node of a training over several. Run the same line on every node, with a run folder that all of them see:
#
#   NODES=2 HEAD=node0 launch/node.sh siri-7b --run-dir /shared/runs/siri-7b --auto-resume
#
# NODES  how many nodes          HEAD  host name of one of them, where they meet (PORT, 29500)
# GPUS   processes on this node  (default: the devices in CUDA_VISIBLE_DEVICES, else its GPUs, or 1 without any)
# NODE_RANK  this node's number, where the platform gives one (Kubernetes, SkyPilot): the nodes then meet at node 0, which
#            is HEAD (static rendezvous); without it torchrun numbers them itself (c10d)
# IFNAME  the network interface of NCCL and gloo (default: the one that leads to HEAD; GLOO_SOCKET_IFNAME and
#         NCCL_SOCKET_IFNAME that are set stay)
# A node or rank that dies ends the job on all of them. On SIGTERM or SIGINT the step is finished and saved; torchrun
# waits TORCH_ELASTIC_SHUTDOWN_TIMEOUT seconds for that (270; before torch 2.12 always 30), then kills. Torchrun's own exit
# code is 1 whatever that of the ranks is; this script's is 75 where they stopped with the state saved.
# The store at HEAD:PORT, where the nodes meet (c10d), and NCCL's connections ask for no password: whoever reaches them can
# join or disturb the job. Keep the ports inside the cluster.
set -euo pipefail
: "${NODES:?set NODES to the number of nodes}" "${HEAD:?set HEAD to the host name of one node}"
if [ -z "${GPUS:-}" ]; then
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        IFS=, read -ra devices <<<"$CUDA_VISIBLE_DEVICES" || true
        GPUS=${#devices[@]}
    else
        listed=$(nvidia-smi -L 2>/dev/null || true)
        if grep -q '^ *MIG ' <<<"$listed"; then
            echo "node.sh: MIG is on, and its instances cannot train together; switch it off, or name one in CUDA_VISIBLE_DEVICES" >&2
            exit 2
        fi
        GPUS=$(grep -c '^GPU ' <<<"$listed" || true)
    fi
    [ "$GPUS" -gt 0 ] || GPUS=1
fi
case $HEAD in
127.* | localhost | ::1) ;;
*)
    echo "node.sh: warning: whoever reaches $HEAD:${PORT:-29500} (c10d) can join this job; keep it inside the cluster" >&2
    if [ -z "${IFNAME:-}" ] && command -v ip >/dev/null; then
        address=$(getent ahostsv4 "$HEAD" 2>/dev/null | awk 'NR == 1 { print $1 }' || true)
        if [ -n "$address" ]; then
            # of its own address a node says lo: then the interface that bears it
            IFNAME=$({ ip -o -4 addr show to "$address"; ip -o route get "$address"; } 2>/dev/null |
                awk '/ inet / { print $2; exit } { for (i = 1; i < NF; i++) if ($i == "dev") { print $(i + 1); exit } }' || true)
        fi
    fi
    if [ -n "${IFNAME:-}" ]; then
        export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$IFNAME} NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$IFNAME}
        echo "node.sh: gloo over $GLOO_SOCKET_IFNAME, NCCL over $NCCL_SOCKET_IFNAME (and RDMA, where it finds some)" >&2
    fi
    ;;
esac
if [ -n "${NODE_RANK:-}" ]; then
    meeting=(--rdzv-backend static --node-rank "$NODE_RANK" --master-addr "$HEAD" --master-port "${PORT:-29500}")
else
    meeting=(--rdzv-backend c10d --rdzv-endpoint "$HEAD:${PORT:-29500}" --rdzv-id "${JOB:-siri}")
fi
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-270}
export SIRI_STOPPED=${SIRI_STOPPED:-$(mktemp)}  # siri writes its exit code there when it was stopped
# the scripts torchrun and siri, not `python -m`: that would take modules of Python's from the current folder
torchrun --nnodes "$NODES" --nproc-per-node "$GPUS" "${meeting[@]}" --no-python siri train "$@" &
trap 'kill -TERM $! 2>/dev/null || true' TERM INT HUP
code=0
wait $! || code=$?
while kill -0 $! 2>/dev/null; do  # a signal has ended the wait, not torchrun
    code=0
    wait $! || code=$?
done
if [ "$code" -ne 0 ] && [ -s "$SIRI_STOPPED" ]; then code=75; fi
exit "$code"
