"""What vLLM demands of a drafter, read in release 0.33.0.

Its files, below `vllm/`: `config/speculative.py` (which drafters are DSpark's), `model_executor/models/` with
`registry.py`, `qwen3_dspark.py`, `qwen3_dflash.py` and `gemma4_dspark.py` (fields and tensors), and
`transformers_utils/configs/speculators/` with `algos.py` and `base.py` (speculators' packaging).
"""

from .checkpoint import Checkpoint

_QWEN3, _GEMMA4 = "Qwen3DSparkModel", "Gemma4DSparkModel"
# Layers that it has an EAGLE-3 class for (algos.py, update_eagle3).
_EAGLE3_LAYERS = ("qwen3", "llama")


def problems(checkpoint: Checkpoint) -> list[str]:
    """Why vLLM does not load a drafter, or would draft wrong with it; empty if it serves it.

    Args:
        checkpoint ([`Checkpoint`]): The drafter.
    """
    if checkpoint.is_speculators:
        return _of_speculators(checkpoint)
    if checkpoint.kind == "domino":
        return ["it has no Domino head"]
    if checkpoint.nested is not None:
        return _nested(checkpoint)
    if checkpoint.kind == "eagle3":
        return [f"it reads EAGLE-3 drafters in speculators' packaging alone{checkpoint.conversion('that')}"]
    found = []
    if checkpoint.architecture not in (_QWEN3, _GEMMA4):
        found.append(f"it has no {checkpoint.architecture}")
    if "markov_rank" not in checkpoint.config:
        found.append("it reads markov_rank from config.json, which lacks it")
    return found + _heads(checkpoint) + _vocabulary(checkpoint) + _gemma4(checkpoint) + checkpoint.contradictions()


def _nested(checkpoint: Checkpoint) -> list[str]:
    """SpecForge's packaging: DSpark by its class and layers, DFlash as z-lab has it."""
    if checkpoint.kind == "dspark" and "markov_rank" not in checkpoint.config:
        return ["it reads markov_rank at the top of config.json, where it is missing"]
    return _heads(checkpoint) + _vocabulary(checkpoint) + checkpoint.contradictions()


def _of_speculators(checkpoint: Checkpoint) -> list[str]:
    config, kind, layers = checkpoint.config, checkpoint.kind, checkpoint.decoder.get("model_type")
    if kind not in ("dspark", "dflash", "eagle3"):
        return [f"what it demands of a drafter of kind {kind} is not known here"]
    found = []
    speculation = config.get("speculators_config") or {}
    methods = speculation.get("proposal_methods") or [{}]
    if methods[0].get("speculative_tokens") is None:
        found.append("it reads speculators_config.proposal_methods[0].speculative_tokens, which is missing")
    if "name_or_path" not in (speculation.get("verifier") or {}):
        found.append("it reads speculators_config.verifier.name_or_path, which is missing")
    if kind == "eagle3":
        if layers not in _EAGLE3_LAYERS:
            found.append(f"it has no EAGLE-3 of {layers} layers")
        return found + _vocabulary(checkpoint)
    # The class follows from the kind; a transformer_layer_config of other layers changes nothing about it.
    if layers != "qwen3":
        found.append(f"it builds Qwen3 layers of this packaging, and these are {layers}")
    if kind == "dflash" and config.get("sample_from_anchor"):
        found.append("its DFlash drops the anchor's output (sample_from_anchor must be false)")
    types = set(checkpoint.decoder.get("layer_types") or [])
    if kind == "dflash" and len(types) > 1 and not config.get("sliding_window_non_causal", True):
        found.append("its DFlash has one causality for all layers: sliding_window_non_causal must be true")
    return found + _heads(checkpoint) + _vocabulary(checkpoint) + checkpoint.contradictions()


def _heads(checkpoint: Checkpoint) -> list[str]:
    if checkpoint.rank and checkpoint.head_type != "vanilla":
        return [f"it knows the vanilla sequential head only, not {checkpoint.head_type}"]
    return []


def _vocabulary(checkpoint: Checkpoint) -> list[str]:
    if not checkpoint.is_reduced:
        return []
    if checkpoint.architecture == _GEMMA4:
        return ["its Gemma 4 drafter has no reduced draft vocabulary"]
    missing = [name for name in ("lm_head.weight", "d2t") if not checkpoint.has(name)]
    if not missing:
        return []
    return [
        "it needs the output head's rows of a reduced draft vocabulary in the checkpoint "
        f"({', '.join(missing)}){checkpoint.conversion('them')}"
    ]


def _gemma4(checkpoint: Checkpoint) -> list[str]:
    if checkpoint.architecture != _GEMMA4:
        return []
    types = set(checkpoint.config.get("layer_types") or ["full_attention"])
    if checkpoint.config.get("attention_k_eq_v") and types == {"full_attention"}:
        return []
    return [
        "its Gemma 4 drafter makes values of keys in every layer: attention_k_eq_v must be true and layer_types all "
        "'full_attention'"
    ]
