"""A drafter's folder, read and checked before anything is made of it.

Besides `config.json` and weights it may hold `calibration.json` (temperatures, one a slot), `training.json` (how it
was trained) and `evaluations/*.json` (what it reached).
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dspark_hf.files import read_json

from .weight_index import read_weight_map

CONFIG, CALIBRATION, TRAINING, EVALUATIONS, CARD = (
    "config.json",
    "calibration.json",
    "training.json",
    "evaluations",
    "README.md",
)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class DrafterFolder:
    """What a drafter's folder says about the drafter.

    Args:
        path (`Path`): The folder.
        config (`dict`): `config.json`.
        adapter (`dict` or `None`): `adapter_config.json`, if the weights are an adapter of another drafter.
        num_parameters (`int`): Entries of all weights.
        calibration (`dict` or `None`): `calibration.json`.
        training (`dict` or `None`): `training.json`.
        evaluations (`dict`): The evaluations by name, in alphabetical order.
    """

    path: Path
    config: dict[str, Any]
    num_parameters: int
    adapter: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | os.PathLike) -> "DrafterFolder":
        """Read a folder.

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
                "dspark/, and another packaging becomes one by AutoDrafter.from_pretrained(old).save_pretrained(new)."
            )
        calibration = read_json(path / CALIBRATION) if (path / CALIBRATION).is_file() else None
        if calibration is not None:
            _check_calibration(calibration, num_slots(config), path / CALIBRATION)
        return cls(
            path,
            config,
            count_parameters(path),
            read_json(path / ADAPTER_CONFIG) if (path / ADAPTER_CONFIG).is_file() else None,
            calibration,
            read_json(path / TRAINING) if (path / TRAINING).is_file() else None,
            {file.stem: read_json(file) for file in sorted((path / EVALUATIONS).glob("*.json"))},
        )


def kind(config: dict[str, Any]) -> str:
    """DSpark, DFlash or EAGLE-3."""
    if "ttt_length" in config:
        return "EAGLE-3"
    return "DSpark" if config.get("markov_rank") or config.get("enable_confidence_head") else "DFlash"


def num_slots(config: dict[str, Any]) -> int:
    """Tokens a proposal has."""
    if "ttt_length" in config:
        return config["ttt_length"]
    return config["block_size"] - (0 if config.get("sample_from_anchor", True) else 1)


def count_parameters(path: Path) -> int:
    """Entries of all floating-point weights of a checkpoint, after checking that it is whole.

    Raises:
        `ValueError`: If a file is missing or damaged.
    """
    shards = {ADAPTER_WEIGHTS if (path / ADAPTER_CONFIG).is_file() else WEIGHTS}
    if (path / INDEX).is_file():
        shards = set(read_weight_map(path / INDEX).values())
    total = 0
    for name in sorted(shards):
        if not (path / name).is_file():
            raise ValueError(f"There is no {name} in {path}; the checkpoint is not whole. Save it again.")
        try:
            with safe_open(path / name, framework="pt") as file:
                slices = [file.get_slice(key) for key in file.keys()]  # noqa: SIM118 (no mapping)
                shapes = [one.get_shape() for one in slices if one.get_dtype().startswith(("F", "BF"))]
        except SafetensorError as error:
            raise ValueError(f"{path / name} cannot be read ({error}); the file is damaged. Save it again.") from error
        for shape in shapes:
            count = 1
            for length in shape:
                count *= length
            total += count
    return total


def _check_calibration(calibration: dict[str, Any], slots: int, path: Path) -> None:
    temperatures = calibration.get("temperatures")
    is_list = isinstance(temperatures, list) and all(isinstance(one, int | float) and one > 0 for one in temperatures)
    if not is_list or len(temperatures) != slots:
        raise ValueError(
            f"{path} must hold `temperatures`, {slots} numbers above 0 (one a slot), got {temperatures!r}. Calibrate "
            "this drafter again, or remove the file."
        )
