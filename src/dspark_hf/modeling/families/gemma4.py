"""Gemma 4-shaped drafters: norms on both sides of attention and MLP, scaled embeddings, values normed like keys."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.gemma4 import modeling_gemma4
from transformers.models.gemma4.configuration_gemma4 import Gemma4TextConfig

from .family import LENGTH_DEPENDENT, Family, plain_rope


class DraftLayer(modeling_gemma4.Gemma4TextDecoderLayer):
    """A layer that keeps no keys for others: from transformers 5.24 on the last of each type does."""

    def __init__(self, config: PreTrainedConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.self_attn.store_full_length_kv = False


class Gemma4(Family):
    """Gemma 4: scaled embeddings, normed values, a rotary table for each kind of layer."""

    engine_name = "Gemma4"
    config_cls = Gemma4TextConfig
    layer_cls = DraftLayer
    norm_cls = modeling_gemma4.Gemma4RMSNorm
    rotary_cls = modeling_gemma4.Gemma4TextRotaryEmbedding
    has_eagle3 = False

    def make_config(self, **fields: Any) -> PreTrainedConfig:
        if fields.get("enable_moe_block") or fields.get("hidden_size_per_layer_input", 256):
            raise ValueError(
                "A Gemma 4-shaped drafter has neither experts nor inputs per layer, got "
                f"enable_moe_block={fields.get('enable_moe_block', False)} and hidden_size_per_layer_input="
                f"{fields.get('hidden_size_per_layer_input', 256)}; set them to False and 0 if its tensors lack them."
            )
        # A target's fields that its drafter inherited: draft layers share no keys, so none is wider for it.
        return super().make_config(**{**fields, "num_kv_shared_layers": 0, "use_double_wide_mlp": False})

    def decoder_config(self, target: PreTrainedConfig, num_hidden_layers: int, **overrides: Any) -> PreTrainedConfig:
        layer_types = getattr(target, "layer_types", None) or []
        # Draft layers have the heads of the target's full-attention layers.
        layer = layer_types.index("full_attention") if "full_attention" in layer_types else 0
        heads = target.per_layer_config[layer]
        fields = self._decoder_fields(target, num_hidden_layers, heads, **overrides)
        full = {
            "global_head_dim": overrides.get("head_dim", fields["head_dim"]),
            "num_global_key_value_heads": overrides.get("num_key_value_heads", fields["num_key_value_heads"]),
            "hidden_activation": getattr(target, "hidden_activation", None) or "gelu_pytorch_tanh",
            "attention_k_eq_v": getattr(target, "attention_k_eq_v", False),
            "final_logit_softcapping": getattr(target, "final_logit_softcapping", None),
            "hidden_size_per_layer_input": 0,
        }
        del fields["hidden_act"]
        return self.make_config(**{**fields, **full, **overrides})

    def _rope_parameters(self, target: PreTrainedConfig) -> dict[str, Any]:
        rope = getattr(target, "rope_parameters", None) or {}
        if isinstance(rope.get("full_attention"), dict):
            tables = {name: rope[name] for name in ("full_attention", "sliding_attention") if name in rope}
            depends = [name for name, table in tables.items() if table.get("rope_type") in LENGTH_DEPENDENT]
            return tables | {name: plain_rope(tables[name]) for name in depends}
        plain = super()._rope_parameters(target)
        return {"full_attention": plain, "sliding_attention": plain}

    def engine_fields(self, config: PreTrainedConfig) -> dict[str, Any]:
        # transformers keeps what differs between layer types layer by layer; engines read the names of before.
        heads = config.per_layer_config[config.layer_types.index("full_attention")]
        return {
            "global_head_dim": heads.head_dim,
            "num_global_key_value_heads": heads.num_key_value_heads if config.attention_k_eq_v else None,
        }

    def embed_scale(self, config: PreTrainedConfig) -> float:
        return config.hidden_size**0.5

    def rope(self, rotary: nn.Module, hidden: Tensor, positions: Tensor, layer_type: str) -> tuple[Tensor, Tensor]:
        return rotary(hidden, positions, layer_type)

    def context_kv(self, attention: nn.Module, context: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        shape = (*context.shape[:-1], -1, attention.head_dim)
        keys = attention.k_proj(context).view(shape)  # [B, C, H, D]
        values = keys if attention.v_proj is None else attention.v_proj(context).view(shape)
        keys = modeling_gemma4.apply_rotary_pos_emb(attention.k_norm(keys), *rope, unsqueeze_dim=2)
        return keys.transpose(1, 2), attention.v_norm(values).transpose(1, 2)
