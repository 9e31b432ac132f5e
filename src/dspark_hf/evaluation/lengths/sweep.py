"""Policies against each other over batch sizes and thresholds, on recorded blocks at the cost of a table."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dspark_hf.evaluation.lengths.block_records import BlockRecord
from dspark_hf.evaluation.lengths.replay import Replay, replay
from dspark_hf.files import whole_file
from dspark_hf.generation.lengths.scheduler import PrefixScheduler
from dspark_hf.generation.lengths.step_cost import StepCost

QUALITIES = ("good", "poor", "useless")
_THRESHOLDS = tuple(place / 10 for place in range(1, 10))
# Drafts of all rows together in a fixed rule to compare with, at least one a row.
_SHARED = 16
# Lines that the others are held against are black: the rest is nine, and there are ten colours.
_LOOKS = {
    "plain": {"color": "black", "linestyle": "dashed", "linewidth": 1},
    "auto": {"color": "black", "marker": "o", "linewidth": 2.5},
}
# What of a matrix's spread is added to a poor drafter's as noise.
_NOISE = 0.6


def check_quality(quality: str) -> None:
    """Check that there is such a quality.

    Args:
        quality (`str`): One of `QUALITIES`, or not.

    Raises:
        `ValueError`: If there is not.
    """
    if quality not in QUALITIES:
        raise ValueError(f"A drafter's quality is one of {', '.join(QUALITIES)}, got {quality!r}.")


def drafter_of_quality(drafter: Any, quality: str, seed: int = 0) -> Any:
    """The drafter itself (`good`), one with noise in its matrices (`poor`), or one of random weights (`useless`).

    Args:
        drafter ([`DSparkModel`]): A drafter, bound to its target.
        quality (`str`): One of `QUALITIES`.
        seed (`int`, *optional*, defaults to 0): Of noise and weights.

    Returns:
        [`DSparkModel`], bound to the same target.

    Raises:
        `ValueError`: If there is no such quality.
    """
    check_quality(quality)
    if quality == "good":
        return drafter
    torch.manual_seed(seed)
    target, dtype, device = drafter.borrowed.target, drafter.dtype, drafter.device
    if quality == "useless":
        other = type(drafter)(copy.deepcopy(drafter.config))
    else:
        other = type(drafter)(copy.deepcopy(drafter.config))
        other.load_state_dict(drafter.state_dict(), strict=False)
        with torch.no_grad():
            for parameter in other.parameters():
                if parameter.ndim == 2:
                    parameter += _NOISE * parameter.float().std() * torch.randn_like(parameter)
    return other.to(device=device, dtype=dtype).eval().bind(target)


def sweep(
    records: Sequence[BlockRecord], cost: StepCost, batch_sizes: Sequence[int], *, remembers: bool = False
) -> dict[str, Any]:
    """Replay all policies.

    Args:
        records (`Sequence[BlockRecord]`): Of answers in one mode, with one drafter.
        cost ([`StepCost`]): What passes take.
        batch_sizes (`Sequence[int]`): Rows of a batch.
        remembers (`bool`, *optional*, defaults to `False`): As of [`replay`].

    Returns:
        `dict`, JSON-able. `policies`: by batch size and name, times as fast as plain steps, tau, drafts verified and
        accepted of a row's round, and rounds drafted; with `plain`, which is 1. `auto`: by batch size, its speed to
        that of the best of the others, and microseconds of its decision in a round. `thresholds`: the same figures by
        threshold, at the least batch size.

    Raises:
        `ValueError`: If there are no records.
    """
    if not records:
        raise ValueError(
            "There is no block to replay, since no answer has two tokens: let the target write more "
            "(--max-new-tokens), or give other prompts."
        )
    policies: dict[str, Any] = {}
    auto: dict[str, Any] = {}
    for size in batch_sizes:
        runs = {
            name: replay(records, size, options, cost, most, remembers=remembers)
            for name, (options, most) in _rivals(size).items()
        }
        policies[str(size)] = {"plain": {"speed": 1.0}} | {name: _figures(run) for name, run in runs.items()}
        best = max([1.0, *(runs[name].speed for name in runs if name not in ("auto", "early_stop", "lagged"))])
        auto[str(size)] = {
            "to_best": runs["auto"].speed / best,
            "decision_microseconds": 1e6 * runs["auto"].decision_seconds / runs["auto"].rounds,
        }
    thresholds = {
        str(threshold): _figures(replay(records, min(batch_sizes), options, cost))
        for threshold in _THRESHOLDS
        for options in [PrefixScheduler("threshold", threshold=threshold)]
    }
    return {"policies": policies, "auto": auto, "thresholds": thresholds}


def plot_sweep(path: str | Path, result: dict[str, Any], title: str = "") -> None:
    """Two pictures in one file: speed of policies by batch size, and what thresholds verify and accept.

    Args:
        path (`str` or `Path`): The PNG to write.
        result (`dict`): What [`sweep`] gave.
        title (`str`, *optional*): Above both.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = [int(size) for size in result["policies"]]
    for name in next(iter(result["policies"].values())):
        speeds = [result["policies"][str(size)][name]["speed"] for size in sizes]
        left.plot(sizes, speeds, label=name, **_LOOKS.get(name, {"marker": "o", "linewidth": 1, "alpha": 0.6}))
    left.set(xlabel="rows", ylabel="times as fast as plain steps", xscale="log")
    left.set_xticks(sizes, labels=sizes)
    left.set_xticks([], minor=True)
    left.legend(fontsize=7)
    thresholds = result["thresholds"]
    places = [float(threshold) for threshold in thresholds]
    right.plot(places, [one["verified"] for one in thresholds.values()], marker="o", label="verified a round")
    right.plot(places, [one["accepted"] for one in thresholds.values()], marker="o", label="accepted a round")
    shares = [one["accepted"] / one["verified"] if one["verified"] else 0.0 for one in thresholds.values()]
    right.plot(places, shares, marker="o", label="accepted of the verified")
    right.set(xlabel="threshold on survival", ylabel="drafts", ylim=(0, None))
    right.legend(fontsize=7)
    figure.suptitle(title)
    with whole_file(path) as temp:
        figure.savefig(temp, format="png", dpi=120)


def _rivals(num_rows: int) -> dict[str, tuple[PrefixScheduler, int | None]]:
    fixed = PrefixScheduler("fixed")
    return {
        "auto": (PrefixScheduler(), None),
        "early_stop": (PrefixScheduler("early_stop"), None),
        "lagged": (PrefixScheduler("lagged"), None),
        "all drafts": (fixed, None),
        "1 draft": (fixed, 1),
        "2 drafts": (fixed, 2),
        "3 drafts": (fixed, 3),
        f"{_SHARED} in all": (fixed, max(1, _SHARED // num_rows)),
        "threshold 0.3": (PrefixScheduler("threshold", threshold=0.3), None),
        "threshold 0.5": (PrefixScheduler("threshold", threshold=0.5), None),
    }


def _figures(run: Replay) -> dict[str, float]:
    return {
        "speed": run.speed,
        "tau": run.tau,
        "verified": run.verified_tokens / run.verifications,
        "accepted": run.accepted_tokens / run.verifications,
        "drafted_share": run.drafted_rounds / run.rounds,
    }
