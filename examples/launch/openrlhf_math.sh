#!/usr/bin/env bash
# OpenRLHF 0.11 on mathematics with the fused head: one key of Ray's runtime environment. A Ray cluster has to be up
# (ray start --head), and siri-kernels installed on every node of it.
#   MODEL=... examples/launch/openrlhf_math.sh [OpenRLHF's options]
# The reward is REWARD, a file with reward_func(queries, prompts, labels), or the address of a reward server.
set -euo pipefail
MODEL=${MODEL:-deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B} DATA=${DATA:-agentica-org/DeepScaleR-Preview-Dataset}
REWARD=${REWARD:?a file with reward_func, or an address} GPUS=${GPUS:-8}
exec ray job submit --address=http://127.0.0.1:8265 \
    --runtime-env-json='{"worker_process_setup_hook": "siri_kernels.integrations.openrlhf.install"}' \
    -- python3 -m openrlhf.cli.train_ppo_ray \
    --actor.model_name_or_path "$MODEL" \
    --actor.num_nodes 1 \
    --actor.num_gpus_per_node "$GPUS" \
    --train.colocate_all \
    --vllm.num_engines "$GPUS" \
    --vllm.gpu_memory_utilization 0.5 \
    --vllm.enable_sleep \
    --ds.enable_sleep \
    --ds.packing_samples \
    --ds.zero_stage 2 \
    --reward.remote_url "$REWARD" \
    --data.prompt_dataset "$DATA" \
    --data.input_key problem \
    --data.label_key answer \
    --data.apply_chat_template \
    --data.max_len 9216 \
    --rollout.max_new_tokens 8192 \
    --rollout.batch_size 128 \
    --rollout.n_samples_per_prompt 8 \
    --train.batch_size 256 \
    --algo.advantage.estimator group_norm \
    --algo.kl.init_coef 0 \
    --actor.adam.lr 1e-6 \
    --actor.gradient_checkpointing_enable \
    "$@"
