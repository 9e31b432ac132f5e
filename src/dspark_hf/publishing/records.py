"""What the files of a drafter must hold for a card to be made of them."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dspark_hf.messages import shown

HEADS = {"vanilla": "a vanilla", "gated": "a gated", "rnn": "a recurrent", "domino": "a Domino"}

_MOST = 1e300


def is_number(value: Any) -> bool:
    """Whether a `value` is a finite number."""
    # JSON has whole numbers that no float can be.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _word(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w.-]+", value) is not None


def _table(value: Any) -> bool:
    return isinstance(value, dict)


def _each(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _bin(value: Any) -> bool:
    return isinstance(value, dict) and all(is_number(value.get(name)) for name in ("confidence", "accepted", "count"))


def _row(value: Any) -> bool:
    named = isinstance(value, dict) and all(_text(value.get(name)) for name in ("task", "way"))
    ratio = value.get("ratio") or {} if named else None
    return (
        named
        and all(is_number(value.get(name)) for name in ("tau", "temperature"))
        and _text(value.get("cut") or "")
        and isinstance(ratio, dict)
        and is_number(ratio.get("median", 1))
        and is_number(value.get("lookup_share") or 0)
        and all(one is None or _pair(one) for one in (value.get("tau_interval"), ratio.get("interval")))
    )


def _pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value))


# Field: what it must be, in words, and whether it is. None is as good as absent.
_CONFIG = {
    "target_layer_ids": ("whole numbers", _each(_whole)),
    "block_size": ("a whole number", _whole),
    "ttt_length": ("a whole number", _whole),
    "sample_from_anchor": ("true or false", lambda value: isinstance(value, bool)),
    "hidden_size": ("a whole number", _whole),
    "num_hidden_layers": ("a whole number", _whole),
    "num_target_layers": ("a whole number", _whole),
    "vocab_size": ("a whole number", _whole),
    "draft_vocab_size": ("a whole number", _whole),
    "markov_rank": ("a whole number", _whole),
    "markov_head_type": (f"one of {', '.join(HEADS)}", lambda value: _text(value) and value in HEADS),
    "model_type": ("a word", _word),
    "dtype": ("a word", _word),
    "architectures": ("words", _each(_word)),
    "target_name_or_path": ("text", _text),
}
_EVALUATION = {
    "tau": ("a number", is_number),
    "num_prompts": ("a whole number", _whole),
    "lookup_share": ("a number", is_number),
    "data": ("text", _text),
    "dtype": ("text", _text),
    "weights": ("text", _text),
    "settings": ("keys and values", _table),
    "settings.temperature": ("a number", is_number),
    "settings.max_new_tokens": ("a whole number", _whole),
    "ratio": ("keys and values", _table),
    "ratio.median": ("a number", is_number),
    "ratio.median_to_fastest_plain": ("a number", is_number),
    "accepted_per_slot": ("numbers", _each(is_number)),
    "rows": ("rows with task, way, temperature and tau", _each(_row)),
    "prompting": ("text", _text),
    "baseline": ("text", _text),
    "reliability": ("bins of confidence, accepted and count", _each(_bin)),
    "provenance": ("keys and values", _table),
    "provenance.command": ("text", _text),
    "provenance.commit": ("text", _text),
    "provenance.machine": ("keys and values", _table),
}
_TRAINING = {
    "command": ("text", _text),
    "data": ("names", _each(_text)),
    "arguments": ("keys and values", _table),
    "versions": ("keys and values", _table),
    "held_out": ("names and numbers", lambda value: _table(value) and all(map(is_number, value.values()))),
}


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """Check that a drafter's `config`, read from `path`, holds what a card says of it.

    Raises:
        `ValueError`: If something is missing or of another kind.
    """
    _check(config, _CONFIG, path)


def check_evaluation(record: Mapping[str, Any], path: Path) -> None:
    """Check that the `record` of an evaluation, read from `path`, has its tau, and everything else is of its kind.

    Raises:
        `ValueError`: If not.
    """
    if not is_number(record.get("tau")):
        raise ValueError(f"{path} holds no tau; give what `dspark evaluate --out` filled.")
    _check(record, _EVALUATION, path)


def check_training(record: Mapping[str, Any], path: Path) -> None:
    """Check that everything in the `record` of a training, read from `path`, is of its kind.

    Raises:
        `ValueError`: If not.
    """
    _check(record, _TRAINING, path)


def check_calibration(calibration: Mapping[str, Any], slots: int, path: Path) -> None:
    """Check that a `calibration`, read from `path`, has one temperature for each of so many `slots`.

    Raises:
        `ValueError`: If not.
    """
    temperatures = calibration.get("temperatures")
    is_list = isinstance(temperatures, list) and all(is_number(one) and one > 0 for one in temperatures)
    if not is_list or len(temperatures) != slots:
        raise ValueError(
            f"{path} must hold `temperatures`, {slots} numbers above 0 (one a slot), got {shown(temperatures)}. "
            "Calibrate this drafter again, or remove the file."
        )


def _check(content: Mapping[str, Any], fields: Mapping[str, tuple[str, Callable[[Any], bool]]], path: Path) -> None:
    for name, (kind, is_fine) in fields.items():
        section, _, inner = name.rpartition(".")
        value = ((content.get(section) or {}) if section else content).get(inner)
        if value is not None and not is_fine(value):
            raise ValueError(
                f"{path}: {name} must be {kind}, got {shown(value)}. Correct the file, or write it again."
            )
