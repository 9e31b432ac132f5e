"""SpecForge, z-lab and LiquidAI: a stock decoder's config with the drafter's fields in a dictionary of their own."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict

from dspark_hf.files import follow_umask, write_json
from dspark_hf.messages import shown
from dspark_hf.modeling import DraftModel

from .interleaved import FLAGS
from .packaging import WAY_OUT, Packaging, known_fields, with_heads

# The classes whose configs mean what SpecForge and z-lab mean, wherever their fields stand.
_ARCHITECTURES = ("DFlashDraftModel", "DFlash2DraftModel", "DSparkDraftModel", "DominoDraftModel")
_SECTIONS = ("dflash_config", "dspark_config")
_NOT_OF_LAYERS = ("auto_map", "projector_type", "emb_dim", "shift_label")
_BORROWED = ("embed_tokens", "lm_head")
# Older files have the heads in a module of their own.
_HEADS = "logit_head."
# Domino's tensors, which lie beside the layers there.
_DOMINO = {
    "prefix_gru.weight_ih_l0": "markov_head.prefix_gru.weight_ih",
    "prefix_gru.weight_hh_l0": "markov_head.prefix_gru.weight_hh",
    "embed_proj.0.weight": "markov_head.embed_proj.weight",
    "embed_proj.2.weight": "markov_head.markov_w2.weight",
}
# SGLang tells Domino by its projector: it has no class of SpecForge's name for it.
_CLASSES = {"dspark": "DSparkDraftModel", "dflash": "DFlashDraftModel", "domino": "DFlashDraftModel"}
_OF_HEADS = ("markov_rank", "markov_head_type", "enable_confidence_head", "confidence_head_with_markov")
# Ours beside the layers' fields, as in the flat layout.
_BESIDE = ("block_size", "is_causal", "num_target_layers", "num_anchors", "target_name_or_path", "target_fingerprint")


class SpecForge(Packaging):
    """Fields in `dflash_config` or `dspark_config`. Written, SGLang serves DFlash and Domino of it."""

    name = "specforge"

    def is_of(self, config: Mapping[str, Any], names: Collection[str]) -> bool:
        return any(name in config for name in _SECTIONS) or _architecture(config) in _ARCHITECTURES

    def rename(self, name: str) -> str:
        return _DOMINO.get(name, name.removeprefix(_HEADS))

    def flat(self, config: Mapping[str, Any], names: Collection[str], where: str) -> dict[str, Any]:
        nested = nested_fields(config)
        kind = nested.get("projector_type") or ("dspark" if "DSpark" in _architecture(config) else "dflash")
        if kind == "dflash" and (_architecture(config).startswith("DFlash2") or "selector_rank" in nested):
            kind = "dflash2"
        if kind not in _CLASSES:
            raise ValueError(
                f"{where} is a drafter with projector_type={shown(kind)}, which is not read; known are "
                f"{', '.join(_CLASSES)}. {WAY_OUT}"
            )
        flat = {name: value for name, value in config.items() if name not in (*_SECTIONS, *_NOT_OF_LAYERS)}
        known = known_fields() | {"final_logit_softcapping", *FLAGS}
        flat |= {name: value for name, value in nested.items() if name in known}
        if flat.get("target_layer_ids") is None:
            raise ValueError(
                f"{where} does not say which target layers it reads; add target_layer_ids to config.json, counted "
                "from 0."
            )
        if flat.get("model_type") in (None, "dspark", "dflash"):
            flat["model_type"] = "qwen3"
        flat = {"sample_from_anchor": kind == "dspark", "block_size": 16} | flat | nested_windows(config)
        if kind == "domino":
            flat |= _domino_fields({**config, **nested}, where)
        return with_heads(flat, names)

    def write(self, drafter: DraftModel, folder: str | os.PathLike) -> None:
        """Write a drafter so that SpecForge and SGLang read it.

        Args:
            drafter ([`DraftModel`]): The drafter.
            folder (`str` or `os.PathLike`): The folder to write, empty or absent.

        Raises:
            `ValueError`: If this packaging has no place for such a drafter.
        """
        config = drafter.config
        kind = "domino" if getattr(config, "markov_head_type", None) == "domino" else config.model_type
        layers = config.decoder_config.model_type
        if kind not in _CLASSES or layers != "qwen3" or drafter.has_reduced_vocabulary or config.own_lm_head:
            raise ValueError(
                "SpecForge's packaging holds DSpark, DFlash and Domino drafters of qwen3 layers, all tokens and the "
                f"target's output head; got {kind} of {layers} layers with draft_vocab_size={config.draft_vocab_size} "
                f"and own_lm_head={config.own_lm_head}. Save it in the flat layout."
            )
        if kind == "dflash" and config.sample_from_anchor:
            raise ValueError(
                "In SpecForge's packaging the anchor of a DFlash drafter does not draft, and here it does "
                "(sample_from_anchor=True). Save it in the flat layout."
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        theirs = {ours: name for name, ours in _DOMINO.items()} if kind == "domino" else {}
        tensors = {theirs.get(name, name): tensor for name, tensor in drafter.state_dict().items()}
        tensors = {name: tensors[name].cpu().contiguous() for name in tensors if name.split(".")[0] not in _BORROWED}
        save_torch_state_dict(tensors, folder, metadata={"format": "pt"})
        follow_umask(folder)
        write_json(folder / "config.json", _config(drafter, kind))


def _domino_fields(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    for name in ("emb_dim", "gru_hidden_dim"):
        if not isinstance(fields.get(name), int):
            raise ValueError(f"{where} does not say how large Domino's head is; add {name} to its dflash_config.")
    return {
        "markov_head_type": "domino",
        "markov_rank": fields["emb_dim"],
        "gru_hidden_dim": fields["gru_hidden_dim"],
        "pure_draft_prefix_len": fields.get("pure_draft_prefix_len") or 0,
    } | ({"sample_from_anchor": fields["shift_label"]} if "shift_label" in fields else {})


def _config(drafter: DraftModel, kind: str) -> dict[str, Any]:
    config = drafter.config
    nested = {
        "projector_type": kind,
        "mask_token_id": config.mask_token_id,
        "target_layer_ids": config.target_layer_ids,
    }
    beside = {name: getattr(config, name) for name in _BESIDE}
    if kind == "domino":
        beside["emb_dim"] = config.markov_rank
        nested |= {
            "emb_dim": config.markov_rank,
            "gru_hidden_dim": config.gru_hidden_dim,
            "pure_draft_prefix_len": config.pure_draft_prefix_len,
            "shift_label": config.sample_from_anchor,
        }
    elif kind == "dspark":
        # vLLM reads the heads' fields at the top, SpecForge among its own.
        heads = {name: getattr(config, name) for name in _OF_HEADS}
        nested |= heads
        beside |= heads | {"sample_from_anchor": config.sample_from_anchor}
    fields = config.decoder_config.to_diff_dict() | {name: beside[name] for name in beside if beside[name] is not None}
    return fields | {
        "architectures": [_CLASSES[kind]],
        "model_type": config.decoder_config.model_type,
        "dtype": str(drafter.dtype).removeprefix("torch."),
        "tie_word_embeddings": False,
        "dflash_config": nested,
    }


def nested_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `config`'s sections together."""
    return {name: value for section in _SECTIONS for name, value in (config.get(section) or {}).items()}


def nested_windows(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the nested fields of a `config` say about sliding windows, as top-level fields."""
    fields, nested = {}, nested_fields(config)
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


def _architecture(config: Mapping[str, Any]) -> str:
    return next(iter(config.get("architectures") or []), "")
