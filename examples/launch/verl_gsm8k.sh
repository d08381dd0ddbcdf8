#!/usr/bin/env bash
# verl 0.9 on GSM8K with the fused head: two settings and no import. Data: python3 examples/data_preprocess/gsm8k.py
# of verl's repository, which writes train.parquet and test.parquet to DATA.
#   DATA=~/data/gsm8k MODEL=Qwen/Qwen2.5-1.5B-Instruct examples/launch/verl_gsm8k.sh [verl's settings]
# ENGINE=megatron takes Megatron, whose head the adapter replaces by one variable in place of the back end's name.
set -euo pipefail
DATA=${DATA:-$HOME/data/gsm8k} MODEL=${MODEL:-Qwen/Qwen2.5-1.5B-Instruct} GPUS=${GPUS:-8} ENGINE=${ENGINE:-fsdp}
if [ "$ENGINE" = megatron ]; then
    export VERL_USE_EXTERNAL_MODULES=siri_kernels.integrations.verl
    HEAD=(model_engine=megatron)
else
    HEAD=(actor_rollout_ref.model.fused_kernel_options.impl_backend=siri)
fi
exec python3 -m verl.trainer.main_ppo \
    "${HEAD[@]}" \
    actor_rollout_ref.model.use_fused_kernels=True \
    actor_rollout_ref.model.path="$MODEL" \
    actor_rollout_ref.model.use_remove_padding=True \
    algorithm.adv_estimator=grpo \
    data.train_files="$DATA/train.parquet" \
    data.val_files="$DATA/test.parquet" \
    data.train_batch_size=256 \
    data.max_prompt_length=512 \
    data.max_response_length=1024 \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.actor.ppo_mini_batch_size=64 \
    actor_rollout_ref.actor.use_dynamic_bsz=True \
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384 \
    actor_rollout_ref.actor.use_kl_loss=False \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=8 \
    actor_rollout_ref.rollout.gpu_memory_utilization=0.5 \
    trainer.n_gpus_per_node="$GPUS" \
    trainer.nnodes=1 \
    trainer.total_epochs=1 \
    trainer.logger='["console"]' \
    "$@"
