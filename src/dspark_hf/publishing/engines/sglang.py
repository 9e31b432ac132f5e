"""What SGLang demands of a drafter under `--speculative-algorithm DSPARK`, or DFLASH, read in release 0.5.23.

Its files, below `sglang/srt/`: `models/dspark.py` with `models/dflash.py` (classes, heads, tensors),
`models/lfm2_dspark.py`, and `speculative/` with `dspark_components/dspark_config.py` and `dflash_utils.py` (fields).
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
    if checkpoint.nested is not None and checkpoint.kind in ("dflash", "domino"):
        return _block_drafter(checkpoint)
    if checkpoint.kind == "domino":
        return ["it reads Domino's head in SpecForge's packaging; `dspark convert --format specforge` writes that"]
    found = []
    if checkpoint.architecture not in _ARCHITECTURES:
        found.append(f"it has no {checkpoint.architecture}")
    if checkpoint.rank == 0:
        found.append("it needs a sequential head (markov_rank above 0)")
    elif checkpoint.config.get("markov_head_type") not in _HEAD_TYPES:
        found.append(f"it needs markov_head_type, one of {', '.join(_HEAD_TYPES)}")
    if checkpoint.is_reduced:
        found.append("it has no reduced draft vocabulary")
    config = {**checkpoint.config, **(checkpoint.nested or {})}
    mask, vocab_size = config.get("mask_token_id"), config.get("vocab_size") or 0
    if mask is None or not 0 <= mask < vocab_size:
        found.append(f"mask_token_id must be a token of the target, got {mask}")
    slides = "sliding_attention" in (checkpoint.config.get("layer_types") or [])
    if slides and checkpoint.config.get("sliding_window") is None:
        found.append("its sliding layers need sliding_window")
    return found + checkpoint.contradictions()


def _block_drafter(checkpoint: Checkpoint) -> list[str]:
    """Of DFlash and Domino, which `--speculative-algorithm DFLASH` serves as one class."""
    if checkpoint.architecture != "DFlashDraftModel":
        return [f"it has no {checkpoint.architecture}"]
    if checkpoint.is_reduced:
        return ["it has no reduced draft vocabulary"]
    if checkpoint.kind == "domino" and checkpoint.nested.get("pure_draft_prefix_len") != 1:
        return ["its Domino leaves the first slot without a bias (pure_draft_prefix_len must be 1)"]
    return checkpoint.contradictions()
