"""What differs between the decoder architectures a drafter can be built from.

A drafter is a stock transformers decoder stack; a family names its classes and says how context keys and values are
made. Shapes: B batch, C context tokens, E hidden size, H key/value heads, D head dim.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from dspark_hf.messages import shown
from dspark_hf.publishing.config_fields import wrong_field

_ACTIVATIONS = ("hidden_act", "hidden_activation")

# Frequencies that depend on the longest position of a pass. A drafter's context is rotated in pieces, so its rope must
# turn a position by the same angle in every pass.
LENGTH_DEPENDENT = ("dynamic", "longrope")


def plain_rope(rope: dict[str, Any]) -> dict[str, Any]:
    """The rope parameters of another: the base of `rope`, and nothing else of it."""
    return {"rope_type": "default", "rope_theta": rope.get("rope_theta", 10000.0)}


def check_rope(config: PreTrainedConfig) -> None:
    """Check how positions are turned.

    Args:
        config (`PreTrainedConfig`): A decoder's.

    Raises:
        `ValueError`: If transformers has no such rope, or its factors are not one for each pair of a head.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    tables = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    for table in tables:
        kind = table.get("rope_type", "default")
        if kind not in ("default", *ROPE_INIT_FUNCTIONS):
            raise ValueError(
                f"rope_type must be one of default, {', '.join(ROPE_INIT_FUNCTIONS)}, got {shown(kind)}; correct "
                "rope_parameters."
            )
        if table.get("rope_theta", 1.0) is None:
            raise ValueError("rope_theta must be a finite number above 0, got None; correct rope_parameters.")
        if kind != "longrope":
            continue
        num_pairs = (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads) // 2
        for name in ("short_factor", "long_factor"):
            factors = table.get(name)
            if not isinstance(factors, list) or len(factors) != num_pairs:
                raise ValueError(
                    f"{name} of rope_parameters must be {num_pairs} numbers, one for each pair of a head, got "
                    f"{shown(factors)}."
                )


class Family:
    """Llama-shaped defaults; a subclass states only what its architecture does differently."""

    engine_name: str  # begins the names by which serving engines choose their classes
    config_cls: type[PreTrainedConfig]
    layer_cls: type[nn.Module]
    norm_cls: type[nn.Module]
    rotary_cls: type[nn.Module]
    apply_rotary: staticmethod
    has_eagle3 = True  # whether its layer can be an EAGLE-3 drafter's
    is_default = True  # whether a target of this shape gets such a drafter, if none is asked for
    has_sinks = False  # whether attention has sinks, which only its eager form knows of
    has_anchored_window = False  # whether sliding windows are counted from the anchor, and shared by the block
    may_tap_last = False  # whether drafters read the target's last layer, too
    heads_read_raw = False  # whether the heads read block states before the final norm
    has_confidence_bias = True
    float32_names: tuple[str, ...] = ()  # what loading leaves in float32
    without_adapter: tuple[str, ...] = ()  # linear layers that take their inputs in groups, as no adapter does
    unwritten: tuple[str, ...] = ()  # fields that config.json leaves out, since layers are of one kind

    def make_config(self, **fields: Any) -> PreTrainedConfig:
        """The draft decoder's config with these fields.

        Args:
            fields: As checkpoints and users name them.

        Raises:
            `ValueError`: If they ask for layers that a drafter cannot have, or a size is none.
        """
        check_sizes(fields)
        rope = fields.get("rope_parameters")
        rope = {**fields, **(rope if isinstance(rope, dict) else {})}
        if rope.get("partial_rotary_factor") not in (None, 1):
            raise ValueError(
                f"{self.engine_name}-shaped draft layers rotate whole heads, got partial_rotary_factor="
                f"{rope['partial_rotary_factor']}. Leave it out of a new drafter. Of released ones DeepSpec's copy it "
                "from their target's config and rotate whole heads: remove it there; one trained so is not read."
            )
        config = self.config_cls(**fields)
        check_rope(config)
        return config

    def decoder_config(self, target: PreTrainedConfig, num_hidden_layers: int, **overrides) -> PreTrainedConfig:
        """The decoder config of a drafter for a target: its widths, with `num_hidden_layers` full-attention layers.

        Args:
            target (`PreTrainedConfig`): The target's text config; attributes it lacks get the family's defaults.
            num_hidden_layers (`int`): Number of draft layers.
            overrides: Any field of the family's config, e.g. `intermediate_size=1024`.

        Raises:
            `ValueError`: If the family cannot be shaped like this target, or a field is none that a drafter can have.
        """
        # Heads may differ from layer to layer.
        fields = self._decoder_fields(target, num_hidden_layers, target.per_layer_config[0], **overrides)
        return self.make_config(**{**fields, **overrides})

    def _decoder_fields(
        self, target: PreTrainedConfig, num_hidden_layers: int, layer: PreTrainedConfig, **overrides: Any
    ) -> dict[str, Any]:
        # A target of another family may lack a name; its own config class decides what the name would mean.
        of_target = getattr(layer, "num_attention_heads", None) or max(1, target.hidden_size // 64)
        num_heads = overrides.get("num_attention_heads", of_target)
        width = getattr(target, "intermediate_size", 4 * target.hidden_size)
        return {
            "vocab_size": target.vocab_size,
            "hidden_size": target.hidden_size,
            # Gemma 3n names one for each layer.
            "intermediate_size": max(width) if isinstance(width, (list, tuple)) else width,
            "num_attention_heads": num_heads,
            "num_key_value_heads": getattr(layer, "num_key_value_heads", num_heads),
            "head_dim": getattr(layer, "head_dim", None) or target.hidden_size // num_heads,
            "max_position_embeddings": getattr(target, "max_position_embeddings", 4096),
            "rope_parameters": self._rope_parameters(target),
            "rms_norm_eps": getattr(target, "rms_norm_eps", None) or 1e-6,
            "initializer_range": getattr(target, "initializer_range", 0.02),
            **{name: getattr(target, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": False,
            "num_hidden_layers": num_hidden_layers,
            "layer_types": ["full_attention"] * num_hidden_layers,
        }

    def _rope_parameters(self, target: PreTrainedConfig) -> dict[str, Any]:
        # Partial rotary, per-layer-type tables and frequencies that depend on the length belong to the target's
        # attention; the drafter's is its own, with the target's base.
        rope = getattr(target, "rope_parameters", None) or {}
        if "rope_theta" not in rope:
            rope = rope.get("full_attention", {}) if isinstance(rope.get("full_attention"), dict) else {}
        kept = {name: value for name, value in rope.items() if name != "partial_rotary_factor"}
        if kept.get("rope_type") in ("proportional", *LENGTH_DEPENDENT):  # Gemma 4's is a partial one
            return plain_rope(kept)
        return {**plain_rope({}), **kept}

    def engine_fields(self, config: PreTrainedConfig) -> dict[str, Any]:
        """What engines read in `config.json` beyond what `config` itself writes there."""
        return {}

    def embed_scale(self, config: PreTrainedConfig) -> float:
        """What embeddings are multiplied with, by the decoder's `config`; the target's own module does that itself."""
        return 1.0

    def check_attention(self, name: str | None) -> None:
        """Check that an attention implementation keeps the attention sinks of the draft layers.

        Args:
            name (`str` or `None`): As transformers names it; None is its choice.

        Raises:
            `ValueError`: If it would drop them.
        """
        if self.has_sinks and name not in (None, "eager"):
            raise ValueError(
                f"{self.engine_name}-shaped draft layers have attention sinks, which attn_implementation={name!r} "
                "would drop: drafts would be wrong. Use 'eager', or leave it out."
            )

    def lift(self, config: PreTrainedConfig, hidden: Tensor) -> Tensor:
        """Embeddings as the first layer takes them.

        Args:
            config (`PreTrainedConfig`): The draft decoder's.
            hidden (`torch.Tensor` of shape `(batch, tokens, hidden)`): The embeddings.

        Returns:
            `torch.Tensor` of that shape, or `(batch, tokens, streams, hidden)`.
        """
        return hidden

    def collapse(self, config: PreTrainedConfig) -> nn.Module | None:
        """What makes states `(batch, tokens, hidden)` of the last layer's output, by the decoder's `config`; None if
        nothing.
        """
        return None

    def to_store(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """Tensors in the dtypes that files have for them, where it changes no number.

        Args:
            tensors (`Mapping`): A drafter's tensors by name.
            dtype (`torch.dtype`): That of its weights.
        """
        return dict(tensors)

    def init_weights(self, module: nn.Module, std: float) -> None:
        """Fill in fresh weights of a `module` that transformers does not know in general, with standard deviation
        `std`.
        """

    def rotary(self, config: PreTrainedConfig) -> nn.Module:
        """Tables for [`Family.rope`], by the decoder's `config`: as for texts of the original length, whatever the
        length.
        """
        rotary = self.rotary_cls(config)
        types = rotary.rope_type
        rotary.rope_type = dict.fromkeys(types, "default") if isinstance(types, dict) else "default"
        return rotary

    def rope(self, rotary: nn.Module, hidden: Tensor, positions: Tensor, layer_type: str) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions for draft layers of a type.

        Args:
            rotary (`nn.Module`): The tables.
            hidden (`torch.Tensor` of shape `(batch, tokens, hidden)`): States, for their dtype and device.
            positions (`torch.LongTensor` of shape `(batch, tokens)`): Places in the text, from 0.
            layer_type (`str`): `"full_attention"` or `"sliding_attention"`.

        Returns:
            Two `torch.Tensor` of shape `(batch, tokens, head_dim)`, in the dtype of `hidden`.
        """
        return rotary(hidden, positions)

    def context_kv(self, attention: nn.Module, context: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Keys and values of context states, by the layer's own projections.

        Args:
            attention (`nn.Module`): The `self_attn` of a draft layer.
            context (`torch.Tensor` of shape `(batch, context, hidden)`): Normalised, projected features.
            rope (`tuple[torch.Tensor, torch.Tensor]`): Cosines and sines of the context positions.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`, each of shape `(batch, kv_heads, context, head_dim)`.
        """
        # Heads are counted, so that a context may be empty.
        num_heads = attention.k_proj.out_features // attention.head_dim
        shape = (*context.shape[:-1], num_heads, attention.head_dim)
        keys = self.context_keys(attention, context, shape).transpose(1, 2)  # [B, H, C, D]
        values = attention.v_proj(context).view(shape).transpose(1, 2)
        return self.apply_rotary(keys, keys, *rope)[1], values

    def context_keys(self, attention: nn.Module, context: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Unrotated keys.

        Args:
            attention (`nn.Module`): The `self_attn` of a draft layer.
            context (`torch.Tensor` of shape `(batch, context, hidden)`): Normalised, projected features.
            shape (`tuple[int, ...]`): `(batch, context, kv_heads, head_dim)`.

        Returns:
            `torch.Tensor` of shape `shape`.
        """
        return attention.k_proj(context).view(shape)


def check_sizes(fields: Mapping[str, Any]) -> None:
    """Check the `fields` of a decoder's config.

    Raises:
        `ValueError`: If one is not of its kind, does not fit another, or names no activation.
    """
    if told := wrong_field(fields):
        raise ValueError(f"{told}.")
    heads, shared = fields.get("num_attention_heads"), fields.get("num_key_value_heads")
    if heads and shared and heads % shared:
        raise ValueError(f"num_attention_heads={heads} must be a multiple of num_key_value_heads={shared}.")
    for name in _ACTIVATIONS:
        value = fields.get(name)
        if value is not None and (not isinstance(value, str) or value not in ACT2FN):
            raise ValueError(f"{name} must name an activation of transformers, such as 'silu', got {shown(value)}.")
