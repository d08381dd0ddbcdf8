"""What settings of TRL and verl are called here (docs/coming.md), for those who type them."""

_NO_KL = "deliberately absent: there is no KL term and no reference model (docs/coming.md)"
HERE = {
    "--advantage-norm": "scale_rewards norm_adv_by_std_in_grpo",
    "--aggregation": "loss_agg_mode",
    "--checkpointing": "gradient_checkpointing enable_gradient_checkpointing",
    "--clip-high": "epsilon_high clip_ratio_high",
    "--clip-low": "epsilon clip_ratio_low",
    "--data": "train_dataset train_files dataset_name",
    "--dual-clip": "delta clip_ratio_c",
    "--dynamic-sampling": "filter_groups",
    "--epochs": "num_train_epochs total_epochs",
    "--eval-data": "eval_dataset val_files",
    "--eval-every": "eval_steps test_freq",
    "--eval-samples": "val_kwargs",
    "--grad-clip": "max_grad_norm",
    "--group-size": "num_generations rollout.n",
    "--importance": "vllm_importance_sampling_correction rollout_correction",
    "--importance-cap": "vllm_importance_sampling_cap",
    "--keep-best": "load_best_model_at_end metric_for_best_model",
    "--keep-checkpoints": "save_total_limit max_actor_ckpt_to_keep",
    "--keep-responses": "log_completions rollout_data_dir validation_data_dir",
    "--l-max": "max_completion_length max_response_length",
    "--logger": "report_to",
    "--lora-rank": "peft_config lora_r",
    "--lora-targets": "target_modules lora_target_modules",
    "--loss": "loss_type importance_sampling_level loss_mode",
    "--lr": "learning_rate",
    "--lr-schedule": "lr_scheduler_type",
    "--lr-warmup": "warmup_steps lr_warmup_steps",
    "--max-prompt-tokens": "max_prompt_length",
    "--mini-batch-prompts": "steps_per_generation ppo_mini_batch_size",
    "--model": "model_name_or_path",
    "--overlong": "mask_truncated_completions overlong_buffer_cfg",
    "--prompts-per-step": "generation_batch_size train_batch_size",
    "--resume": "resume_from_checkpoint resume_mode",
    "--resume-weights": "save_only_model load_contents",
    "--reward": "reward_funcs custom_reward_function custom_reward_function.path",
    "--rollout": "use_vllm vllm_mode rollout.name",
    "--rollout-memory": "vllm_gpu_memory_utilization gpu_memory_utilization",
    "--rollout-servers": "vllm_server_base_url",
    "--run-dir": "output_dir default_local_dir",
    "--save-every": "save_steps save_freq",
    "--steps": "max_steps total_training_steps",
    "--template-args": "chat_template_kwargs apply_chat_template_kwargs",
    "--token-budget": "per_device_train_batch_size ppo_max_token_len_per_gpu",
    "siri export --push": "push_to_hub hub_model_id",
    _NO_KL: "beta kl kl_coef kl_loss_coef use_kl_loss use_kl_in_reward",
}
"""Our option, or words on it -> their names, of verl's the end that tells what is meant."""
_BY_NAME = {name: ours for ours, names in HERE.items() for name in names.split()}


def name_here(key: str) -> str:
    """What a setting of theirs is here, in words; "" for one that is not known."""
    parts = key.replace("-", "_").split(".")
    alike = f"--{parts[-1].replace('_', '-')}" if len(parts) > 1 else ""  # actor.optim.lr
    return _BY_NAME.get(".".join(parts[-2:])) or _BY_NAME.get(parts[-1]) or alike
