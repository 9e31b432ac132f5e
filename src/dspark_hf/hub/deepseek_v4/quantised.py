"""How a DeepSeek-V4 drafter's weights may be stored, checked before transformers makes numbers of them: FP8 (e4m3) in
blocks, FP4 in packed pairs, both with scales that are powers of two, or not quantised at all.

By the files' headers, and by the values of scales, a thousandth of the whole: a wrong one gives wrong weights, and
nothing else would tell.
"""

from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dspark_hf.hub.outline import Difference, compare
from dspark_hf.messages import shown
from dspark_hf.modeling import DSparkModel
from dspark_hf.publishing.weight_index import Stored

# As safetensors writes them.
_FP8, _FP4, _PLAIN = "F8_E4M3", "I8", ("BF16", "F16", "F32")
# Exponents of two, a byte each; some writers know no type for them.
_EXPONENTS = ("F8_E8M0", "U8")
_NO_NUMBER = 255  # of an exponent
_SCALE_TYPES = (*_EXPONENTS, *_PLAIN)
_SCALES = (".scale", "_scale_inv")
# Packed pairs of FP4 numbers have a scale for each of these many inputs of a row.
_FP4_BLOCK = (1, 32)
_FP8_BLOCK = (128, 128)


def block_of(config: Mapping[str, Any], where: str) -> tuple[int, int]:
    """Rows and columns of an FP8 block.

    Args:
        config (`Mapping`): The config.json, whose fields are of their kinds.
        where (`str`): Where the checkpoint lies, for messages.

    Raises:
        `ValueError`: If it says that weights are quantised otherwise than those of the releases.
    """
    quantisation = config.get("quantization_config") or {}
    for name, known in (("quant_method", ("fp8",)), ("fmt", ("e4m3",)), ("scale_fmt", ("ue8m0", "float"))):
        if quantisation.get(name) not in (None, *known):
            raise ValueError(
                f"{where}: config.json: quantization_config.{name} must be {' or '.join(known)}, got "
                f"{shown(quantisation[name])}; weights that are quantised otherwise are not read."
            )
    return tuple(quantisation.get("weight_block_size") or _FP8_BLOCK)


def check_stored(
    config: Mapping[str, Any],
    own: Mapping[str, str],
    paths: Mapping[str, str],
    asked: Mapping[str, tuple[int, ...]],
    where: str,
) -> bool:
    """Check what is stored of a drafter against its config.

    Args:
        config (`Mapping`): The config.json of target and drafter.
        own (`Mapping[str, str]`): The file of each tensor of the drafter.
        paths (`Mapping[str, str]`): The path of each file.
        asked (`Mapping`): The shape of each tensor, scales apart, by its released name.
        where (`str`): Where the checkpoint lies, for messages.

    Returns:
        `bool`: Whether there are quantised weights.

    Raises:
        `ValueError`: If a tensor is missing, of another shape or type, or no scale of its weight, or a file cannot be
            read.
    """
    stored = _headers(own, paths, where)
    scales = {name: one for name, one in stored.items() if name.endswith(_SCALES)}
    weights = {name: one for name, one in stored.items() if name not in scales}
    block, quantised = block_of(config, where), {}
    for name, (shape, dtype) in weights.items():
        if dtype in (_FP8, _FP4) and name.endswith(".weight") and len(shape) == 2:
            quantised[name.removesuffix("weight") + "scale"] = name
        elif dtype not in _PLAIN:
            raise ValueError(
                f"{where}: {name} of the shape {list(shape)} is stored as {dtype}, and must be {', '.join(_PLAIN)}, "
                f"or as a matrix {_FP8} or {_FP4} (pairs of FP4 numbers) with scales. Fetch the checkpoint again."
            )
    for scale, name in quantised.items():
        _check_scale_shape(name, weights[name], scale, scales.get(scale), block, where)
    for name, (_, dtype) in scales.items():
        if name not in quantised:
            raise ValueError(
                f"{where}: {name} is the scale of a weight that is not quantised, and would change it. Fetch the "
                "checkpoint again."
            )
        if dtype not in _SCALE_TYPES:
            raise ValueError(
                f"{where}: {name} is stored as {dtype}, and a scale must be {', '.join(_SCALE_TYPES)}. Fetch the "
                "checkpoint again."
            )
    _differences(asked, weights).check(where)
    is_free = (config.get("quantization_config") or {}).get("scale_fmt") == "float"
    for file, path in paths.items():
        with safe_open(path, framework="pt") as opened:
            for name in [name for name in scales if own[name] == file]:
                is_power = weights[quantised[name]].dtype == _FP4 or not is_free
                _check_scale(name, opened.get_tensor(name), is_power, where)
    return bool(quantised)


def _headers(own: Mapping[str, str], paths: Mapping[str, str], where: str) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    for file, path in paths.items():
        try:
            with safe_open(path, framework="pt") as opened:
                for name in [name for name, its_file in own.items() if its_file == file]:
                    part = opened.get_slice(name)
                    found[name] = Stored(tuple(part.get_shape()), part.get_dtype())
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{where}: {file} is damaged, or the index does not belong to it ({error}). Fetch it again."
            ) from error
    return found


def _differences(asked: Mapping[str, tuple[int, ...]], weights: Mapping[str, Stored]) -> Difference:
    """Where the weights are not what the config asks for, whatever they are stored as."""
    numbers = {name: Stored(_shape(one), _PLAIN[0]) for name, one in weights.items()}
    return compare(DSparkModel, asked, numbers, {name: name for name in numbers})


def _shape(weight: Stored) -> tuple[int, ...]:
    """Rows and columns of the numbers in a weight."""
    is_packed = weight.dtype == _FP4
    return (*weight.shape[:-1], 2 * weight.shape[-1]) if is_packed else weight.shape


def _check_scale_shape(
    name: str, weight: Stored, scale: str, found: Stored | None, block: tuple[int, int], where: str
) -> None:
    rows, columns = _FP4_BLOCK if weight.dtype == _FP4 else block
    num_rows, num_columns = _shape(weight)
    shape = None if found is None else list(found.shape)
    if num_rows % rows or num_columns % columns or shape != [num_rows // rows, num_columns // columns]:
        raise ValueError(
            f"{where}: {name} has {num_rows} rows of {num_columns} numbers in blocks of {rows}x{columns}, and "
            f"{scale} has the shape {shape}; there must be one scale a block. The checkpoint is none of the "
            "released form, or damaged: fetch it again."
        )


def _check_scale(name: str, scale: Tensor, is_power: bool, where: str) -> None:
    if scale.element_size() == 1:
        is_right, wanted = scale.view(torch.uint8) != _NO_NUMBER, "an exponent of two"
    else:
        values = scale.float()
        is_right, wanted = values.isfinite() & (values > 0), "finite and above 0"
        if is_power:
            is_right, wanted = is_right & (torch.frexp(values).mantissa == 0.5), "a power of two"
    if not is_right.all():
        got = "NaN" if scale.element_size() == 1 else values[~is_right][0].item()
        raise ValueError(
            f"{where}: each entry of {name} must be {wanted}, got {got} ({int((~is_right).sum())} such). The file is "
            "damaged, or was written by other tools than the release's: fetch it again."
        )
