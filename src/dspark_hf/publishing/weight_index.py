"""The index of sharded weights: which file holds which tensor."""

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from dspark_hf.files import read_json

_SUFFIX = ".safetensors"


def read_weight_map(path: str | os.PathLike) -> dict[str, str]:
    """The shard of each tensor, by the tensor's name.

    Args:
        path (`str` or `os.PathLike`): A `model.safetensors.index.json`.

    Raises:
        `ValueError`: If the file is no such index, or names what is no safetensors file in its own folder.
    """
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path} must hold `weight_map`, tensors and their files, got {weight_map!r:.80}.")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not shard.endswith(_SUFFIX) or not _is_plain(shard):
            raise ValueError(
                f"{path} says that the tensor {tensor!r:.80} is in {shard!r:.80}. It may only name *{_SUFFIX} files "
                f"beside it in {Path(path).parent}: save the checkpoint again with save_pretrained."
            )
    return weight_map


def _is_plain(name: str) -> bool:
    return name == PurePosixPath(name).name == PureWindowsPath(name).name
