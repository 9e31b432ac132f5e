"""What the library speculators demands of a drafter to train it on, read in release 0.9.0.

Its files, below `speculators/`: `config.py`, `model.py`, and `models/` with `dspark/`, `dflash/` and `eagle3/`.
"""

from .checkpoint import Checkpoint


def problems(checkpoint: Checkpoint) -> list[str]:
    """Why speculators does not load a drafter; empty if it does.

    Args:
        checkpoint ([`Checkpoint`]): The drafter.
    """
    if not checkpoint.is_speculators:
        lacks = f", which has no place for a {checkpoint.kind} drafter of {checkpoint.layers} layers"
        return [f"it reads its own packaging alone{checkpoint.conversion('that') or lacks}"]
    config, kind, layers = checkpoint.config, checkpoint.kind, checkpoint.decoder.get("model_type")
    speculation = config.get("speculators_config") or {}
    found = []
    if not (speculation.get("verifier") or {}).get("name_or_path"):
        found.append("it takes the embedding from the target that speculators_config.verifier.name_or_path names")
    known = [method.get("proposal_type") for method in speculation.get("proposal_methods") or []]
    if speculation.get("default_proposal_method") not in known:
        found.append(f"speculators_config.default_proposal_method must be one of its proposal_methods, {known}")
    if kind in ("dspark", "dflash"):
        if layers != "qwen3":
            found.append(f"its {kind} builds Qwen3 layers, and these are {layers}")
        types = checkpoint.decoder.get("layer_types") or ["full_attention"]
        if checkpoint.decoder.get("is_causal") and "full_attention" in types:
            found.append("layers of full attention see their whole block there, and is_causal says otherwise")
    if checkpoint.is_reduced and not checkpoint.has("lm_head.weight"):
        found.append("it needs the rows of the output head (lm_head.weight) of a reduced draft vocabulary")
    return found + checkpoint.contradictions()
