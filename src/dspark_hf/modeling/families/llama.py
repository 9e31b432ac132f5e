"""Llama-shaped drafters."""

from transformers.models.llama import modeling_llama
from transformers.models.llama.configuration_llama import LlamaConfig

from .family import Family


class Llama(Family):
    """Llama: what [`Family`] expects anyway."""

    engine_name = "Llama"
    config_cls = LlamaConfig
    layer_cls = modeling_llama.LlamaDecoderLayer
    norm_cls = modeling_llama.LlamaRMSNorm
    rotary_cls = modeling_llama.LlamaRotaryEmbedding
    apply_rotary = staticmethod(modeling_llama.apply_rotary_pos_emb)
