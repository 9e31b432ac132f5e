"""How a released DeepSeek-V4 checkpoint says that it holds a drafter, and of what shape."""

import re
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from dspark_hf.modeling.families import get_family

PREFIX = "mtp."
_FAMILY = "deepseek_v4"
# The released config's names for what the flat layout calls otherwise.
OWN = {
    "dspark_block_size": "block_size",
    "dspark_noise_token_id": "mask_token_id",
    "dspark_target_layer_ids": "target_layer_ids",
    "dspark_markov_rank": "markov_rank",
    "num_hidden_layers": "num_target_layers",
}
# Heads that no field tells of: all releases have the same.
HEADS = {
    "markov_head_type": "vanilla",
    "enable_confidence_head": True,
    "confidence_head_with_markov": True,
    "sample_from_anchor": True,
}
# Fields that transformers reads under these names and keeps under others.
_READ = {"qk_rope_head_dim", "rope_scaling"}
# What differs from layer to layer; stages are all of one kind.
_BY_LAYER = {"layer_types", "mlp_layer_types"}
_NUMBER = re.compile("0|[1-9][0-9]{0,8}")
_NUM_TOLD = 10
_WAY_OUT = "Serve it with an engine, or train a drafter of its own: DSparkModel.from_target(target, family='qwen3')."


def tells_of_stages(config: Mapping[str, Any]) -> bool:
    """Whether the fields of a `config` are those of a DeepSeek-V4 target with a DSpark drafter inside."""
    return config.get("model_type") == _FAMILY and any(name.startswith("dspark_") for name in config)


def has_stages(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether `config` and tensors of these `names` are those of a DeepSeek-V4 target with a DSpark drafter in it."""
    has_tensors = any(name.startswith(PREFIX) and ".main_proj." in name for name in names)
    return has_tensors and tells_of_stages(config)


def refuse_relatives(config: Mapping[str, Any], names: Collection[str], where: str) -> None:
    """Tell checkpoints of DeepSeek-V4's kin that hold no drafter of this form.

    Args:
        config (`Mapping`): The config.json.
        names (`Collection[str]`): Names of the checkpoint's tensors.
        where (`str`): Where the checkpoint lies, for messages.

    Raises:
        `ValueError`: If it is one.
    """
    model_type = config.get("model_type")
    if model_type == "deepseek_v41":
        raise ValueError(
            f"{where} is a DeepSeek-V4.1 target, whose drafter is another than DeepSeek-V4's and is not read: it taps "
            f"what enters layers, mixes its streams otherwise, and is quantised in blocks of 32x32. {_WAY_OUT}"
        )
    if model_type != _FAMILY or {"target_layer_ids", "block_size"} <= set(config):
        return
    if any(name.startswith(PREFIX) and ".e_proj." in name for name in names):
        raise ValueError(
            f"{where} holds the older MTP head of DeepSeek-V4 (mtp.0.e_proj), which is not a DSpark drafter and is "
            "not read. Use a release whose config.json has dspark_* fields; a drafter of the same sizes can be bound "
            "to this target."
        )
    raise ValueError(
        f"{where} is a DeepSeek-V4 target without a DSpark drafter inside: a release that has one has dspark_* fields "
        f"in config.json (found {sorted(name for name in config if name.startswith('dspark_'))}) and tensors "
        f"mtp.*.main_proj (found {sum(name.startswith(PREFIX) for name in names)} tensors mtp.*). {_WAY_OUT}"
    )


def flat_fields(config: Mapping[str, Any], names: Collection[str], where: str) -> dict[str, Any]:
    """The config of the drafter inside, in the flat layout.

    Args:
        config (`Mapping`): The config.json of target and drafter.
        names (`Collection[str]`): Names of the checkpoint's tensors.
        where (`str`): Where the checkpoint lies, for messages.

    Raises:
        `ValueError`: If a field or a stage is missing.
    """
    if missing := sorted(name for name in OWN if config.get(name) is None):
        raise ValueError(
            f"{where}: config.json lacks {missing}, which say how its drafter is shaped. Fetch it again, or write "
            "them as the release has them."
        )
    num_stages = count_stages(config, names, where)
    decoder = {field.name for field in fields(get_family(_FAMILY).config_cls)} - _BY_LAYER | _READ
    flat = {name: value for name, value in config.items() if name in decoder and value is not None}
    flat |= {ours: config[theirs] for theirs, ours in OWN.items()} | HEADS
    for name in ("architectures", "transformers_version"):
        flat.pop(name, None)
    dtype = config.get("dtype") or config.get("torch_dtype")
    return flat | {
        "model_type": _FAMILY,
        "num_hidden_layers": num_stages,
        "num_nextn_predict_layers": 0,
        "dtype": dtype,
    }


def count_stages(config: Mapping[str, Any], names: Collection[str], where: str) -> int:
    """How many stages the tensors make: no field says so, and `num_nextn_predict_layers` says otherwise.

    Args:
        config (`Mapping`): The config.json, whose `compress_ratios` must agree, if it has them.
        names (`Collection[str]`): Names of the checkpoint's tensors.
        where (`str`): Where the checkpoint lies, for messages.

    Raises:
        `ValueError`: If stages are missing.
    """
    numbers = {name.split(".")[1] for name in names if name.startswith(PREFIX)}
    if odd := sorted(number for number in numbers if not _NUMBER.fullmatch(number)):
        raise ValueError(f"{where}: tensors mtp.{odd[0]:.80}.* are of no numbered stage; fetch the checkpoint again.")
    found, num_layers = sorted(map(int, numbers)), config["num_hidden_layers"]
    num_stages, ratios = found[-1] + 1, config.get("compress_ratios")
    if isinstance(ratios, list) and len(ratios) > num_layers:
        num_stages = max(num_stages, len(ratios) - num_layers)
    # A name may say any number: stages are counted, not enumerated.
    if len(found) != num_stages:
        raise ValueError(
            f"{where} holds the stages {found[:_NUM_TOLD]} of a drafter of {num_stages} (tensors mtp.*, and "
            "compress_ratios in config.json): fetch the missing shards, and the index that names them."
        )
    return num_stages
