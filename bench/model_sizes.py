"""The models whose steps are timed."""

MODELS = {
    "1.5b": {
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "vocab_size": 151_936,
        "max_position_embeddings": 131_072,
    },
    "tiny": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 503,
        "max_position_embeddings": 512,
    },
}
"""Values of the published config.json of DeepSeek-R1-Distill-Qwen-1.5B, and a toy of the same make"""
