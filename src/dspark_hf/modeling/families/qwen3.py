"""Qwen3-shaped drafters: the layout that serving engines read, the default for targets without a family here."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.qwen3 import modeling_qwen3
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config

from .family import Family


class Qwen3(Family):
    """Qwen3: Llama with a norm on queries and keys."""

    engine_name = "Qwen3"
    config_cls = Qwen3Config
    layer_cls = modeling_qwen3.Qwen3DecoderLayer
    norm_cls = modeling_qwen3.Qwen3RMSNorm
    rotary_cls = modeling_qwen3.Qwen3RotaryEmbedding
    apply_rotary = staticmethod(modeling_qwen3.apply_rotary_pos_emb)

    def make_config(self, **fields: Any) -> PreTrainedConfig:
        # Without this flag the config forgets the window.
        slides = "sliding_attention" in (fields.get("layer_types") or [])
        return super().make_config(**{**fields, **({"use_sliding_window": True} if slides else {})})

    def context_keys(self, attention: nn.Module, context: Tensor, shape: tuple[int, ...]) -> Tensor:
        return attention.k_norm(attention.k_proj(context).view(shape))
