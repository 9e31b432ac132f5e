"""Whether a drafter knows which of its drafts stand, and what a threshold on that would do."""

from collections.abc import Sequence
from typing import Any

import numpy
from sklearn.metrics import brier_score_loss, roc_auc_score

from dspark_hf.generation import SpeculationStats

_THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(20))


def confidence_figures(stats: SpeculationStats) -> dict[str, Any] | None:
    """Confidence against acceptance, over slots that were judged: those before the first refused draft, and it.

    Args:
        stats ([`SpeculationStats`]): What happened.

    Returns:
        `dict`: `num_judged`, `reliability` (bins), `ece` (expected calibration error over these), `auroc` (`None`
        where all stood, or none) and `brier`; `None` for a drafter without a confidence head.
    """
    pairs = list(stats.judged())
    if not pairs:
        return None
    confidences, stood = map(list, zip(*pairs, strict=True))
    bins = stats.reliability()
    total = sum(one["count"] for one in bins)
    return {
        "num_judged": len(pairs),
        "reliability": bins,
        "ece": sum(one["count"] * abs(one["confidence"] - one["accepted"]) for one in bins) / total,
        "auroc": float(roc_auc_score(stood, confidences)) if len(set(stood)) == 2 else None,
        "brier": float(brier_score_loss(stood, confidences)),
    }


def threshold_sweep(stats: SpeculationStats, thresholds: Sequence[float] = _THRESHOLDS) -> list[dict[str, float]]:
    """What verifying only slots of at least such a survival would have done to these rounds.

    Drafts behind the first refused one would not have stood in any case, so a round that was verified whole tells what
    it gives up at every threshold. Rounds that a policy had cut already, and those that ended with the text, are left
    out.

    Args:
        stats ([`SpeculationStats`]): What happened.
        thresholds (`Sequence[float]`, *optional*): Least survival of a verified slot.

    Returns:
        `list[dict]`: For each, `threshold`, `verified` (drafts a round), `tau`, and `verify_rate` (of the drafted);
        empty where no round tells.
    """
    rounds = [
        (numpy.cumprod(confidence[:verified]), accepted)
        for confidence, drafted, verified, accepted, emitted in zip(
            stats.confidences, stats.drafted_lens, stats.verified_lens, stats.accepted_lens, stats.emitted_lens,
            strict=False,
        )
        if confidence and drafted == verified and emitted > accepted
    ]  # fmt: skip
    if not rounds:
        return []
    most = sum(len(survival) for survival, _ in rounds)
    sweep = []
    for threshold in thresholds:
        lens = [int((survival >= threshold).sum()) for survival, _ in rounds]
        stood = [min(num, accepted) for num, (_, accepted) in zip(lens, rounds, strict=True)]
        sweep.append(
            {
                "threshold": threshold,
                "verified": sum(lens) / len(rounds),
                "verify_rate": sum(lens) / most,
                "tau": 1 + sum(stood) / len(rounds),
            }
        )
    return sweep
