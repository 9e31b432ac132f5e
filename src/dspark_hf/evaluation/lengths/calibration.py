"""Whether a confidence head's survival comes true, and temperatures that make it so.

Shapes: N blocks, n slots.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dspark_hf.data.cache.manifest import weights_digest
from dspark_hf.evaluation.lengths.block_records import BlockRecord, record_answers
from dspark_hf.evaluation.running.runs import DecodingSettings
from dspark_hf.generation.lengths.calibration import Calibration, drafter_fingerprint
from dspark_hf.modeling.fingerprint import target_fingerprint

_NUM_BINS = 15
_GRID = np.logspace(-1, 1, 41)


def fit_temperatures(logits: np.ndarray, stood: np.ndarray, known: np.ndarray) -> list[float]:
    """One temperature for each slot, from left to right, so that survival is as often true as it says.

    Each is the one of a grid for which the expected calibration error of the survival up to its slot is least, with
    the temperatures of the slots before it as they are.

    Args:
        logits (`numpy.ndarray` of shape `(blocks, slots)`): The confidence head's.
        stood (`numpy.ndarray` of shape `(blocks,)`): Drafts of each block that stood.
        known (`numpy.ndarray` of shape `(blocks,)`): Slots of each block that could be judged.

    Returns:
        `list[float]`.

    Source: Sequential Temperature Scaling, DSpark, section 3.3 (https://arxiv.org/abs/2607.05147).
    """
    temperatures, before = [], np.ones(len(logits))
    for slot in range(logits.shape[1]):
        is_known, is_true = known > slot, stood > slot
        survival = [before / (1 + np.exp(-logits[:, slot] / temperature)) for temperature in _GRID]
        errors = [calibration_error(values[is_known], is_true[is_known]) for values in survival]
        best = int(np.argmin(errors))
        temperatures.append(float(_GRID[best]))
        before = survival[best]
    return temperatures


def survival_figures(survival: np.ndarray, stood: np.ndarray, known: np.ndarray) -> dict[str, Any]:
    """How well survival tells what stands.

    Args:
        survival (`numpy.ndarray` of shape `(blocks, slots)`): Predicted.
        stood (`numpy.ndarray` of shape `(blocks,)`): Drafts of each block that stood.
        known (`numpy.ndarray` of shape `(blocks,)`): Slots of each block that could be judged.

    Returns:
        `dict`, JSON-able: for each slot `ece`, `auroc` (None where all or none stood) and `brier`; and `reliability`,
        bins of survival against what stood, over all slots.
    """
    figures: dict[str, Any] = {"ece": [], "auroc": [], "brier": []}
    everywhere = []
    for slot in range(survival.shape[1]):
        is_known = known > slot
        values, is_true = survival[is_known, slot], stood[is_known] > slot
        everywhere.append((values, is_true))
        figures["ece"].append(calibration_error(values, is_true))
        figures["auroc"].append(auroc(values, is_true))
        figures["brier"].append(float(np.mean((values - is_true) ** 2)))
    figures["reliability"] = bins(*map(np.concatenate, zip(*everywhere, strict=True)))
    return figures


def bins(values: np.ndarray, is_true: np.ndarray) -> list[dict[str, float]]:
    """Bins of probabilities from 0 to 1 against what came true; those that are empty are left out.

    Args:
        values (`numpy.ndarray`): Probabilities.
        is_true (`numpy.ndarray`): Whether each came true.

    Returns:
        `list[dict]`: Mean `confidence`, `accepted` (a fraction) and `count` of each.
    """
    places = np.minimum((values * _NUM_BINS).astype(int), _NUM_BINS - 1)
    found = []
    for place in range(_NUM_BINS):
        inside = places == place
        if inside.any():
            confidence, accepted = float(values[inside].mean()), float(is_true[inside].mean())
            found.append({"confidence": confidence, "accepted": accepted, "count": int(inside.sum())})
    return found


def calibration_error(values: np.ndarray, is_true: np.ndarray) -> float:
    """Expected calibration error: mean distance of probability and truth over 15 bins, weighted by their counts.

    Args:
        values (`numpy.ndarray`): Probabilities.
        is_true (`numpy.ndarray`): Whether each came true.
    """
    places = np.minimum((values * _NUM_BINS).astype(int), _NUM_BINS - 1)
    surplus = np.bincount(places, weights=values - is_true, minlength=_NUM_BINS)
    return float(np.abs(surplus).sum() / max(len(values), 1))


def auroc(values: np.ndarray, is_true: np.ndarray) -> float | None:
    """Probability that what came true had the higher value of a pair, ties counting half.

    Args:
        values (`numpy.ndarray`): Any scores.
        is_true (`numpy.ndarray`): Whether each came true.

    Returns:
        `float`, or None where all or none did.
    """
    num_true = int(is_true.sum())
    num_false = len(values) - num_true
    if num_true == 0 or num_false == 0:
        return None
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[place]
    return float((ranks[is_true].sum() - num_true * (num_true + 1) / 2) / (num_true * num_false))


def fit_mode(records: Sequence[BlockRecord]) -> tuple[list[float], dict[str, Any]]:
    """Temperatures from every other answer, and figures of the rest.

    Args:
        records (`Sequence[BlockRecord]`): Of answers in one mode.

    Returns:
        `tuple(list[float], dict)`: The temperatures; and `before` and `after`, as of [`survival_figures`], with
        `num_fitted` and `num_held_out` blocks.

    Raises:
        `ValueError`: If there are too few answers, none is long enough for the last slot, or the drafter has no
            confidence head.
    """
    if len(records) < 2:
        raise ValueError(
            f"Calibration fits on half of the answers and judges on the others, got {len(records)} of two tokens and "
            "more: give more prompts."
        )
    if records[0].confidence_logits is None:
        raise ValueError(
            "This drafter has no confidence head to calibrate; while generating, chances are estimated instead."
        )
    (logits, stood, known), held_out = _stacked(records[::2]), _stacked(records[1::2])
    judged, num_slots = min(known.max(), held_out[2].max()), logits.shape[1]
    if judged < num_slots:
        raise ValueError(
            f"A drafter of {num_slots} slots is calibrated on answers of more than {num_slots} tokens, and one half "
            f"of these has none of more than {judged}: let the target write more (--max-new-tokens), or give more "
            "prompts."
        )
    temperatures = fit_temperatures(logits, stood, known)
    figures = {
        name: survival_figures((1 / (1 + np.exp(-held_out[0] / scale))).cumprod(1), *held_out[1:])
        for name, scale in (("before", 1.0), ("after", np.array(temperatures)))
    }
    return temperatures, {**figures, "num_fitted": len(stood), "num_held_out": len(held_out[1])}


def calibrate(
    target: Any,
    drafter: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    *,
    data: str = "",
    max_new_tokens: int = 128,
    batch_size: int = 16,
    seed: int = 0,
    journal: Path | None = None,
    resume: bool = False,
    report: Callable[[str, int], None] = lambda mode, num_done: None,
) -> Calibration:
    """Let the target answer prompts greedily and at T = 1, and calibrate the drafter's confidence head on them.

    Args:
        target (`PreTrainedModel`): The model.
        drafter ([`DSparkModel`]): Its drafter, bound to it.
        tokenizer (`PreTrainedTokenizerBase`): The target's.
        prompts (`Sequence`): What to ask, see [`encode_prompts`].
        data (`str`, *optional*): Name of the prompts.
        max_new_tokens (`int`, *optional*, defaults to 128): Most tokens of an answer.
        batch_size (`int`, *optional*, defaults to 16): Answers made at once.
        seed (`int`, *optional*, defaults to 0): Of the sampling.
        journal (`Path`, *optional*): File that keeps what is done; the caller removes it, and its sibling of T = 1.
        resume (`bool`, *optional*, defaults to `False`): Whether to go on with a journal that is there.
        report (`Callable`, *optional*): Called with the mode and the number of prompts done.

    Returns:
        [`Calibration`].

    Raises:
        `ValueError`: If there are too few prompts, answers are too short, or the drafter has no confidence head.
    """
    if not drafter.config.enable_confidence_head:
        fit_mode([BlockRecord([], [], [])] * 2)
    modes = {}
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        kept = None if journal is None else journal.with_name(f"{journal.name}.{name}")
        settings = DecodingSettings(max_new_tokens, temperature)
        records = record_answers(
            target, drafter, tokenizer, prompts, settings, batch_size=batch_size, seed=seed, journal=kept,
            resume=resume, report=lambda num_done, name=name: report(name, num_done),
        )  # fmt: skip
        modes[name] = fit_mode(records)
    digest = hashlib.sha256(json.dumps(list(prompts), default=str).encode()).hexdigest()[:16]
    made_for = {
        "target": target_fingerprint(target), "target_weights": weights_digest(target),
        "drafter": drafter_fingerprint(drafter), "data": digest, "verification": "token",
        "dtype": str(target.dtype).removeprefix("torch."),
    }  # fmt: skip
    (greedy, figures), (sampled, sampled_figures) = modes["greedy"], modes["sampled"]
    return Calibration(
        greedy, sampled, data, figures["num_fitted"], float(np.mean(figures["before"]["ece"])),
        float(np.mean(figures["after"]["ece"])), made_for, {"greedy": figures, "sampled": sampled_figures},
    )  # fmt: skip


def _stacked(records: Sequence[BlockRecord]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    logits = np.array([row for record in records for row in record.confidence_logits])
    stood = np.array([num for record in records for num in record.lens])
    known = np.array([num for record in records for num in record.known])
    return logits, stood, known
