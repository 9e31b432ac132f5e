"""A drafter's folder, read and checked before anything is made of it.

Besides `config.json` and weights it may hold `calibration.json` (temperatures, one a slot), `training.json` (how it
was trained) and `evaluations/*.json` (what it reached).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

from dspark_hf.commands import shorten_command, shorten_value
from dspark_hf.files import read_json

from .contents import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CALIBRATION,
    CONFIG,
    EVALUATIONS,
    RECORDS,
    TRAINING,
    matching,
)
from .evaluations import read_evaluation
from .records import check_calibration, check_config, check_training, is_number
from .weight_index import WEIGHTS, read_stored

_HELD_OUT = "eval_results.json"


@dataclass(frozen=True)
class DrafterFolder:
    """What a drafter's folder says about the drafter.

    Args:
        path (`Path`): The folder.
        config (`dict`): `config.json`.
        adapter (`dict` or `None`): `adapter_config.json`, if the weights are an adapter of another drafter.
        num_parameters (`int`): Entries of all floating-point weights.
        shapes (`dict`): The shapes of all tensors, by name.
        calibration (`dict` or `None`): `calibration.json`.
        training (`dict` or `None`): `training.json`.
        evaluations (`dict`): The evaluations by name, in alphabetical order.
    """

    path: Path
    config: dict[str, Any]
    num_parameters: int
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    adapter: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | os.PathLike) -> "DrafterFolder":
        """Read the folder at `path`.

        Raises:
            `ValueError`: If it is no drafter's folder, or a file in it is missing or damaged.
        """
        path = Path(path)
        if not (path / CONFIG).is_file():
            raise ValueError(f"There is no {CONFIG} in {path}; name a folder that a drafter was saved to.")
        config = read_json(path / CONFIG)
        if "target_layer_ids" not in config or not {"block_size", "ttt_length"} & set(config):
            raise ValueError(
                f"{path} holds no drafter in the flat layout: its {CONFIG} lacks target_layer_ids with block_size or "
                "ttt_length. Name the folder that save_pretrained of a drafter wrote; a composite one keeps it in "
                "dspark/, and another packaging becomes one by AutoDrafter.from_pretrained(old).save_pretrained(new). "
                "What `dspark convert` wrote for an engine goes up as it is: `hf upload OWNER/NAME FOLDER`."
            )
        check_config(config, path / CONFIG)
        adapter = _public_adapter(read_json(path / ADAPTER_CONFIG)) if (path / ADAPTER_CONFIG).is_file() else None
        stored = read_stored(path, WEIGHTS if adapter is None else ADAPTER_WEIGHTS)
        num_parameters = sum(prod(one.shape) for one in stored.values() if one.dtype.startswith(("F", "BF")))
        drafter = cls(path, config, num_parameters, {name: one.shape for name, one in stored.items()}, adapter)
        drafter = drafter.with_records({name: path / name for name in matching(path, RECORDS)})
        if "held_out" in (drafter.training or {}):
            return drafter
        found = held_out_figures(path)
        return replace(drafter, training=(drafter.training or {}) | {"held_out": found}) if found else drafter

    def with_records(self, files: Mapping[str, Path]) -> "DrafterFolder":
        """The same drafter, with what more is known of it.

        Args:
            files (`Mapping[str, Path]`): Files by their place in a drafter's folder; those that are no records are
                passed over.

        Raises:
            `ValueError`: If a file is damaged, or holds what a record does not.
        """
        drafter = self
        for name, file in sorted(files.items()):
            if name == CALIBRATION:
                check_calibration(content := read_json(file), num_slots(self.config), file)
                drafter = replace(drafter, calibration=content)
            elif name == TRAINING:
                check_training(content := read_json(file), file)
                if isinstance(content.get("command"), str):
                    content["command"] = shorten_command(content["command"])
                drafter = replace(drafter, training=content)
            elif name.startswith(f"{EVALUATIONS}/"):
                evaluations = drafter.evaluations | {file.stem: read_evaluation(file)}
                drafter = replace(drafter, evaluations=dict(sorted(evaluations.items())))
        return drafter


def held_out_figures(path: Path) -> dict[str, float]:
    """What the last evaluation of a training in the folder at `path` found, without `eval_` in names, if any."""
    if not (path / _HELD_OUT).is_file():
        return {}
    kept = ("eval_tau", "eval_expected_tau", "eval_greedy_tau", "eval_loss", "eval_accept_rate_slot_")
    # A slot that was never reached has no rate.
    return {
        name.removeprefix("eval_"): value
        for name, value in read_json(path / _HELD_OUT).items()
        if name.startswith(kept) and is_number(value)
    }


def _public_adapter(config: dict[str, Any]) -> dict[str, Any]:
    """An adapter's config, in which a drafter below that is a folder of this machine goes by its last name."""
    below = config.get("base_model_name_or_path")
    return config | {"base_model_name_or_path": shorten_value(below)} if isinstance(below, str) else config


def kind(config: dict[str, Any]) -> str:
    """DSpark, Domino, DFlash or EAGLE-3, by a drafter's `config`."""
    if "ttt_length" in config:
        return "EAGLE-3"
    if config.get("markov_rank") and config.get("markov_head_type") == "domino":
        return "Domino"
    return "DSpark" if config.get("markov_rank") or config.get("enable_confidence_head") else "DFlash"


def num_slots(config: dict[str, Any]) -> int:
    """Tokens a proposal has, by a drafter's `config`."""
    if "ttt_length" in config:
        return config["ttt_length"]
    return config["block_size"] - (0 if config.get("sample_from_anchor", True) else 1)
