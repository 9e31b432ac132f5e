"""What llama.cpp's `convert_hf_to_gguf.py` demands of a drafter.

From its pull requests, merged where not said otherwise: 25173 (DSpark), 26275 (speculators' packaging), 27383 (LFM2),
27730 (`DSparkDraftModel`), and 25549 and 29226 (Gemma 4, both open). The converter itself was not at hand.
"""

from .checkpoint import Checkpoint

_ARCHITECTURES = ("Qwen3DSparkModel", "DSparkDraftModel", "Lfm2DSparkDraftModel")


def problems(checkpoint: Checkpoint) -> list[str]:
    """Why llama.cpp does not convert a drafter, or would draft wrong with it; empty if it does.

    Args:
        checkpoint ([`Checkpoint`]): The drafter.
    """
    if checkpoint.kind == "eagle3":
        return ["what it demands of EAGLE-3 drafters is not known here"]
    if checkpoint.kind == "domino":
        return ["its files have no place for Domino's head"]
    found = []
    if not checkpoint.is_speculators and checkpoint.architecture not in _ARCHITECTURES:
        found.append(f"its converter has no {checkpoint.architecture}")
    if checkpoint.is_speculators and checkpoint.decoder.get("model_type") != "qwen3":
        found.append(f"it builds Qwen3 layers, and these are {checkpoint.decoder.get('model_type')}")
    if checkpoint.rank == 0:
        found.append("it takes a drafter for DSpark's by its sequential head (markov_rank above 0)")
    elif checkpoint.head_type != "vanilla":
        found.append(f"its files hold the vanilla sequential head only, not {checkpoint.head_type}")
    if not checkpoint.is_speculators:
        if checkpoint.is_reduced:
            found.append(
                f"it reads a reduced draft vocabulary in speculators' packaging{checkpoint.conversion('that')}"
            )
        if checkpoint.config.get("sample_from_anchor") is False:
            says = checkpoint.conversion("one that says otherwise")
            found.append(f"in this layout it lets the anchor draft{says}")
    return found + checkpoint.contradictions()
