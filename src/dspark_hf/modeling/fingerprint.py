"""Tell one target from another, by its name and by its weights."""

import hashlib
import os
from pathlib import Path

import torch
from transformers import PreTrainedModel

from .placement import loaded
from .plain_head import is_quantised

_NUM_ROWS = 64


def public_name(name_or_path: str) -> str | None:
    """A model's `name_or_path` as others may read it: of a folder its own name, not its place on this machine."""
    return (Path(name_or_path).name if is_folder(name_or_path) else name_or_path) or None


def is_folder(name_or_path: str) -> bool:
    """Whether a model's `name_or_path` is a place on this machine, and no repository's name."""
    return os.path.isabs(name_or_path) or os.path.isdir(name_or_path)


def target_fingerprint(target: PreTrainedModel, num_tokens: int | None = None) -> str | None:
    """A short digest of some rows of the target's output head, equal whether it is loaded in bfloat16 or float32.

    Args:
        target (`PreTrainedModel`): The target.
        num_tokens (`int`, *optional*): Of the first rows only, as if no tokens had been added behind them.

    Returns:
        `str`, or `None` where the weights are not at hand (meta device) or not plain floating point (quantised).
    """
    head = target.get_output_embeddings()
    if getattr(head, "weight", None) is None:
        return None
    with loaded(head):
        weight = head.weight[:num_tokens] if num_tokens is not None else head.weight
        if weight.device.type == "meta" or is_quantised(weight):
            return None
        # Named, because torch's default device may be another.
        rows = torch.linspace(0, weight.shape[0] - 1, min(_NUM_ROWS, weight.shape[0]), device="cpu").long()
        # bfloat16 is the coarsest dtype in use: float32 and bfloat16 copies of one checkpoint agree in it.
        sample = weight.detach()[rows.to(weight.device)].to(torch.bfloat16).cpu().contiguous().view(torch.int16)
    return hashlib.sha256(sample.numpy().tobytes()).hexdigest()[:16]
