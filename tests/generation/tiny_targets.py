"""Tiny random targets and prompts for the decoding loop."""

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

VOCAB_SIZE = 64
FAMILIES = ("llama", "qwen3", "mistral", "gemma3_text")
# Fields of every tiny target's text.
TINY = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.5,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
# With the fields of theirs that matter to packed rounds.
MORE_FAMILIES = {
    "qwen2": {},
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "gpt_oss": {"sliding_window": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "phi3": {},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
}
_LINEAR = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
}
_MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_CONV_LAYERS = ["conv", "full_attention", "conv", "conv"]
_FIELDS = {
    "mistral": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    # The last two layers share the keys of the first two.
    "gemma4_text": {
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "hidden_size_per_layer_input": 8,
        "global_head_dim": 8,
        "num_kv_shared_layers": 2,
    },
    # Streams before the batch, and layers that share keys.
    "gemma3n_text": {
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 2,
        "laurel_rank": 4,
        "altup_num_inputs": 3,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    },
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": _EXPERTS,
    # Recurrent states, rewound by replay.
    "qwen3_next": {**_LINEAR, "num_experts": 0, "mlp_only_layers": [0, 1, 2, 3]},
    "qwen3_5_text": _LINEAR,
    "qwen3_5_moe_text": {**_LINEAR, **_EXPERTS, "shared_expert_intermediate_size": 16},
    "olmo_hybrid": _LINEAR,
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "granitemoehybrid": {
        **_MAMBA,
        "layer_types": ["mamba", "attention", "mamba", "mamba"],
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "shared_intermediate_size": 32,
        "position_embedding_type": "rope",
    },
    "nemotron_h": {
        "hybrid_override_pattern": "M*M-",
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 1,
        "ssm_state_size": 8,
        "conv_kernel": 4,
        "chunk_size": 8,
        "expand": 2,
        "initializer_range": 0.2,
    },
    "kimi_linear": {
        **_EXPERTS,
        "layer_types": _LINEAR["layer_types"],
        "num_key_value_heads": 4,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "q_lora_rank": None,
        "n_routed_experts": 4,
        "num_experts_per_token": 2,
        "linear_num_heads": 4,
        "linear_head_dim": 8,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_key_value_heads": 4,
        "n_mamba_heads": 4,
        "mamba_d_state": 8,
        "chunk_size": 8,
    },
    "bailing_hybrid": {
        **_EXPERTS,
        "layer_types": _LINEAR["layer_types"],
        "num_local_experts": 4,
        "num_key_value_heads": 4,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
    },
    # Windows slide in layers that have a state besides.
    "zaya": {
        "layer_types": ["hybrid", "hybrid_sliding", "hybrid", "hybrid_sliding"],
        "sliding_window": 8,
        "num_experts": 4,
        "moe_intermediate_size": 16,
        "router_hidden_size": 16,
    },
    # Convolutions only, which can be cropped.
    "lfm2": {"layer_types": _CONV_LAYERS, "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {**_EXPERTS, "layer_types": _CONV_LAYERS, "num_dense_layers": 1},
    # All experts are active, or a rounding error could choose others.
    "deepseek_v4": {
        "num_key_value_heads": 1,
        "head_dim": 16,
        "q_lora_rank": 16,
        "moe_intermediate_size": 32,
        "num_experts_per_tok": 4,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "sliding_window": 8,
        "o_groups": 2,
        "o_lora_rank": 8,
        "index_n_heads": 2,
        "index_head_dim": 8,
        "index_topk": 64,
        "hc_mult": 2,
        "layer_types": [
            "sliding_attention",
            "compressed_sparse_attention",
            "heavily_compressed_attention",
            "compressed_sparse_attention",
        ],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        "mlp_layer_types": ["moe"] * 4,
        "partial_rotary_factor": 0.5,
        "initializer_range": 0.2,
    },
}
# Weights with which no router of these tests is nearly undecided: a rounding error would choose another expert.
_SEEDS = {"qwen3_moe": 4}


def make_target(family="llama", vocab_size=VOCAB_SIZE, seed=0, **overrides):
    """A random float32 target whose argmax varies from position to position.

    Windows of mistral and gemma3 are shorter than most prompts.
    """
    torch.manual_seed(seed + _SEEDS.get(family, 0))
    fields = {**TINY, "vocab_size": vocab_size}
    fields |= _FIELDS.get(family, {}) | overrides
    config_cls = CONFIG_MAPPING[family]
    if isinstance(vars(config_cls).get("head_dim"), property):
        del fields["head_dim"]
    config = config_cls(**fields)
    return AutoModelForCausalLM.from_config(config).eval()


def make_prompt(length, seed=0, batch_size=1, vocab_size=VOCAB_SIZE):
    """Random ids without the padding token, `(batch, length)`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, vocab_size, (batch_size, length), generator=generator)


def padded_prompts(lengths, side="left", seed=0):
    """Rows of different lengths, padded with 0, and their mask."""
    width = max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        place = slice(width - length, width) if side == "left" else slice(0, length)
        ids[row, place] = make_prompt(length, seed=seed + row)[0]
    return ids, (ids != 0).long()
