"""Temperatures that make a confidence head's survival come true: Sequential Temperature Scaling's result."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dspark_hf.files import read_json, write_json

FILE_NAME = "calibration.json"


@dataclass(frozen=True)
class Calibration:
    """One temperature for each slot's confidence logit, in greedy decoding and when sampling at T = 1.

    How often drafts are accepted depends on the temperature, so other temperatures have none.

    Args:
        temperatures (`list[float]`): In greedy decoding.
        sampled_temperatures (`list[float]`, *optional*): At T = 1.
        dataset (`str`, *optional*): What it was fitted on.
        num_samples (`int`, *optional*): Blocks that were looked at.
        ece_before, ece_after (`float`, *optional*): Expected calibration error of survival, mean over slots.
        made_for (`dict`, *optional*): Fingerprints of target, drafter and data, dtype and way of verification.
        figures (`dict`, *optional*): What was measured for each slot.

    Raises:
        `ValueError`: If a temperature is not positive and finite, or the two sets are not of one length.
    """

    temperatures: list[float]
    sampled_temperatures: list[float] | None = None
    dataset: str = ""
    num_samples: int = 0
    ece_before: float | None = None
    ece_after: float | None = None
    made_for: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("temperatures", "sampled_temperatures"):
            values = getattr(self, name)
            if values is None and name != "temperatures":
                continue
            are_numbers = isinstance(values, list) and all(
                isinstance(value, (int, float)) and math.isfinite(value) and value > 0 for value in values
            )
            if not (are_numbers and values):
                raise ValueError(f"{name} of a calibration must be positive finite numbers, got {values!r}.")
        sampled = self.sampled_temperatures
        if sampled is not None and len(sampled) != len(self.temperatures):
            raise ValueError(
                f"A calibration has a temperature for each slot in both modes, got {len(self.temperatures)} for "
                f"greedy decoding and {len(sampled)} for sampling. Calibrate again."
            )

    def of_mode(self, temperature: float) -> list[float] | None:
        """Temperatures of the slots when decoding greedily (0) or sampling at a temperature; None if not known."""
        return {0.0: self.temperatures, 1.0: self.sampled_temperatures}.get(temperature)

    def save(self, path: str | Path) -> None:
        """Write it as JSON, as SGLang reads it; to a folder as `calibration.json`."""
        path = Path(path)
        write_json(path / FILE_NAME if path.is_dir() else path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read what `save`, or SGLang, wrote.

        Args:
            path (`str` or `Path`): The file, or the folder of a drafter that has one.

        Raises:
            `ValueError`: If it is not readable, or no calibration.
        """
        path = Path(path)
        path = path / FILE_NAME if path.is_dir() else path
        content = read_json(path)
        if "temperatures" not in content:
            raise ValueError(f"{path} is no calibration: it has no `temperatures`. Make one with `dspark calibrate`.")
        known = {name: content[name] for name in cls.__dataclass_fields__ if name in content}
        return cls(**known)

    def check_length(self, num_slots: int) -> None:
        """Raise `ValueError` unless it is for so many slots."""
        if len(self.temperatures) != num_slots:
            raise ValueError(
                f"This calibration has temperatures for {len(self.temperatures)} slots, and the drafter has "
                f"{num_slots}: it is another drafter's. Calibrate this one with `dspark calibrate`."
            )


def slot_temperatures(given: Calibration | None, drafter: Any, temperature: float) -> list[float] | None:
    """Temperatures for a drafter's slots in a mode, of a calibration that is given or else the drafter's own.

    Raises:
        `ValueError`: If the one that is given is for another number of slots.
    """
    calibration = getattr(drafter, "calibration", None) if given is None else given
    if calibration is None or not getattr(drafter.config, "enable_confidence_head", False):
        return None
    calibration.check_length(drafter.config.num_slots)
    return calibration.of_mode(temperature)
