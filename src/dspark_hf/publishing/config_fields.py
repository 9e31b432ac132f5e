"""Fields of a drafter's config.json, in any packaging: of which kind each must be. Files of others may hold anything.

Fields that are not listed are checked by the config classes that take them.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from dspark_hf.messages import shown


class _Kind(NamedTuple):
    told: str
    holds: Callable[[Any], bool]


# No size of a model is larger; torch cannot count the numbers of tensors that are.
_LARGEST = 2**31 - 1


def _is_whole(value: Any, least: int) -> bool:
    return type(value) is int and value >= least


def _are(value: Any, is_one: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(is_one(one) for one in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_COUNT = _Kind("a whole number above 0", lambda value: _is_whole(value, 1))
_NUMBER = _Kind("a whole number from 0 up", lambda value: _is_whole(value, 0))
_REAL = _Kind("a finite number", lambda value: type(value) in (int, float) and abs(value) < 1e300)
_POSITIVE = _Kind("a finite number above 0", lambda value: _REAL.holds(value) and value > 0)
_FLAG = _Kind("true or false", lambda value: type(value) is bool)
_TEXT = _Kind("text", _is_text)
_NAMES = _Kind("a list of names", lambda value: _are(value, _is_text))
_LAYERS = _Kind("a list of layers", lambda value: _are(value, lambda one: _is_whole(one, 0)))
_BLOCK = _Kind("two whole numbers above 0", lambda value: _are(value, _COUNT.holds) and len(value) == 2)
_SECTION = _Kind("fields", lambda value: isinstance(value, dict))
_SECTIONS = _Kind("a list of fields", lambda value: _are(value, _SECTION.holds))

_BY_KIND = {
    _COUNT: (
        "block_size", "draft_num_hidden_layers", "draft_vocab_size", "dspark_block_size", "emb_dim", "global_head_dim",
        "gru_hidden_dim", "hc_mult", "hc_sinkhorn_iters", "head_dim", "hidden_size", "intermediate_size",
        "max_position_embeddings", "moe_intermediate_size", "num_anchors", "num_attention_heads",
        "num_global_key_value_heads", "num_hidden_layers", "num_key_value_heads", "num_target_layers", "o_groups",
        "o_lora_rank", "original_max_position_embeddings", "q_lora_rank", "qk_rope_head_dim", "sliding_window",
        "speculative_tokens", "swa_window_size", "target_hidden_size", "ttt_length", "vocab_size",
    ),
    _NUMBER: (
        "dspark_markov_rank", "dspark_noise_token_id", "markov_rank", "mask_token_id", "n_routed_experts",
        "n_shared_experts", "num_experts_per_tok", "pure_draft_prefix_len",
    ),
    _REAL: (
        "final_logit_softcapping", "hc_eps", "initializer_range", "rms_norm_eps", "routed_scaling_factor",
        "step_loss_decay", "swiglu_limit",
    ),
    _POSITIVE: ("beta_fast", "beta_slow", "compress_rope_theta", "factor", "rope_theta"),
    _FLAG: (
        "attention_bias", "attention_k_eq_v", "causal", "confidence_head_with_markov", "embed_requires_grad",
        "enable_confidence_head", "is_causal", "is_neox_style", "norm_before_fc", "norm_before_residual",
        "own_embed_tokens", "own_lm_head", "rope_is_neox_style", "sample_from_anchor", "shift_label",
        "sliding_window_non_causal", "use_sliding_window", "use_swa",
    ),
    _TEXT: (
        "algorithm", "default_proposal_method", "expert_dtype", "fmt", "markov_head_type", "model_type",
        "name_or_path", "projector_type", "proposal_type", "quant_method", "rope_type", "scale_fmt", "scoring_func",
        "speculators_model_type", "target_fingerprint", "target_name_or_path",
    ),
    _NAMES: ("architectures", "layer_types", "mlp_layer_types"),
    _LAYERS: (
        "aux_hidden_state_layer_ids", "dspark_target_layer_ids", "eagle_aux_hidden_state_layer_ids",
        "target_layer_ids",
    ),
    _BLOCK: ("weight_block_size",),
    _SECTION: (
        "dflash_config", "dspark_config", "quantization_config", "rope_parameters", "rope_scaling",
        "speculators_config", "transformer_layer_config", "verifier",
    ),
    _SECTIONS: ("proposal_methods",),
}  # fmt: skip
_KINDS = {name: kind for kind, names in _BY_KIND.items() for name in names}
# Each takes memory or time by itself; a model has far fewer.
_MOST = {"hc_sinkhorn_iters": 1000, "num_hidden_layers": 1000}


def wrong_field(fields: Mapping[str, Any]) -> str | None:
    """The first field that is not of its kind, and what it must be; `None` if all are. A null is as good as none.

    Args:
        fields (`Mapping`): Fields; those of sections are not looked at.
    """
    for name, value in fields.items():
        kind = _KINDS.get(name)
        if kind is None or value is None:
            continue
        if not kind.holds(value):
            return f"{name} must be {kind.told}, got {_short(value)}"
        if kind in (_COUNT, _NUMBER) and value > (most := _MOST.get(name, _LARGEST)):
            return f"{name} must be at most {most}, got {_short(value)}"
    return None


def check_fields(config: Mapping[str, Any], where: str) -> None:
    """Check that the fields of a config.json are of their kinds, those of its sections too.

    Args:
        config (`Mapping`): The fields.
        where (`str`): Whose they are, for messages.

    Raises:
        `ValueError`: If one is not; the message names it.
    """
    for prefix, fields in _with_sections(config):
        if told := wrong_field(fields):
            raise ValueError(f"{where}: config.json: {prefix}{told}. Correct it, or fetch the drafter again.")


def _with_sections(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Fields, and those of each section in them, which are looked at when they are known to be sections."""
    waiting = [("", config)]
    while waiting:
        prefix, fields = waiting.pop()
        yield prefix, fields
        for name, value in fields.items():
            if value is not None and _KINDS.get(name) in (_SECTION, _SECTIONS):
                sections = value if isinstance(value, list) else [value]
                waiting += [(f"{prefix}{name}.", section) for section in sections]


def _short(value: Any) -> str:
    """A value as it is told: a number of any length takes Python long, and is refused from some length on."""
    if isinstance(value, int) and abs(value) >= 10**80:
        return f"a number of {value.bit_length()} bits"
    try:
        return f"{shown(value)}"
    except ValueError:
        return f"{type(value).__name__} with a number of too many digits"
