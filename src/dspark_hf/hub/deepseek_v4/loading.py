"""The weights of the drafter inside a DeepSeek-V4 checkpoint: only files that hold them are fetched and opened.

transformers reads the released names and numbers, FP8 and FP4 among them, as it does for the target; both are exact in
bfloat16, since their scales are powers of two.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import get_max_memory
from safetensors import safe_open
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.utils import logging

from dspark_hf.hub.outline import outline
from dspark_hf.modeling import DSparkConfig, DSparkModel

from .layout import PREFIX
from .quantised import block_of, check_stored
from .released_names import RENAMES, released_tensors

INDEX = "model.safetensors.index.json"
_GB = 10**9
_NOT_OURS = "target."
_NEVER_QUANTISED = "markov_head.markov_w1.weight"
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}

logger = logging.get_logger(__name__)


class StagesModel(DSparkModel):
    """A [`DSparkModel`] while released stages are loaded: transformers finds the names of tensors by a class's."""

    _keys_to_ignore_on_load_unexpected = [*DSparkModel._keys_to_ignore_on_load_unexpected, rf"^{_NOT_OURS}"]


register_checkpoint_conversion_mapping(
    StagesModel.__name__,
    # A file may hold tensors of both: those of the target's layers must not be taken for stages.
    [WeightRenaming(source_patterns=r"^(?!mtp\.)", target_patterns=_NOT_OURS)]
    + [WeightRenaming(source_patterns=theirs, target_patterns=ours) for theirs, ours in RENAMES]
    + get_checkpoint_conversion_mapping("deepseek_v4"),
    overwrite=True,
)


@contextmanager
def stages_alone(
    raw: Mapping[str, Any], config: DSparkConfig, weight_map: Mapping[str, str], find: Callable[[str], str], where: str
) -> Iterator[tuple[str, type[DSparkModel]]]:
    """Make a folder of the drafter's files alone, which transformers can load.

    Args:
        raw (`Mapping`): The config.json of target and drafter.
        config ([`DSparkConfig`]): The drafter's; it is told how the weights are stored.
        weight_map (`Mapping[str, str]`): The file of each tensor.
        find (`Callable`): Gives a file's path, and fetches it first if need be.
        where (`str`): Where the checkpoint lies, for messages.

    Yields:
        `tuple[str, type]`: The folder, with an index of the drafter's tensors, and the class to load it with.

    Raises:
        `ValueError`: If a file is not there or damaged, or its tensors are not those that the config asks for.
    """
    own = {name: file for name, file in weight_map.items() if name.startswith(PREFIX)}
    paths = {file: find(file) for file in sorted(set(own.values()))}
    asked = {name: tuple(one.shape) for name, one in released_tensors(outline(DSparkModel, config, where)).items()}
    if check_stored(raw, own, paths, asked, where):
        block = list(block_of(raw, where))
        config.quantization_config = {"quant_method": "fp8", "weight_block_size": block, "dequantize": True}
    # The config's dtype is the target's, beside which a drafter of another may stand.
    config.dtype = _stored_dtype(own, paths) or config.dtype
    with tempfile.TemporaryDirectory() as folder:
        for file, path in paths.items():
            (Path(folder) / file).symlink_to(Path(path).resolve())
        index = {"metadata": {"total_size": 0}, "weight_map": own}
        (Path(folder) / INDEX).write_text(json.dumps(index), encoding="utf-8")
        yield folder, StagesModel


def _stored_dtype(own: Mapping[str, str], paths: Mapping[str, str]) -> torch.dtype | None:
    """That of what is never quantised, if there is such."""
    name = next((name for name in own if name.endswith(_NEVER_QUANTISED)), None)
    if name is None:
        return None
    with safe_open(paths[own[name]], framework="pt") as file:
        return _DTYPES[file.get_slice(name).get_dtype()]


def as_plain(drafter: StagesModel, name_or_path: str) -> DSparkModel:
    """The drafter without traces of how it was stored: it is saved as any other.

    Args:
        drafter ([`StagesModel`]): The drafter.
        name_or_path (`str`): Where it comes from.
    """
    drafter.__class__ = DSparkModel
    for name in ("_weight_conversions", "hf_quantizer", "is_quantized", "quantization_method"):
        vars(drafter).pop(name, None)
    if hasattr(drafter.config, "quantization_config"):
        del drafter.config.quantization_config
    drafter.config._name_or_path = drafter.name_or_path = name_or_path
    return drafter


def check_memory(config: DSparkConfig, dtype: Any, device_map: Any, where: str) -> None:
    """Say how large the drafter is, and check that there is room for it.

    Args:
        config ([`DSparkConfig`]): The drafter's.
        dtype (`str` or `torch.dtype`): That of its weights; `"auto"` for the checkpoint's own.
        device_map (`str`, `dict` or `torch.device`, *optional*): Where they go; memory of the host, if not given.
        where (`str`): Where the checkpoint lies, for messages.

    Raises:
        `ValueError`: If there is none.
    """
    dtype = config.dtype if dtype == "auto" else dtype
    dtype = getattr(torch, str(dtype or "bfloat16").removeprefix("torch."))
    num_bytes = sum(weight.numel() for weight in outline(DSparkModel, config, where).parameters()) * dtype.itemsize
    free = get_max_memory()
    place = "this machine and its GPUs"
    if device_map is None or str(device_map) == "cpu":
        free, place = {"cpu": free.get("cpu", 0)}, "this machine's memory"
    elif str(device_map).startswith("cuda") and not isinstance(device_map, dict):
        index = torch.device(device_map).index or 0
        if index not in free:
            raise ValueError(
                f"device_map={device_map!r} names GPU {index}, and torch sees {torch.cuda.device_count()} here. "
                "Leave it out to load into this machine's memory."
            )
        free, place = {index: free[index]}, f"GPU {index}"
    size = f"The drafter in {where} takes {num_bytes / _GB:.1f} GB in {str(dtype).removeprefix('torch.')}"
    if num_bytes > sum(free.values()):
        raise ValueError(
            f"{size}, and {place} has {sum(free.values()) / _GB:.1f} GB free. Use a larger one, or "
            "serve the checkpoint with an engine that keeps it quantised."
        )
    if num_bytes > _GB:
        logger.warning(f"{size}; {place} has {sum(free.values()) / _GB:.1f} GB free.")
