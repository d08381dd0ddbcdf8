"""Adapters: this package inside other trainers, two lines each. An adapter checks the signatures that it needs
where it goes in, and warns outside the versions that its tests ran with (`seams`); nothing here is imported by
`siri_kernels` itself.

| module | for | seam |
|---|---|---|
| `trl` | TRL's GRPOTrainer | the model's forward with `fused_lm_head=True`, `compute_loss` |
| `verl_plugin` | verl's actor | the back end `siri` of its fused kernels, by the entry point `verl.plugins` |
| `verl` | verl's actor with Megatron | all fused-kernel back ends, loaded by `VERL_USE_EXTERNAL_MODULES` |
| `openrlhf` | OpenRLHF's Actor | `Actor.forward`, set by Ray's `worker_process_setup_hook` |
| `prime_rl` | prime-rl's trainer | the LM head module that `inject_prime_lm_head` builds |
| `transformers` | a loop of your own | `base_model` and `get_output_embeddings` of a causal LM |
| `liger` | users of LigerFusedLinearGRPOLoss | its constructor and call, nothing of Liger is needed |
"""
