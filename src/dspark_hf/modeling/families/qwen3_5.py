"""Qwen3.5-shaped drafters: a gate on attention's output, norms' weights counted from one, part of a head rotated."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.qwen3_5 import modeling_qwen3_5
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig

from .family import Family, check_sizes


class Qwen35(Family):
    """The full-attention layer of Qwen3.5, as stanleyphoong/Ornith-1.0-9B-DSpark has it."""

    engine_name = "Qwen35"
    config_cls = Qwen3_5TextConfig
    layer_cls = modeling_qwen3_5.Qwen3_5DecoderLayer
    norm_cls = modeling_qwen3_5.Qwen3_5RMSNorm
    rotary_cls = modeling_qwen3_5.Qwen3_5TextRotaryEmbedding
    apply_rotary = staticmethod(modeling_qwen3_5.apply_rotary_pos_emb)
    has_eagle3 = False
    is_default = False  # engines have the plain Qwen3 layer

    def make_config(self, **fields: Any) -> PreTrainedConfig:
        check_sizes(fields)
        # Of a target's fields that a drafter inherits, none makes layers of another kind.
        num_layers = fields.get("num_hidden_layers", 1)
        return self.config_cls(**{"layer_types": ["full_attention"] * num_layers, **fields})

    def context_keys(self, attention: nn.Module, context: Tensor, shape: tuple[int, ...]) -> Tensor:
        return attention.k_norm(attention.k_proj(context).view(shape))
