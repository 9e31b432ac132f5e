"""Other packagings of drafters, read as the flat layout.

Their tensors have the same names, but for some prefixes ([`KEY_MAPPING`]); what differs is config.json.
"""

from collections.abc import Collection, Mapping
from typing import Any

from dspark_hf.modeling import DFlashModel, DraftModel, DSparkConfig, DSparkModel, Eagle3Config, Eagle3Model
from dspark_hf.publishing.folder import kind

from .deepseek_v4 import flat_fields, has_stages, refuse_relatives

KEY_MAPPING = {r"^logit_head\.": "", r"^midlayer\.": "layers.0."}
_FIELDS = DSparkConfig.own_fields() | Eagle3Config.own_fields()
# The classes whose configs mean what SpecForge and z-lab mean, wherever their fields stand.
_NESTED_ARCHITECTURES = ("DFlashDraftModel", "DFlash2DraftModel", "DSparkDraftModel")
_WAY_OUT = "Serve it with the engine that it was made for, or train another: DSparkModel.from_target(target)."
_SECTIONS = ("dflash_config", "dspark_config", "speculators_config", "transformer_layer_config")
_TAPS = ("target_layer_ids", "aux_hidden_state_layer_ids", "eagle_aux_hidden_state_layer_ids")
# What changes a drafter's arithmetic without adding a tensor, and the value that changes nothing.
_NEUTRAL = {
    "input_embedding_scale": 1,
    "output_multiplier": 1,
    "logit_scale": 1,
    "is_neox_style": True,
    "fc_norm": False,
    "norm_output": False,
}


def flat_config(config: Mapping[str, Any], names: Collection[str], where: str) -> dict[str, Any]:
    """The config.json of any packaging in the flat layout.

    Args:
        config (`Mapping`): The config.json.
        names (`Collection[str]`): Names of the checkpoint's tensors.
        where (`str`): Where the checkpoint lies, for messages.

    Raises:
        `ValueError`: If it is no drafter's, or one of a kind that is not read.
    """
    flat = _flat(config, names, where)
    width = flat.pop("target_hidden_size", None)
    if width is not None and width != flat["hidden_size"]:
        raise ValueError(
            f"{where} is {flat['hidden_size']} wide and its target {width}; a drafter must be as wide as its target."
        )
    for name, neutral in _NEUTRAL.items():
        if flat.get(name) not in (None, neutral):
            raise ValueError(
                f"{where} has {name}={flat[name]!r} in its config.json, a variant that is not read: its drafts would "
                f"be wrong. Known is {name}={neutral!r}."
            )
    if "ttt_length" not in flat and flat.get("mask_token_id") is None:
        raise ValueError(
            f"{where} does not say which token fills its blocks; add mask_token_id to config.json, as in training."
        )
    return flat


def _flat(config: Mapping[str, Any], names: Collection[str], where: str) -> dict[str, Any]:
    for name in _SECTIONS:
        if not isinstance(config.get(name), dict | None):
            raise ValueError(f"{where}: {name} in config.json must hold fields, got {config[name]!r:.80}.")
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise ValueError(f"{where}: architectures in config.json must be a list of names, got {architectures!r:.80}.")
    for name in _TAPS:
        taps = config.get(name)
        if taps is not None and not (isinstance(taps, list) and all(type(tap) is int for tap in taps)):
            raise ValueError(f"{where}: {name} in config.json must be a list of layers, got {taps!r:.80}.")
    if has_stages(config, names):
        return flat_fields(config, names, where)
    refuse_relatives(config, names, where)
    if "speculators_model_type" in config:
        return _from_speculators(config, names, where)
    if any(name.startswith("midlayer.") for name in names):
        return _from_midlayer(config, names, where)
    if "dflash_config" in config or "dspark_config" in config or _architecture(config) in _NESTED_ARCHITECTURES:
        return _from_nested(config, names, where)
    if "target_layer_ids" in config and ("block_size" in config or "ttt_length" in config):
        return dict(config)
    raise ValueError(
        f"{where} is no DSpark drafter nor another that is read: its config.json has neither target_layer_ids with "
        "block_size (DSpark, DFlash) or ttt_length (EAGLE-3), nor dflash_config, nor speculators_model_type; "
        f"found model_type={config.get('model_type')!r}. A target is loaded with AutoModelForCausalLM."
    )


def drafter_class(flat: Mapping[str, Any]) -> type[DraftModel]:
    """The class of a drafter, from its flat config."""
    return {"DSpark": DSparkModel, "DFlash": DFlashModel, "EAGLE-3": Eagle3Model}[kind(flat)]


def _architecture(config: Mapping[str, Any]) -> str:
    return next(iter(config.get("architectures") or []), "")


def _from_nested(config: Mapping[str, Any], names: Collection[str], where: str) -> dict[str, Any]:
    """SpecForge and z-lab: a stock decoder's config with the drafter's fields in a dictionary of their own."""
    nested = {**(config.get("dflash_config") or {}), **(config.get("dspark_config") or {})}
    kind = nested.get("projector_type") or ("dspark" if _architecture(config).startswith("DSpark") else "dflash")
    if kind == "dflash" and (_architecture(config).startswith("DFlash2") or "selector_rank" in nested):
        kind = "dflash2"
    if kind not in ("dspark", "dflash"):
        raise ValueError(
            f"{where} is a drafter with projector_type={kind!r}, which is not read; known are 'dspark' and 'dflash'. "
            f"{_WAY_OUT}"
        )
    flat = {
        name: value for name, value in config.items() if name not in ("dflash_config", "dspark_config", "auto_map")
    }
    known = _FIELDS | set(_NEUTRAL) | {"final_logit_softcapping", "target_hidden_size"}
    flat |= {name: value for name, value in nested.items() if name in known}
    if flat.get("target_layer_ids") is None:
        raise ValueError(
            f"{where} does not say which target layers it reads; add target_layer_ids to config.json, counted from 0."
        )
    if flat.get("model_type") in (None, "dspark", "dflash"):
        flat["model_type"] = "qwen3"
    flat = {"sample_from_anchor": kind == "dspark", "block_size": 16} | flat | _nested_windows(config, nested)
    return _with_heads(flat, names)


def _nested_windows(config: Mapping[str, Any], nested: Mapping[str, Any]) -> dict[str, Any]:
    """What the nested fields say about sliding windows, as top-level fields."""
    fields = {}
    if config.get("is_causal") is None and nested.get("causal") is not None:
        fields["is_causal"] = nested["causal"]
    slides = "sliding_attention" in (config.get("layer_types") or [])
    if nested.get("swa_window_size") is not None and (slides or nested.get("use_swa")):
        fields["sliding_window"] = nested["swa_window_size"]
    if nested.get("use_swa") and not slides:
        # Layers that slide by this switch see their whole block, unlike those that slide by layer_types.
        fields["layer_types"] = ["sliding_attention"] * config["num_hidden_layers"]
        fields.setdefault("is_causal", config.get("is_causal") or False)
    return fields


def _from_speculators(config: Mapping[str, Any], names: Collection[str], where: str) -> dict[str, Any]:
    """speculators: the decoder's config is nested, and tapped layers are counted from the embedding."""
    kind = config["speculators_model_type"]
    if config.get("projector_type") not in (None, "dflash"):
        kind = config["projector_type"]
    if kind not in ("dspark", "dflash", "eagle3"):
        raise ValueError(
            f"{where} is a speculators drafter of kind {kind!r}, which is not read; known are dspark, dflash, eagle3. "
            f"{_WAY_OUT}"
        )
    taps = config.get("eagle_aux_hidden_state_layer_ids" if kind == "eagle3" else "aux_hidden_state_layer_ids")
    if taps is None:
        raise ValueError(
            f"{where} does not say which target layers it reads (aux_hidden_state_layer_ids in config.json); add "
            "them, counted from 1 for the first layer."
        )
    if 0 in taps:
        raise ValueError(
            f"{where} reads the target's embeddings (layer 0 of {taps}), which is not supported. {_WAY_OUT}"
        )
    speculation = config.get("speculators_config") or {}
    known = _FIELDS | set(_NEUTRAL) | {"target_hidden_size"}
    flat = {name: value for name, value in config["transformer_layer_config"].items() if not name.startswith("_")}
    flat |= {name: value for name, value in config.items() if name in known and value is not None}
    flat |= {
        "target_layer_ids": [layer_id - 1 for layer_id in taps],
        "target_name_or_path": (speculation.get("verifier") or {}).get("name_or_path"),
        "draft_vocab_size": config.get("draft_vocab_size") if "d2t" in names else None,
    }
    flat = {name: value for name, value in flat.items() if name != "architectures"}
    if kind == "eagle3":
        methods = speculation.get("proposal_methods") or [{}]
        num_tokens = methods[0].get("speculative_tokens") or Eagle3Config.ttt_length
        trained = {
            "own_lm_head": "lm_head.weight" in names,
            "own_embed_tokens": bool(config.get("embed_requires_grad")) and "embed_tokens.weight" in names,
        }
        return {"ttt_length": num_tokens} | trained | flat
    if config.get("sliding_window_non_causal"):
        flat["is_causal"] = False
    return _with_heads({"sample_from_anchor": False} | flat, names)


def _from_midlayer(config: Mapping[str, Any], names: Collection[str], where: str) -> dict[str, Any]:
    """EAGLE-3 as its authors and SpecForge write it: a stock decoder's config that leaves the taps to the engine."""
    if config.get("target_layer_ids") is None:
        raise ValueError(
            f"{where} does not say which target layers it reads, and engines count them differently: add "
            "target_layer_ids to config.json, counted from 0. Usual for a target of n layers are 1, n // 2 - 1 and "
            "n - 4."
        )
    trained = {"own_lm_head": "lm_head.weight" in names, "ttt_length": Eagle3Config.ttt_length}
    flat = trained | {name: value for name, value in config.items() if name != "eagle_config"}
    return flat | {"draft_vocab_size": config.get("draft_vocab_size") if "d2t" in names else None}


def _with_heads(flat: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    # What is not said about the confidence head, the tensors tell.
    has_head = any(name.endswith("confidence_head.proj.weight") for name in names)
    defaults = {"enable_confidence_head": has_head, "confidence_head_with_markov": bool(flat.get("markov_rank"))}
    return defaults | flat
