"""Which tensor of a checkpoint has another shape than its config asks for; transformers only says that one has."""

from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file

from dspark_hf.modeling import DraftModel
from dspark_hf.publishing.contents import CONFIG
from dspark_hf.publishing.weight_index import read_stored

from .packagings.renaming import without_wrappers


def wrong_shape(
    model_cls: type[DraftModel], repo_or_dir: str, options: dict[str, Any], places: dict[str, Any]
) -> str | None:
    """The first tensor that does not fit, found without taking memory for any.

    Args:
        model_cls (`type[DraftModel]`): The drafter's class.
        repo_or_dir (`str`): The checkpoint, whose files are on this machine already.
        options (`dict`): With what it was to be loaded: `config`, `own_embeddings`, ...
        places (`dict`): `subfolder`, `revision`, `cache_dir`, ...

    Returns:
        `str`, *optional*: What to tell; None if that is not what is wrong.
    """
    try:
        folder = Path(cached_file(repo_or_dir, CONFIG, **places)).parent
        with torch.device("meta"):
            asked = model_cls(options["config"], own_embeddings=options["own_embeddings"]).state_dict()
        stored = read_stored(folder)
        plain = without_wrappers(stored, str(folder))
    # There is another reason then, which is the one to tell.
    except Exception:
        return None
    for name, (shape, _) in stored.items():
        wanted = asked.get(plain[name])
        if wanted is not None and shape != tuple(wanted.shape):
            return f"{name} in {folder} has the shape {shape}, and config.json asks for {tuple(wanted.shape)}."
    return None
