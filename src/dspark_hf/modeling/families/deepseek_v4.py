"""DeepSeek-V4-shaped drafters: the stages that its released checkpoints carry as `mtp.*`.

A stage is a layer of the target: hyper-connection streams, attention with sinks and one head for keys and values, a
mixture of experts. A block sees a window of context that is counted from its anchor.
Shapes: B batch, T tokens, M streams, E hidden size, C context tokens, D head dim.
"""

from collections.abc import Mapping
from dataclasses import fields as fields_of
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, initialization
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as stock
from transformers.models.deepseek_v4.configuration_deepseek_v4 import DeepseekV4Config

from dspark_hf.messages import shown

from .family import Family, check_rope, check_sizes

_KINDS = {"layer_types": "sliding_attention", "mlp_layer_types": "moe"}
_SCORING = ("sqrtsoftplus", "sigmoid")  # of routers, as far as transformers has them
# Parts of names that the releases store in float32. The rest is in the weights' own dtype there, norms too, which are
# in float32 in memory.
_STORED_IN_FLOAT32 = ("attn_hc.", "ffn_hc.", "hc_head.", "sinks", "e_score_correction_bias")


class DenseMLP(stock.DeepseekV4MLP):
    """What stands in the place of a mixture of experts: one expert of `moe_intermediate_size`, without a router."""

    def forward(self, hidden_states: Tensor, input_ids: Tensor | None = None) -> Tensor:
        """States of the shape of `hidden_states`, `(batch, tokens, hidden)`; `input_ids` `(batch, tokens)` are for
        routers.
        """

        return super().forward(hidden_states)


class DraftLayer(stock.DeepseekV4DecoderLayer):
    """A layer that may be dense: with `n_routed_experts=0`."""

    def __init__(self, config: PreTrainedConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        if config.n_routed_experts == 0:
            self.mlp = DenseMLP(config)


class DeepseekV4(Family):
    """DeepSeek-V4: layers on several residual streams, without compressed tokens."""

    engine_name = "DeepseekV4"
    config_cls = DeepseekV4Config
    layer_cls = DraftLayer
    norm_cls = stock.DeepseekV4RMSNorm
    rotary_cls = stock.DeepseekV4RotaryEmbedding
    has_eagle3 = False
    is_default = False
    has_sinks = True
    has_anchored_window = True
    may_tap_last = True
    heads_read_raw = True
    has_confidence_bias = False
    without_adapter = ("o_a_proj",)
    # transformers' trainer reads a checkpoint's config as one of no model, whose layers are of other kinds.
    unwritten = ("mlp_layer_types",)
    float32_names = tuple(stock.DeepseekV4PreTrainedModel._keep_in_fp32_modules_strict)

    def make_config(self, **fields: Any) -> PreTrainedConfig:
        check_sizes(fields)
        num_experts, num_used = fields.get("n_routed_experts"), fields.get("num_experts_per_tok")
        if num_experts and num_used is not None and num_used > num_experts:
            raise ValueError(
                f"A token takes num_experts_per_tok={num_used} of n_routed_experts={num_experts}: give fewer of the "
                "former, or n_routed_experts=0 for dense layers."
            )
        if fields.get("n_shared_experts", 1) != 1:
            raise ValueError(
                f"A layer has one shared expert, got n_shared_experts={shown(fields['n_shared_experts'])}."
            )
        if (scoring := fields.get("scoring_func", _SCORING[0])) not in _SCORING:
            raise ValueError(f"scoring_func must be {' or '.join(_SCORING)}, got {shown(scoring)}.")
        num_layers = fields.get("num_hidden_layers", 1)
        for name, kind in _KINDS.items():
            if set(fields.get(name) or [kind]) != {kind}:
                raise ValueError(
                    f"DeepSeek-V4-shaped draft layers are of the kind {kind!r} alone, got "
                    f"{name}={shown(fields[name])}."
                )
        config = self.config_cls(**{**fields, **{name: [kind] * num_layers for name, kind in _KINDS.items()}})
        check_rope(config)
        return config

    def decoder_config(self, target: PreTrainedConfig, num_hidden_layers: int, **overrides: Any) -> PreTrainedConfig:
        if target.model_type != self.config_cls.model_type:
            raise ValueError(
                f"A DeepSeek-V4-shaped drafter takes its sizes from a DeepSeek-V4 target, and this is a "
                f"{target.model_type} one; choose another family, e.g. 'qwen3'."
            )
        if "rope_theta" in overrides:
            # It would be lost beside the inherited parameters, which are of two kinds.
            raise ValueError(
                f"DeepSeek-V4 has several ropes, got rope_theta={shown(overrides['rope_theta'])}: give "
                "rope_parameters, with 'main' for a drafter's layers."
            )
        own = {field.name for field in fields_of(self.config_cls)} - {
            field.name for field in fields_of(PreTrainedConfig)
        }
        inherited = {name: getattr(target, name) for name in own - set(_KINDS)}
        tokens = {name: getattr(target, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        return self.make_config(**{**inherited, **tokens, **overrides, "num_hidden_layers": num_hidden_layers})

    def lift(self, config: PreTrainedConfig, hidden: Tensor) -> Tensor:
        return hidden.unsqueeze(2).repeat(1, 1, config.hc_mult, 1)  # [B, T, M, E]

    def collapse(self, config: PreTrainedConfig) -> nn.Module:
        return stock.DeepseekV4HyperHead(config)

    def rope(self, rotary: nn.Module, hidden: Tensor, positions: Tensor, layer_type: str) -> dict[str, tuple]:
        return {"main": rotary(hidden, positions, layer_type="main")}

    def context_kv(self, attention: nn.Module, context: Tensor, rope: dict[str, tuple]) -> tuple[Tensor, Tensor]:
        # One head, whose keys are its values.
        states = attention.kv_norm(attention.kv_proj(context)).unsqueeze(1)  # [B, 1, C, D]
        states = stock.apply_rotary_pos_emb(states, *rope["main"])
        return states, states

    def to_store(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        stored = dict(tensors)
        for name, tensor in tensors.items():
            own = torch.float32 if any(part in name for part in _STORED_IN_FLOAT32) else dtype
            # A norm that was trained in float32 stays in it.
            if tensor.is_floating_point() and tensor.dtype != own:
                changed = tensor.to(own)
                stored[name] = changed if torch.equal(changed.to(tensor.dtype), tensor) else tensor
        return stored

    def init_weights(self, module: nn.Module, std: float) -> None:
        for kind, normal, zeros, ones in (
            (stock.DeepseekV4TopKRouter, ("weight",), ("e_score_correction_bias",), ()),
            (stock.DeepseekV4Experts, ("gate_up_proj", "down_proj"), (), ()),
            (stock.DeepseekV4Attention, (), ("sinks",), ()),
            (stock.DeepseekV4HyperConnection, ("fn",), ("base",), ("scale",)),
            (stock.DeepseekV4HyperHead, ("hc_fn",), ("hc_base",), ("hc_scale",)),
        ):
            if isinstance(module, kind):
                for name in normal:
                    initialization.normal_(getattr(module, name), mean=0.0, std=std)
                for name in zeros:
                    initialization.zeros_(getattr(module, name))
                for name in ones:
                    initialization.ones_(getattr(module, name))
