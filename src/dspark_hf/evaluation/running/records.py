"""What is kept of a run: a record for every round, from which all figures can be made again."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dspark_hf.evaluation.running.runs import Run
from dspark_hf.generation import SpeculationStats
from dspark_hf.messages import shown

_TOTALS = ("rounds", "new_tokens", "paused_rounds", "total_seconds", "prefill_seconds", "target_seconds",
           "drafter_seconds")  # fmt: skip
_DIGITS = 5  # of a confidence
FORMAT = 1  # of the files that records lie in


@dataclass(frozen=True)
class Call:
    """A batch of prompts that was answered in several ways, one after the other.

    Args:
        task (`str`): Its task.
        turn (`int`): Turn of the conversation, from 0.
        temperature (`float`): 0 is greedy.
        batch_size (`int`): Prompts of a call; the last of a task may have fewer.
        seed (`int`): Set before each run.
        prompts (`list[dict]`): Of each row: `index` in the task, `category`, `ids` without padding.
        runs (`dict[str, Run]`): By way, in the order in which they ran.
        differences (`dict[str, list]`): Of a greedy call, by way and row: where its ids part from the plain run's
            (see [`TokenDifference`]), `None` where they do not.
        pieces (`dict[str, dict]`): By way, seconds of its passes alone ([`Pieces`]), where they were taken.
        process (`int`): Which process ran it.
    """

    task: str
    turn: int
    temperature: float
    batch_size: int
    seed: int
    prompts: list[dict[str, Any]]
    runs: dict[str, Run]
    differences: dict[str, list[dict[str, Any] | None]]
    pieces: dict[str, dict[str, float]]
    process: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The record, JSON-able."""
        return {**vars(self), "runs": {name: _run_record(run) for name, run in self.runs.items()}}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Call":
        """Read a `record` as it stands in a file."""
        return cls(**{**record, "runs": {name: _run(one) for name, one in record["runs"].items()}})


def rounds_of(stats: SpeculationStats) -> list[dict[str, Any]]:
    """A record for each verification in the `stats`, in order.

    Returns:
        `list[dict]`: `row`; the numbers of drafts `drafted`, `verified`, `accepted`; tokens `emitted`, the target's
        own included; `source` (`"drafter"`, `"lookup"`, or `None` of a plain step); `drafts`, the verified ids; and
        `confidence` of every drafted slot.
    """
    num = len(stats.verified_lens)
    drafts = stats.draft_ids or [[]] * num
    confidences = stats.confidences or [[]] * num
    rows = zip(stats.row_ids, stats.drafted_lens, stats.verified_lens, stats.accepted_lens, stats.emitted_lens,
               stats.from_lookup, drafts, confidences, strict=True)  # fmt: skip
    return [
        {
            "row": row,
            "drafted": drafted,
            "verified": verified,
            "accepted": accepted,
            "emitted": emitted,
            "source": "lookup" if looked_up else "drafter" if drafted else None,
            "drafts": ids,
            "confidence": [round(one, _DIGITS) for one in confidence],
        }
        for row, drafted, verified, accepted, emitted, looked_up, ids, confidence in rows
    ]


def stats_of(rounds: Sequence[Mapping[str, Any]], totals: Mapping[str, Any]) -> SpeculationStats:
    """The statistics that records were made of: `rounds` as of [`rounds_of`], and `totals`, the other fields."""
    stats = SpeculationStats(**totals)
    for one in rounds:
        stats.record(
            one["row"], one["verified"], one["accepted"], one["emitted"], one["source"] == "lookup", one["drafted"]
        )
    stats.draft_ids = [one["drafts"] for one in rounds]
    if any(one["confidence"] for one in rounds):
        stats.confidences = [one["confidence"] for one in rounds]
    return stats


def _run_record(run: Run) -> dict[str, Any]:
    record = {"ids": run.ids, "seconds": run.seconds, "peak_bytes": run.peak_bytes, "num_passes": run.num_passes}
    if run.stats is not None:
        record["totals"] = {name: getattr(run.stats, name) for name in _TOTALS}
        record["rounds"] = rounds_of(run.stats)
    return record


def _run(record: Mapping[str, Any]) -> Run:
    if not 0 < record["seconds"] < math.inf:
        raise ValueError(f"seconds must be a positive number, got {shown(record['seconds'])}")
    stats = stats_of(record["rounds"], record["totals"]) if "rounds" in record else None
    return Run(record["ids"], record["seconds"], stats, record["peak_bytes"], record["num_passes"])
