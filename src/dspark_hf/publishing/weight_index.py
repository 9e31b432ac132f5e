"""A checkpoint's tensors, read without their numbers: which file holds which, of what shape and type."""

import os
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from dspark_hf.files import read_json
from dspark_hf.messages import shown

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_SUFFIX = ".safetensors"
# What wrappers around a model put into the names of its tensors: DDP, torch.compile, FSDP.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module"}
# What a model that holds the drafter's layers puts before them.
HOLDER = "model."


class Stored(NamedTuple):
    """A tensor in a file: its shape, and its type as safetensors writes it (`BF16`)."""

    shape: tuple[int, ...]
    dtype: str


def read_stored(folder: str | os.PathLike, weights: str = WEIGHTS) -> dict[str, Stored]:
    """The tensors of a checkpoint by name, after checking that it is whole.

    Args:
        folder (`str` or `os.PathLike`): The checkpoint's folder.
        weights (`str`, *optional*): The file that holds them, where there is no index.

    Raises:
        `ValueError`: If a file is missing or damaged.
    """
    folder, shards, found = Path(folder), {weights}, {}
    if (folder / INDEX).is_file():
        shards = set(read_weight_map(folder / INDEX).values())
    for name in sorted(shards):
        if not (folder / name).is_file():
            raise ValueError(f"There is no {name} in {folder}; the checkpoint is not whole. Save it again.")
        try:
            with safe_open(folder / name, framework="pt") as file:
                slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
                found |= {key: Stored(tuple(one.get_shape()), one.get_dtype()) for key, one in slices.items()}
        except SafetensorError as error:
            raise ValueError(
                f"{folder / name} cannot be read ({error}); the file is damaged. Save it again."
            ) from error
    return found


def read_weight_map(path: str | os.PathLike) -> dict[str, str]:
    """The shard of each tensor, by the tensor's name.

    Args:
        path (`str` or `os.PathLike`): A `model.safetensors.index.json`.

    Raises:
        `ValueError`: If the file is no such index, or names what is no safetensors file in its own folder.
    """
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path} must hold `weight_map`, tensors and their files, got {shown(weight_map)}.")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not shard.endswith(_SUFFIX) or not _is_plain(shard):
            raise ValueError(
                f"{path} says that the tensor {shown(tensor)} is in {shown(shard)}. It may only name *{_SUFFIX} files "
                f"beside it in {Path(path).parent}: save the checkpoint again with save_pretrained."
            )
    return weight_map


def _is_plain(name: str) -> bool:
    return name == PurePosixPath(name).name == PureWindowsPath(name).name
