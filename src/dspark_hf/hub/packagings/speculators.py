"""speculators' packaging: the decoder's config is nested, and tapped layers are counted from the embedding."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from torch import Tensor

from dspark_hf.files import follow_umask, write_json
from dspark_hf.messages import shown
from dspark_hf.modeling import DraftModel, DSparkModel, Eagle3Config
from dspark_hf.publishing.engines.checkpoint import SPECULATORS_LAYERS

from .packaging import WAY_OUT, Packaging, known_fields, with_heads

_VERSION = "0.9.0"
_CLASSES = {"dspark": "DSparkSpeculator", "dflash": "DFlashSpeculator", "eagle3": "Eagle3Speculator"}
_TAPS = {"dspark": "aux_hidden_state_layer_ids", "eagle3": "eagle_aux_hidden_state_layer_ids"}
_TAPS["dflash"] = _TAPS["dspark"]
# Ours that mean the same there, and those that other readers pass over.
_SHARED = (
    "block_size", "mask_token_id", "sample_from_anchor", "markov_rank", "markov_head_type", "enable_confidence_head",
    "confidence_head_with_markov", "norm_before_residual", "norm_before_fc", "num_target_layers", "num_anchors",
    "target_fingerprint", "step_loss_decay", "own_lm_head",  # which tells a trained head from rows of the target's
)  # fmt: skip


class Speculators(Packaging):
    """Read and written: vLLM serves a reduced draft vocabulary of it, whose rows of the output head it holds."""

    name = "speculators"

    def is_of(self, config: Mapping[str, Any], names: Collection[str]) -> bool:
        return "speculators_model_type" in config

    def flat(self, config: Mapping[str, Any], names: Collection[str], where: str) -> dict[str, Any]:
        kind = _kind(config, where)
        taps = config.get(_TAPS[kind])
        if taps is None:
            raise ValueError(
                f"{where} does not say which target layers it reads ({_TAPS[kind]} in config.json); add them, "
                "counted from 1 for the first layer."
            )
        if 0 in taps:
            raise ValueError(
                f"{where} reads the target's embeddings (layer 0 of {taps}), which is not supported. {WAY_OUT}"
            )
        speculation = config.get("speculators_config") or {}
        known = known_fields()
        if not (layers := config.get("transformer_layer_config")):
            raise ValueError(
                f"{where} does not say how large its layers are: transformer_layer_config of config.json is missing "
                "or empty. Fetch it again."
            )
        flat = {name: value for name, value in layers.items() if not name.startswith("_")}
        flat |= {name: value for name, value in config.items() if name in known and value is not None}
        flat |= {
            "target_layer_ids": [layer_id - 1 for layer_id in taps],
            "target_name_or_path": (speculation.get("verifier") or {}).get("name_or_path"),
            "draft_vocab_size": config.get("draft_vocab_size") if "d2t" in names else None,
        }
        flat = {name: value for name, value in flat.items() if name != "architectures"}
        num_tokens = next(iter(speculation.get("proposal_methods") or []), {}).get("speculative_tokens")
        if kind == "eagle3":
            trained = {
                "own_lm_head": "lm_head.weight" in names,
                "own_embed_tokens": bool(config.get("embed_requires_grad")) and "embed_tokens.weight" in names,
            }
            return {"ttt_length": num_tokens or Eagle3Config.ttt_length} | trained | flat
        if config.get("sliding_window_non_causal") and "sliding_attention" in (flat.get("layer_types") or []):
            flat["is_causal"] = False
        # Where nothing says whether the anchor drafts, a proposal as long as its block does.
        drafts = num_tokens is not None and num_tokens == flat.get("block_size")
        return with_heads({"sample_from_anchor": drafts} | flat, names)

    def write(self, drafter: DraftModel, folder: str | os.PathLike) -> None:
        """Write a drafter so that speculators, vLLM and llama.cpp read it.

        Args:
            drafter ([`DraftModel`]): The drafter; with a reduced draft vocabulary and no output head of its own it
                must be bound to its target, whose rows are written.
            folder (`str` or `os.PathLike`): The folder to write, empty or absent.

        Raises:
            `ValueError`: If this packaging has no place for such a drafter.
        """
        config, layers = drafter.config, drafter.config.decoder_config.model_type
        kind = "domino" if getattr(config, "markov_head_type", None) == "domino" else config.model_type
        if kind == "dspark" and not (config.markov_rank or config.enable_confidence_head):
            kind = "dflash"
        if kind not in SPECULATORS_LAYERS:
            raise ValueError(
                f"speculators' packaging has no place for a {kind} drafter, only for "
                f"{', '.join(SPECULATORS_LAYERS)}. Save it in the flat layout, or in SpecForge's (--format specforge)."
            )
        if layers not in SPECULATORS_LAYERS[kind]:
            raise ValueError(
                f"speculators' packaging holds {kind} drafters of {' or '.join(SPECULATORS_LAYERS[kind])} layers, "
                f"got {layers}. Save it in the flat layout."
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_torch_state_dict(_tensors(drafter), folder, metadata={"format": "pt"})
        follow_umask(folder)
        write_json(folder / "config.json", _config(drafter, kind))


def _kind(config: Mapping[str, Any], where: str) -> str:
    kind = config["speculators_model_type"]
    if config.get("projector_type") not in (None, "dflash"):
        kind = config["projector_type"]
    if kind not in _CLASSES:
        raise ValueError(
            f"{where} is a speculators drafter of kind {shown(kind)}, which is not read; known are dspark, dflash, "
            f"eagle3. {WAY_OUT}"
        )
    return kind


def _tensors(drafter: DraftModel) -> dict[str, Tensor]:
    config = drafter.config
    left_out = {"embed_tokens.weight"} - ({"embed_tokens.weight"} if config.own_embed_tokens else set())
    left_out |= set() if config.own_lm_head else {"lm_head.weight"}
    tensors = {name: tensor for name, tensor in drafter.state_dict().items() if name not in left_out}
    if drafter.has_reduced_vocabulary and not config.own_lm_head:
        head = drafter.head  # a ValueError says that it is not bound
        if head.bias is not None:
            raise ValueError(
                "The target's output head has a bias, for which speculators' packaging has no place beside a reduced "
                "draft vocabulary. Save the drafter in the flat layout."
            )
        tensors["lm_head.weight"] = head.weight.to(drafter.dtype)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _config(drafter: DraftModel, kind: str) -> dict[str, Any]:
    config, is_block = drafter.config, isinstance(drafter, DSparkModel)
    layers = config.decoder_config.to_diff_dict()
    non_causal = {}
    if is_block:
        if config.is_causal is not None:
            layers["is_causal"] = config.is_causal
        slides = "sliding_attention" in config.attention_types()
        # vLLM's DFlash takes this for all layers, the full ones too.
        non_causal = {"sliding_window_non_causal": config.is_causal is False or not (slides or config.is_causal)}
    shared = {name: getattr(config, name) for name in _SHARED if hasattr(config, name)}
    method = {"proposal_type": "greedy", "speculative_tokens": config.num_slots}
    return {
        "architectures": [_CLASSES[kind]],
        "speculators_model_type": kind,
        "speculators_version": _VERSION,
        "dtype": str(drafter.dtype).removeprefix("torch."),
        "transformer_layer_config": layers | {"model_type": config.decoder_config.model_type},
        "draft_vocab_size": config.draft_vocab_size or config.vocab_size,
        _TAPS[kind]: [tap + 1 for tap in config.target_layer_ids],
        **{name: value for name, value in shared.items() if value is not None},
        **non_causal,
        **({} if is_block else {"embed_requires_grad": config.own_embed_tokens}),
        "speculators_config": {
            "algorithm": kind,
            "default_proposal_method": "greedy",
            "proposal_methods": [method],
            "verifier": {"name_or_path": config.target_name_or_path, "architectures": []},
        },
    }
