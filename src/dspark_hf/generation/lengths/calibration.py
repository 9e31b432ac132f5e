"""Temperatures that make a confidence head's survival come true: Sequential Temperature Scaling's result."""

import hashlib
import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any

import torch

from dspark_hf.files import read_json, write_json
from dspark_hf.messages import shown
from dspark_hf.modeling.fingerprint import target_fingerprint
from dspark_hf.modeling.plain_head import is_quantised
from dspark_hf.provenance import changes

FILE_NAME = "calibration.json"
_NUM_ROWS = 64
# Beyond these a temperature makes every chance one half, or none or all: no calibration comes to that.
_LEAST, _MOST = 1e-3, 1e3
_NUMBER = (int, float, NoneType)
_KINDS = {"dataset": (str, NoneType), "num_samples": int, "ece_before": _NUMBER, "ece_after": _NUMBER}


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
        `ValueError`: If a temperature is no number from 0.001 to 1000, the two sets are not of one length, or another
            value is of the wrong kind.
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
                isinstance(value, (int, float)) and not isinstance(value, bool) and _LEAST <= value <= _MOST
                for value in values
            )
            if not (are_numbers and values):
                raise ValueError(
                    f"{name} of a calibration must be a list of numbers from {_LEAST:g} to {_MOST:g}, got "
                    f"{shown(values)}. Calibrate again."
                )
        sampled = self.sampled_temperatures
        for name in ("made_for", "figures"):
            if not isinstance(value := getattr(self, name), dict):
                raise ValueError(
                    f"{name} of a calibration must be keys and values, got {shown(value)}. Calibrate again."
                )
        for name, kinds in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise ValueError(f"{name} of a calibration is of the wrong kind, got {shown(value)}. Calibrate again.")
        if sampled is not None and len(sampled) != len(self.temperatures):
            raise ValueError(
                f"A calibration has a temperature for each slot in both modes, got {len(self.temperatures)} for "
                f"greedy decoding and {len(sampled)} for sampling. Calibrate again."
            )

    def of_mode(self, temperature: float) -> list[float] | None:
        """Temperatures of the slots when decoding greedily (0) or sampling at a temperature; None if not known.

        Args:
            temperature (`float`): 0 for greedy decoding.

        Returns:
            `list[float]` or `None`: One a slot.
        """
        return {0.0: self.temperatures, 1.0: self.sampled_temperatures}.get(temperature)

    def is_of(self, drafter: Any) -> bool:
        """Whether it is for a drafter's weights, as far as it says whose it is.

        Args:
            drafter ([`DSparkModel`]): The drafter.

        Returns:
            `bool`.
        """
        made_for, found = self.made_for.get("drafter"), drafter_fingerprint(drafter)
        return None in (made_for, found) or made_for == found

    def found_with(self, drafter: Any) -> "Calibration":
        """The same; where it does not say whose it is, it is the drafter's beside which it lay.

        Args:
            drafter ([`DSparkModel`]): The drafter, with the weights that it was loaded with.

        Returns:
            [`Calibration`].
        """
        if self.made_for.get("drafter") or (found := drafter_fingerprint(drafter)) is None:
            return self
        return replace(self, made_for={**self.made_for, "drafter": found})

    def save(self, path: str | Path) -> None:
        """Write it as JSON, as SGLang reads it; to a folder as `calibration.json`.

        Args:
            path (`str` or `Path`): The file, or a folder that is there.
        """
        path = Path(path)
        write_json(path / FILE_NAME if path.is_dir() else path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read what `save`, or SGLang, wrote.

        Args:
            path (`str` or `Path`): The file, or the folder of a drafter that has one.

        Returns:
            [`Calibration`].

        Raises:
            `ValueError`: If it is not readable, or no calibration.
        """
        path = Path(path)
        path = path / FILE_NAME if path.is_dir() else path
        content = read_json(path)
        if "temperatures" not in content:
            raise ValueError(f"{path} is no calibration: it has no `temperatures`. Make one with `dspark calibrate`.")
        known = {name: content[name] for name in cls.__dataclass_fields__ if name in content}
        try:
            return cls(**known)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def check_length(self, num_slots: int) -> None:
        """Check that it is for so many slots.

        Args:
            num_slots (`int`): Slots of the drafter.

        Raises:
            `ValueError`: If it is for others.
        """
        if len(self.temperatures) != num_slots:
            raise ValueError(
                f"This calibration has temperatures for {len(self.temperatures)} slots, and the drafter has "
                f"{num_slots}: it is another drafter's. Calibrate this one with `dspark calibrate`."
            )


def drafter_fingerprint(drafter: Any) -> str | None:
    """A short digest of some rows of what projects a `drafter`'s features, equal in bfloat16 and float32.

    Returns:
        `str`, or `None` where there is no such matrix at hand.
    """
    weight = getattr(getattr(drafter, "fc", None), "weight", None)
    if weight is None or weight.device.type == "meta" or is_quantised(weight):
        return None
    sample = weight.detach()[:: max(1, weight.shape[0] // _NUM_ROWS)].to(torch.bfloat16).cpu().contiguous()
    return hashlib.sha256(sample.view(torch.int16).numpy().tobytes()).hexdigest()[:16]


def slot_temperatures(given: Calibration | None, target: Any, drafter: Any, temperature: float) -> list[float] | None:
    """Temperatures for a drafter's slots in a mode, of a calibration that is given or else the drafter's own.

    Args:
        given ([`Calibration`], *optional*): The caller's.
        target (`PreTrainedModel`): The target.
        drafter ([`DSparkModel`]): The drafter.
        temperature (`float`): That tokens are drawn at; 0 in greedy decoding.

    Returns:
        `list[float]`, or None where there are none. With a warning, once, where those of the drafter's folder are for
        something else.

    Raises:
        `ValueError`: If those that are given are for another number of slots, drafter or target.
    """
    own = getattr(drafter, "calibration", None)
    calibration = own if given is None else given
    if calibration is None or not getattr(drafter.config, "enable_confidence_head", False):
        return None
    try:
        calibration.check_length(drafter.config.num_slots)
        models = {"target": target_fingerprint(target), "drafter": drafter_fingerprint(drafter)}
        known = {name: value for name, value in models.items() if value and calibration.made_for.get(name)}
        if changed := changes({name: calibration.made_for[name] for name in known}, known):
            changed = changed.replace(" before, ", " when it was calibrated, ")
            raise ValueError(
                f"This calibration was made for other models ({changed}). Calibrate these with `dspark calibrate`."
            )
    except ValueError as error:
        if given is not None:
            raise
        warnings.warn(f"The drafter's calibration.json is not used. {error}", stacklevel=2)
        drafter.calibration = None
        return None
    return calibration.of_mode(temperature)
