"""What SGLang demands of a drafter under `--speculative-algorithm DSPARK`, read in release 0.5.23.

Its files, below `sglang/srt/`: `models/dspark.py` with `models/dflash.py` (classes, heads, tensors),
`models/lfm2_dspark.py`, and `speculative/dspark_components/dspark_config.py` (fields).
"""

from .checkpoint import Checkpoint

_ARCHITECTURES = ("Qwen3DSparkModel", "DSparkDraftModel", "LingDSparkModel", "Lfm2DSparkDraftModel")
_HEAD_TYPES = ("vanilla", "gated", "rnn")


def problems(checkpoint: Checkpoint) -> list[str]:
    """Why SGLang does not load a drafter; empty if it serves it.

    Args:
        checkpoint ([`Checkpoint`]): The drafter.
    """
    if checkpoint.is_speculators:
        return ["it does not read speculators' packaging; save_pretrained writes the one that it reads"]
    if checkpoint.kind == "eagle3":
        return ["it reads EAGLE-3 drafters in SpecForge's packaging alone, and this is another"]
    found = []
    if checkpoint.architecture not in _ARCHITECTURES:
        found.append(f"it has no {checkpoint.architecture}")
    if checkpoint.rank == 0:
        found.append("it needs a sequential head (markov_rank above 0)")
    elif checkpoint.config.get("markov_head_type") not in _HEAD_TYPES:
        found.append(f"it needs markov_head_type, one of {', '.join(_HEAD_TYPES)}")
    if checkpoint.is_reduced:
        found.append("it has no reduced draft vocabulary")
    mask, vocab_size = checkpoint.config.get("mask_token_id"), checkpoint.config.get("vocab_size")
    if mask is None or not 0 <= mask < vocab_size:
        found.append(f"mask_token_id must be a token of the target, got {mask}")
    slides = "sliding_attention" in (checkpoint.config.get("layer_types") or [])
    if slides and checkpoint.config.get("sliding_window") is None:
        found.append("its sliding layers need sliding_window")
    return found + checkpoint.contradictions()
