"""Tiny random models of every causal language model type of transformers, for list_targets.py."""

from dataclasses import fields
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

VOCAB, MOST_PARAMETERS = 64, 20_000_000
# Sizes by the names that configs have for them. A config without a name keeps its own value.
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim_model": 32, "emb_dim": 32,
    "num_hidden_layers": 4, "n_layer": 4, "n_layers": 4, "num_layers": 4, "decoder_layers": 4, "encoder_layers": 1,
    "num_attention_heads": 4, "n_head": 4, "num_heads": 4, "n_heads": 4, "decoder_attention_heads": 4,
    "encoder_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "attention_head_size": 8, "d_kv": 8,
    "intermediate_size": 48, "ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_ffn_dim": 48, "dim_ff": 48, "dff": 48,
    "n_inner": 48, "ffn_hidden_size": 48, "max_position_embeddings": 256, "n_positions": 256, "n_ctx": 256,
    "max_seq_len": 256, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "num_experts_per_token": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1, "q_lora_rank": 16,
    "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "sliding_window": 8,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_conv_kernel_dim": 4, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8,
    "mamba_d_conv": 4, "mamba_expand": 2, "mamba_chunk_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 16,
    "ssm_state_size": 8, "state_size": 8, "conv_kernel": 4, "chunk_size": 8, "expand": 2, "n_groups": 1,
    "lru_width": 32, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": VOCAB, "global_head_dim": 8,
    "rotary_dim": 4, "word_embed_proj_dim": 32, "embedding_size": 32, "initializer_range": 0.3, "init_std": 0.3,
}  # fmt: skip
WITHOUT = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None, "decoder_start_token_id": 1}
# What a type needs besides, or otherwise.
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "falcon_h1": {"mamba_d_ssm": 64},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "mamba"], "position_embedding_type": "rope",
                         "shared_intermediate_size": 32},
    "nemotron_h": {"hybrid_override_pattern": "M*M-", "initializer_range": 0.2},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "conv"], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "conv"], "num_dense_layers": 1},
    "gemma3_text": {"query_pre_attn_scalar": 8},
    "gemma2": {"query_pre_attn_scalar": 8},
    "gemma4_text": {"num_kv_shared_layers": 0},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2, "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0] * 4, "hidden_size_per_layer_input": 8,
    },
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
        "hc_count": 2, "hc_lowrank": 8, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8,
        "indexer_budget": 8, "indexer_compress_ratio": 2,
    },
    "deepseek_v4": {
        "num_key_value_heads": 1, "head_dim": 16, "moe_intermediate_size": 32, "num_experts_per_tok": 4,
        "o_groups": 2, "o_lora_rank": 8, "index_n_heads": 2, "index_head_dim": 8, "index_topk": 64, "hc_mult": 2,
        "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention",
                        "compressed_sparse_attention"],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        "mlp_layer_types": ["moe"] * 4, "partial_rotary_factor": 0.5, "initializer_range": 0.2,
    },
    "zaya": {"layer_types": ["hybrid", "hybrid_sliding", "hybrid", "hybrid_sliding"], "router_hidden_size": 16,
             "num_experts_per_tok": 1},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
               "num_key_value_heads": 4, "n_mamba_heads": 4},
    "kimi_linear": {"num_key_value_heads": 4, "q_lora_rank": None, "qk_rope_head_dim": 4, "linear_num_heads": 4,
                    "linear_head_dim": 8},
    "bailing_hybrid": {"num_key_value_heads": 4, "q_lora_rank": 16, "qk_rope_head_dim": 4},
    "qwen3_next": {"num_experts": 0, "mlp_only_layers": [0, 1, 2, 3]},
    "gpt_oss": {"num_local_experts": 4},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 8},
    "xmod": {"default_language": "en_XX"},
    **{name: {"bos_token_id": 1} for name in ("cwm", "emu3", "mllama", "modernbert-decoder")},
    **{name: {"num_key_value_heads": 4} for name in ("dots3_note", "dots3_note_text",
       "axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32",
       "glm4_moe_lite", "glm_moe_dsa", "longcat_flash", "minicpm3", "sarvam_mla", "youtu")},
}  # fmt: skip
_LINEAR = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]
OWN |= {
    name: {**OWN.get(name, {}), "layer_types": _LINEAR}
    for name in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid", "kimi_linear", "bailing_hybrid")
}


def tiny_config(model_type: str) -> Any:
    """A config of a model type with a few small layers."""
    config_cls = CONFIG_MAPPING[model_type]
    names = {field.name for field in fields(config_cls)}
    known = names | set(getattr(config_cls, "attribute_map", {}))
    chosen = {**SIZES, **WITHOUT, **OWN.get(model_type, {})}
    own = {name: value for name, value in chosen.items() if name in known}
    if "text_config" in names and "text_config" in config_cls.sub_configs:
        default = config_cls().get_text_config()
        if default.model_type != model_type:
            own["text_config"] = {**tiny_config(default.model_type).to_dict(), "model_type": default.model_type}
    own = {name: value for name, value in own.items() if not isinstance(vars(config_cls).get(name), property)}
    config = config_cls(**own)
    config.is_decoder, config.is_encoder_decoder = True, False
    return config


def tiny_model(model_type: str) -> PreTrainedModel:
    """A random model of a type in float64, always the same.

    Raises:
        `Exception`: If none is made of this type, of any kind; `ValueError` if the smallest is too large.
    """
    torch.manual_seed(0)
    config = tiny_config(model_type)
    with torch.device("meta"):
        size = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"the smallest made here has {size / 1e6:.0f}M parameters")
    model = AutoModelForCausalLM.from_config(config).double().eval()
    model.set_experts_implementation("eager")  # grouped products are not made of doubles
    return model
