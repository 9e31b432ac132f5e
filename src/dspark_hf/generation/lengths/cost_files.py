"""Step costs on disk: one file for each pair of models on a machine, and the two forms of SGLang."""

import hashlib
import json
import os
import warnings
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dspark_hf.files import cache_root, read_json, write_json
from dspark_hf.messages import shown
from dspark_hf.modeling.fingerprint import public_name, target_fingerprint
from dspark_hf.provenance import changes, installed_versions, processor_name

from .step_cost import StepCost


def circumstances(target: Any, drafter: Any) -> dict[str, Any]:
    """What a step cost of these models holds for: device, models, dtype, attention, threads and versions.

    Args:
        target (`PreTrainedModel`): The target.
        drafter ([`DSparkModel`]): Its drafter.
    """
    device, config, slots = target.device, target.config, drafter.config
    num_layers = getattr(slots, "num_hidden_layers", None)
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else f"{device.type} {_processor()}".strip(),
        "target": f"{public_name(config.name_or_path)} {target_fingerprint(target)}",
        "drafter": f"{type(drafter).__name__} of {slots.num_slots} slots and {num_layers} layers",
        "dtype": str(target.dtype).removeprefix("torch."),
        "attention": getattr(config, "_attn_implementation", None),
        "threads": None if is_cuda else torch.get_num_threads(),
        "versions": _versions(),
    }


def cost_path(made_for: dict[str, Any]) -> Path:
    """Where the step cost of the circumstances that it is `made_for` is kept."""
    digest = hashlib.sha256(json.dumps(made_for, sort_keys=True).encode()).hexdigest()[:16]
    return cache_root() / "step_costs" / f"{digest}.json"


def save_cost(cost: StepCost, path: str | Path | None = None) -> Path:
    """Write a step cost.

    Args:
        cost ([`StepCost`]): What was measured.
        path (`str` or `Path`, *optional*): The file; by default where `generate()` finds it.

    Returns:
        `Path`: The file.
    """
    path = cost_path(cost.made_for) if path is None else Path(path)
    write_json(path, asdict(cost))
    return path


def load_cost(path: str | Path) -> StepCost:
    """Read a step cost: our own form, or one of SGLang's.

    Args:
        path (`str` or `Path`): The file.

    Returns:
        [`StepCost`].

    Raises:
        `ValueError`: If it is not readable, of none of the forms, or its numbers are no table.
    """
    content = read_json(path)
    try:
        if "verify_seconds" in content:
            _check_fields(content)
            return StepCost(**content)
        return from_sglang(content)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path} is no step cost: {error}") from None


def kept_cost(made_for: dict[str, Any]) -> StepCost | None:
    """What was measured for the circumstances `made_for`; None, with a warning, where the file is damaged."""
    path = cost_path(made_for)
    # A folder that may not be looked into, as another user's home, has none for us.
    if not os.path.exists(path):
        return None
    try:
        cost = load_cost(path)
        check_cost(cost, made_for)
    except ValueError as error:
        warnings.warn(f"{error} Costs are estimated instead; `dspark profile` measures them again.", stacklevel=2)
        return None
    return cost


def check_cost(cost: StepCost, made_for: dict[str, Any]) -> None:
    """Check that a `cost` was measured in the circumstances `made_for`: here, and with these models.

    Raises:
        `ValueError`: If it was in others; the message says what differs.
    """
    if cost.made_for and (changed := changes(cost.made_for, made_for)):
        changed = changed.replace(" before, ", " when it was measured, ")
        raise ValueError(f"This step cost holds for something else ({changed}). Measure here with `dspark profile`.")


def to_sglang(cost: StepCost, *, additive: bool = True) -> dict[str, Any]:
    """A step cost as SGLang reads it, at the shortest context.

    Args:
        cost ([`StepCost`]): What was measured.
        additive (`bool`, *optional*, defaults to `True`): Whether requests and tokens are told apart, the newer form;
            otherwise steps are those of one request.

    Returns:
        `dict[str, Any]`, JSON-able.
    """
    seconds = list(cost.verify_seconds[0])
    if additive:
        bias = seconds[0]
        return {
            "bias_seconds": bias, "bs_probes": list(cost.rows), "alpha_seconds": list(cost.draft_seconds),
            "m_probes": list(cost.tokens), "theta_seconds": [value - bias for value in seconds],
        }  # fmt: skip
    return {
        "sample_batch_tokens": list(cost.tokens),
        "sample_steps_per_sec": [1 / (value + cost.draft_seconds[0]) for value in seconds],
        "max_batch_tokens": cost.tokens[-1],
    }


def from_sglang(content: dict[str, Any]) -> StepCost:
    """A step cost from either of SGLang's forms; it does not say where it was measured.

    Args:
        content (`dict[str, Any]`): What the file holds.

    Returns:
        [`StepCost`].

    Raises:
        `ValueError`: If it is neither, or its numbers are no table.
    """
    if not {"bias_seconds", "sample_batch_tokens", "sample_steps_per_sec"} & content.keys():
        raise ValueError("It is neither what `dspark profile` writes nor one of SGLang's two forms.")
    if "bias_seconds" in content:
        names = ("bs_probes", "alpha_seconds", "m_probes", "theta_seconds")
        rows, draft, tokens, of_tokens = _entries(content, names)
        try:
            verify = [content["bias_seconds"] + seconds for seconds in of_tokens]
        except TypeError:
            raise ValueError(
                f"bias_seconds and theta_seconds must be numbers, got {shown(content['bias_seconds'])} and "
                f"{shown(of_tokens)}."
            ) from None
        return StepCost(tokens, [1], [verify], rows, draft)
    tokens, speeds = _entries(content, ("sample_batch_tokens", "sample_steps_per_sec"))
    if not all(isinstance(speed, (int, float)) and speed > 0 for speed in speeds):
        raise ValueError(f"sample_steps_per_sec must be positive, got {shown(speeds)}.")
    # Drafting is part of a step there.
    return StepCost(tokens, [1], [[1 / speed for speed in speeds]], [1], [0.0])


def without_made_for(cost: StepCost) -> StepCost:
    """The same `cost`, to be used anywhere."""
    return replace(cost, made_for={})


def _check_fields(content: dict[str, Any]) -> None:
    names = [field.name for field in fields(StepCost)]
    missing = [name for name in names if name not in content and name != "made_for"]
    unknown = [name for name in content if name not in names]
    if missing or unknown:
        what = [f"It has no {', '.join(missing)}."] * bool(missing) + [f"It has {shown(unknown)}."] * bool(unknown)
        raise ValueError(f"{' '.join(what)} Its fields are {', '.join(names)}. Measure again.")


def _entries(content: dict[str, Any], names: tuple[str, ...]) -> list[list]:
    missing = [name for name in names if not isinstance(content.get(name), list)]
    if missing:
        raise ValueError(f"It has no list {', '.join(missing)}.")
    return [content[name] for name in names]


@cache
def _versions() -> dict[str, str | None]:
    return installed_versions("torch", "transformers", "dspark_hf")


@cache
def _processor() -> str:
    return processor_name()
